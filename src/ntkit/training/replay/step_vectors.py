"""Vectors of one row per step, in memory or on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import NtkitError
from ntkit.files import Scratch


class StepVectors:
    """Vectors ``[P]`` of a dtype, one for each step; in a file where they outgrow a budget of bytes.

    The file is read and written, not mapped: pages of a mapped one would count as memory of the process.
    """

    def __init__(self, count: int, size: int, budget: int, dtype: torch.dtype = torch.float64) -> None:
        self._kind = np.dtype(np.float64 if dtype == torch.float64 else np.float32)
        self._shape, self._bytes = (count, size), size * self._kind.itemsize
        self._given: set[int] = set()
        self._rows: np.ndarray | None = None
        self._path: Path | None = None
        self._scratch: Scratch | None = None  # removed with this object
        if count * self._bytes <= budget:
            self._rows = np.zeros(self._shape, self._kind)
        else:
            self._scratch = Scratch("rows")
            self._path = self._scratch.path / "rows"
            self._path.touch()
            os.truncate(self._path, count * self._bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_scratch": None}  # copies in other processes read the same file

    def __getitem__(self, k: int) -> Tensor:
        if self._path is None:
            assert self._rows is not None
            return torch.from_numpy(self._rows[k].copy())
        k = range(self._shape[0])[k]
        with self._path.open("rb", buffering=0) as file:
            file.seek(k * self._bytes)
            row = np.empty(self._shape[1], self._kind)
            file.readinto(row.view(np.uint8).data)
        return torch.from_numpy(row)

    def __setitem__(self, k: int, value: Tensor) -> None:
        row = np.ascontiguousarray(value.detach().cpu().numpy(), self._kind)
        self._given.add(k)
        if self._path is None:
            assert self._rows is not None
            self._rows[k] = row
            return
        try:
            with self._path.open("r+b", buffering=0) as file:
                file.seek(k * self._bytes)
                view = row.view(np.uint8).data
                while view:
                    view = view[file.write(view) :]
        except OSError as error:
            raise NtkitError(
                f"{self._path} cannot be written ({error.strerror}): what outgrows memory= is kept in the "
                f"folder of temporary files, {self._shape[0] * self._bytes:,} bytes here. Make room there, "
                f"set TMPDIR to another folder, or give more memory=."
            ) from error

    def row(self, k: int) -> Tensor | None:
        """Return the vector of a step where it is in memory, None where it is not; it counts as given."""
        if self._rows is None:
            return None
        self._given.add(k)
        return torch.from_numpy(self._rows[k])

    def __contains__(self, k: int) -> bool:
        """Whether a vector was given for this step."""
        return k in self._given
