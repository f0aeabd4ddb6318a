"""What an account has finished, kept in a folder, so that a killed one resumes where it was."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ntkit.errors import RunFolderError
from ntkit.files import Json, read_tensors, write_atomically
from ntkit.training.accounts.columns import Columns

FORMAT = "ntkit part of an account 2"


class PartStore:
    """A folder of finished tiles, and of snapshots of those that are being worked on; files are atomic.

    ``key`` says what it is a part of; a folder that holds parts of another account is refused.
    """

    def __init__(self, folder: Path, key: Json) -> None:
        self.folder = folder
        self._seal = hashlib.sha256(json.dumps(key, sort_keys=True, default=repr).encode()).hexdigest()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunFolderError(
                f"{folder} cannot be created ({error.strerror}); choose another place for finished parts."
            ) from error

    def finished(self, number: int) -> Columns | None:
        """Return the sums of a tile, None if it is not finished."""
        part = self._read(f"tile-{number:06d}.safetensors")
        if part is None:
            return None
        tensors, scalars = part
        return Columns(**tensors, spent=scalars["spent"])

    def save_finished(self, number: int, columns: Columns) -> None:
        """Keep the sums of a tile; its snapshot is not needed any more."""
        values = dict(vars(columns))
        spent = values.pop("spent")
        self._write(f"tile-{number:06d}.safetensors", values, {"spent": spent})
        (self.folder / f"snapshot-{number:06d}.safetensors").unlink(missing_ok=True)

    def snapshot(self, number: int) -> tuple[dict[str, Tensor], Json] | None:
        """Return how far a tile is, None if it was not begun."""
        return self._read(f"snapshot-{number:06d}.safetensors")

    def save_snapshot(self, number: int, tensors: dict[str, Tensor], scalars: Json) -> None:
        """Keep how far a tile is."""
        self._write(f"snapshot-{number:06d}.safetensors", tensors, scalars)

    def _write(self, name: str, tensors: dict[str, Tensor], scalars: Json) -> None:
        metadata = {"format": FORMAT, "of": self._seal, "scalars": json.dumps(scalars)}
        content = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        metadata["sha256"] = _digest(content, metadata["scalars"])
        try:
            write_atomically(self.folder / name, safetensors.torch.save(content, metadata))
        except OSError as error:
            raise RunFolderError(
                f"{self.folder / name} cannot be written ({error.strerror}); what was finished is kept."
            ) from error

    def _read(self, name: str) -> tuple[dict[str, Tensor], Json] | None:
        path = self.folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            tensors, metadata = read_tensors(data)
            digest = _digest(tensors, metadata["scalars"])
            whole = metadata["format"] == FORMAT and metadata["sha256"] == digest
        except (KeyError, ValueError) as error:
            raise self._damaged(path) from error
        if not whole:
            raise self._damaged(path)
        if metadata["of"] != self._seal:
            raise RunFolderError(
                f"{path} is a part of another account: of another run, other queries, or with other settings "
                f"(tol, nodes, target, memory, jobs). Give another folder as keep=, or delete this one."
            )
        return tensors, json.loads(metadata["scalars"])

    def _damaged(self, path: Path) -> RunFolderError:
        return RunFolderError(f"{path} is damaged or was edited. Delete it, and it is recomputed.")


def _digest(tensors: dict[str, Tensor], scalars: str) -> str:
    digest = hashlib.sha256(scalars.encode())
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
