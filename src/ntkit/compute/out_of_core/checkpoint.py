"""The state of an iteration on disk: written now and then in one go, read back with its checksum."""

from __future__ import annotations

import time
from pathlib import Path

import safetensors.torch
from torch import Tensor

from ntkit.files import hash_data, read_tensors, write_atomically

OFTEN = 30.0  # seconds between two states that are written


class Checkpoint:
    """Where an iteration keeps what it needs to go on after its process was killed.

    Parameters
    ----------
    path : Path
        The file; its folder is made if it is not there.
    key : str
        What tells this iteration from others: another one's state is not read.
    often : float
        Seconds between two states that are written.
    """

    def __init__(self, path: Path, key: str, often: float = OFTEN) -> None:
        self.path, self.key, self.often = path, key, often
        self._last = time.monotonic()

    def load(self) -> dict[str, Tensor] | None:
        """Return the state; None where there is none, one of something else, or a damaged one."""
        try:
            tensors, told = read_tensors(self.path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return tensors if told == {"key": self.key, "sha256": hash_data(tensors)} else None

    def save(self, state: dict[str, Tensor]) -> None:
        """Write a state, if the last one is old enough."""
        if time.monotonic() - self._last < self.often:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        told = {"key": self.key, "sha256": hash_data(tensors)}
        write_atomically(self.path, safetensors.torch.save(tensors, told))
        self._last = time.monotonic()

    def remove(self) -> None:
        """Forget the state: the iteration has ended."""
        self.path.unlink(missing_ok=True)
