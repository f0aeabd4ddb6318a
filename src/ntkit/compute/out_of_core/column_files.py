"""The finished columns of a factor on disk: each written in one go, with its checksum, and read back."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Literal
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import BadValueError
from ntkit.files import Json, write_atomically

HEAD = 4096  # bytes of a file before its numbers
PIECE = 2**24  # bytes that are written, read and summed at once
MANIFEST = "factor.json"


class ColumnFiles:
    """The columns of tiles of a lower triangular factor in a folder, one file each.

    Column k holds the rows from its diagonal down, ``[n - start, width]``. A file appears under its name when
    it is whole; one whose checksum is not that of its numbers counts as absent.

    Parameters
    ----------
    folder : Path
        Made if it is not there.
    key : dict
        What the factor is of: compared with the folder's ``factor.json``.
    n, width : int
        The rows of the matrix, and the columns of a file.
    dtype : torch.dtype
        That of the numbers, float32 or float64.
    threads : int
        The number of threads that compute it, if it is new; else those of the first time, in ``threads``:
        with another number, sums would be rounded otherwise.

    Raises
    ------
    NtkitError
        The folder holds the factor of something else.
    """

    def __init__(
        self, folder: Path, key: Json, n: int, width: int, dtype: torch.dtype, threads: int = 1
    ) -> None:
        self.folder, self.n, self.width, self.dtype, self.threads = folder, n, width, dtype, threads
        self.key = {**key, "n": n, "width": width, "dtype": str(dtype).removeprefix("torch.")}
        self._numpy = torch.empty(0, dtype=dtype).numpy().dtype
        self._checked: set[int] = set()
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".column-*"):
            leftover.unlink()
        manifest = folder / MANIFEST
        if not manifest.exists():
            text = json.dumps({**self.key, "threads": threads}, indent=1, sort_keys=True)
            write_atomically(manifest, text.encode())
            return
        found = json.loads(manifest.read_bytes())
        self.threads = int(found.pop("threads"))
        if found != json.loads(json.dumps(self.key)):
            names = set(found) | set(self.key)
            other = sorted(k for k in names if found.get(k) != self.key.get(k))
            raise BadValueError(
                f"The factor in {folder} differs in {', '.join(other)}: there "
                f"{[found.get(k) for k in other]}, here {[self.key.get(k) for k in other]}. Give another "
                "folder, or remove it."
            )

    def __len__(self) -> int:
        return -(-self.n // self.width)

    def columns(self, k: int) -> slice:
        """Return the columns of the k-th file; its rows go from the same start to the end."""
        return slice(k * self.width, min(self.n, (k + 1) * self.width))

    @property
    def finished(self) -> int:
        """The number of columns, from the first on, that are there with the right checksum."""
        k = 0
        while k < len(self) and self.good(k):
            k += 1
        return k

    def write(self, k: int, values: Tensor) -> None:
        """Write a finished column ``[n - start, width]``, in pieces of rows."""
        path, checksum = self.path(k), 0
        part = path.with_name(f".{path.name}.{uuid4().hex}")
        rows = max(1, PIECE // (values.shape[1] * values.element_size()))
        try:
            with open(part, "xb") as file:
                file.write(bytes(HEAD))
                for start in range(0, len(values), rows):
                    piece = values[start : start + rows].contiguous().numpy()
                    checksum = zlib.crc32(piece.data, checksum)
                    file.write(piece.data)
                file.seek(0)
                head = {"crc32": checksum, "shape": list(values.shape)}
                file.write(json.dumps(head).encode().ljust(HEAD))
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        self._checked.add(k)

    def read(self, k: int, rows: slice) -> Tensor:
        """Return rows of a column, numbered as those of the matrix; checked the first time."""
        cols = self.columns(k)
        width = cols.stop - cols.start
        if not self.good(k):
            raise BadValueError(
                f"{self.path(k)} is missing or damaged; fit again: what is not there is made again."
            )
        offset = HEAD + (rows.start - cols.start) * width * self._numpy.itemsize
        found = np.fromfile(self.path(k), self._numpy, (rows.stop - rows.start) * width, offset=offset)
        return torch.from_numpy(found).view(-1, width)

    def good(self, k: int) -> bool:
        """Return whether a column is there, whole; one that is damaged is removed."""
        if k in self._checked:
            return True
        path, cols = self.path(k), self.columns(k)
        if not path.exists():
            return False
        with open(path, "rb") as file:
            head, checksum = _head(file.read(HEAD)), 0
            while piece := file.read(PIECE):
                checksum = zlib.crc32(piece, checksum)
        expected = {"crc32": checksum, "shape": [self.n - cols.start, cols.stop - cols.start]}
        if head != expected:
            path.unlink()
            return False
        self._checked.add(k)
        return True

    def path(self, k: int) -> Path:
        """Return the file of a column."""
        return self.folder / f"column-{k:05d}"


def _head(data: bytes) -> Json | Literal[None]:
    """Return what the head of a file says, None where it is torn."""
    try:
        return json.loads(data)
    except ValueError:
        return None
