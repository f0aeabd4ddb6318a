"""A kernel matrix as tiles in a folder, made once, resumed after any death, read a tile at a time."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from ntkit.compute.tiled.array import TiledArray, TiledOperator, operator_of
from ntkit.compute.tiled.building import build
from ntkit.compute.tiled.executors import Executor, Work, as_executor
from ntkit.compute.tiled.identity import identity
from ntkit.compute.tiled.making import THREADS, Maker
from ntkit.compute.tiled.manifest import VALUES, begin, compare_versions, flat, versions
from ntkit.compute.tiled.samples import Samples, even_tile
from ntkit.compute.tiled.store import DamagedTile, Layout, Tile, TileStore, open_store
from ntkit.errors import BadValueError, whole
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel, a_kernel

if TYPE_CHECKING:
    from zarr.abc.store import Store

TILE = 2**26  # bytes of a tile that is chosen: few enough to hold several, many enough to read in one go
PARTS, LEAST = 8, 256  # a matrix is cut into so many parts along each side, of at least so many rows
_FEW = 3  # samples whose values are compared


class TiledKernel:
    """A kernel matrix as tiles in a folder."""

    def __init__(
        self,
        kernel: Kernel,
        x1: Inputs,
        x2: Inputs | None = None,
        *,
        folder: str | os.PathLike[str] | Store,
        tile: int | Literal["auto"] = "auto",
        dtype: str | torch.dtype | None = None,
        executor: str | Executor | None = None,
    ) -> None:
        self.kernel, self.executor = a_kernel(kernel), as_executor(executor)
        picked = getattr(kernel, "inputs", None)
        self._x1 = Samples(x1, "x1", picked)
        self._x2 = None if x2 is None else Samples(x2, "x2", picked)
        self._store = TileStore(open_store(folder))
        self.symmetric = x2 is None
        first, second = self._x1.take(slice(0, _FEW)), (self._x2 or self._x1).take(slice(0, _FEW))
        few = Maker(self.kernel, self._x1, self._x2, _FEW, None).block(first, None if x2 is None else second)
        self.outputs = few.shape[0] // min(_FEW, len(self._x1))
        self.dtype = few.dtype if dtype is None else _dtype(dtype)
        n, m = len(self._x1), len(self._x2 or self._x1)
        name = str(self.dtype).removeprefix("torch.")
        self.samples = n, m
        self.shape = n * self.outputs, m * self.outputs
        if tile == "auto":
            size = _chosen(max(n, m), self.outputs, self.dtype.itemsize)
        else:
            size = whole("tile", tile)
        self._maker = Maker(self.kernel, self._x1, self._x2, min(size, max(n, m)), name)
        self.tile = self._maker.tile * self.outputs
        data = {"x1": self._x1.hash()} | ({} if self._x2 is None else {"x2": self._x2.hash()})
        self._manifest = begin(
            self._store,
            {
                "kernel": identity(self.kernel, "kernel"),
                "data": data,
                "samples": list(self.samples),
                "outputs": self.outputs,
                "symmetric": self.symmetric,
                "tile": self._maker.tile,
                "dtype": name,
                "threads": THREADS,
                VALUES: few.double().flatten()[:16].tolist(),
                "versions": versions(),
            },
        )
        self._layout = Layout(
            self.shape, (min(self.tile, self.shape[0]), min(self.tile, self.shape[1])), name
        )
        self._store.make(self._layout)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles of the folder, row by row: of a symmetric matrix those with i <= j."""
        rows, columns = (math.ceil(n / self._maker.tile) for n in self.samples)
        for i in range(rows):
            for j in range(i if self.symmetric else 0, columns):
                yield i, j

    def rows(self, i: int) -> slice:
        """Return the rows of the matrix that tiles (i, ...) hold."""
        return slice(i * self.tile, min(self.shape[0], (i + 1) * self.tile))

    def cols(self, j: int) -> slice:
        """Return the columns of the matrix that tiles (..., j) hold."""
        return slice(j * self.tile, min(self.shape[1], (j + 1) * self.tile))

    def build(self) -> TiledKernel:
        """Make the tiles that are missing."""
        stored = self._store.stored()
        missing = [tile for tile in self.tiles if tile not in stored]
        if missing:
            compare_versions(self._manifest, str(self._store))
            build(Work(self._maker, self._store), self.executor, missing)
        return self

    def block(self, i: int, j: int) -> Tensor:
        """Return a tile, checked; made again where it is missing or does not match its checksum."""
        if self.symmetric and i > j:
            return self.block(j, i).T
        tile = (i, j)
        try:
            found = self._store.read(tile)
        except DamagedTile:
            self._store.remove(tile)
            found = None
        if found is None:
            compare_versions(self._manifest, str(self._store))
            found = self._maker.make(tile)
            self._write(tile, found)
        rows, columns = self.rows(i), self.cols(j)
        return found[: rows.stop - rows.start, : columns.stop - columns.start].contiguous()

    @property
    def array(self) -> TiledArray:
        """The matrix as a lazy array: slices as of NumPy, read tile by tile."""
        return TiledArray(self)

    def operator(self) -> TiledOperator:
        """Return the matrix as a `linear_operator.LinearOperator`, whose products read each tile once."""
        return operator_of(self)

    @property
    def folder(self) -> str:
        """The folder or address of the tiles."""
        return str(self._store)

    @property
    def fingerprint(self) -> str:
        """A hash of the manifest: of kernel, data, layout and dtype."""
        return hashlib.sha256(json.dumps(flat(self._manifest), sort_keys=True).encode()).hexdigest()

    def diag(self) -> Tensor:
        """Return the diagonal, from the tiles on it."""
        if self.shape[0] != self.shape[1]:
            raise BadValueError(f"A matrix of shape {self.shape} has no diagonal of samples with themselves.")
        return torch.cat([self.block(i, i).diagonal() for i in range(math.ceil(len(self) / self.tile))])

    @property
    def progress(self) -> float:
        """The share of tiles that are there."""
        stored = self._store.stored()
        every = list(self.tiles)
        return sum(tile in stored for tile in every) / len(every)

    def _write(self, tile: Tile, block: Tensor) -> None:
        self._store.write(tile, block)


def _dtype(given: str | torch.dtype) -> torch.dtype:
    names = {"float32": torch.float32, "float64": torch.float64}
    name = str(given).removeprefix("torch.")
    if name not in names:
        raise BadValueError(f"dtype={given!r}; expected 'float32' or 'float64'.")
    return names[name]


def _chosen(n: int, outputs: int, itemsize: int) -> int:
    """Return how many samples a tile holds."""
    most = max(1, int(math.sqrt(TILE / itemsize)) // outputs)
    return even_tile(n, min(most, max(LEAST, -(-n // PARTS))))
