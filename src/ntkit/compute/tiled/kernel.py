"""A kernel matrix as tiles in a folder: built once, resumed after any death, read a tile at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from ntkit.compute.plan import format_bytes
from ntkit.compute.tiled.array import TiledArray, TiledOperator, operator_of
from ntkit.compute.tiled.building import build
from ntkit.compute.tiled.executors import as_executor
from ntkit.compute.tiled.identity import device_of, identity
from ntkit.compute.tiled.lookup import StoredKernel, unflattened
from ntkit.compute.tiled.making import THREADS, Maker
from ntkit.compute.tiled.manifest import VALUES, begin, compare, compare_versions, read, versions
from ntkit.compute.tiled.samples import Samples, even_tile, picked_by
from ntkit.compute.tiled.store import DamagedTile, Layout, Tile, TileStore, open_store
from ntkit.compute.tiled.work import Executor, Work
from ntkit.errors import BadValueError, TileError, one_of, whole
from ntkit.files import Json
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel, a_kernel

if TYPE_CHECKING:
    from zarr.abc.store import Store

TILE = 2**26  # bytes of a tile that is chosen: few enough to hold several, many enough to read in one go
PARTS, LEAST = 8, 256  # a matrix is cut into so many parts along each side, of at least so many samples
FEW, VALUES_KEPT = 3, 16  # samples whose values are compared, and how many values


@dataclass(frozen=True)
class Progress:
    """How far a folder is: tiles that are there, of how many, and the bytes of all."""

    stored: int
    tiles: int
    bytes: int

    @property
    def share(self) -> float:
        """The share of tiles that are there, 1 for all."""
        return self.stored / self.tiles

    def __str__(self) -> str:
        """Show both numbers, and the bytes."""
        return f"{self.stored} of {self.tiles} tiles ({self.share:.0%} of {format_bytes(self.bytes)})"


class TiledKernel:
    """A kernel matrix k(x1, x2) as tiles in a folder, which outgrows memory and outlives processes.

    Of k(x1, x1) the upper triangle of tiles is made. The constructor opens or begins the folder; `build`
    makes the tiles that are missing, and may be killed at any moment: started again, it goes on.

    Parameters
    ----------
    kernel : Kernel
        Any kernel with one number for two samples, ``[n, m]``; with all pairs of outputs (``outputs="full"``)
        the matrix is ``[n o, m o]``, whose row n o + i is output i of sample n.
    x1, x2 : inputs
        The samples: tensors, arrays, memory maps, arrays of zarr, tuples and dicts of these, or datasets, of
        which the samples of a tile are read at a time. ``x2`` left out: between x1 and itself.
    folder : path, address or zarr store
        Where the tiles lie: a path, an address that fsspec knows (``"s3://bucket/kernel"``), or a store of
        zarr. A folder is of one kernel and its samples.
    tile : int or "auto"
        The samples of a tile along each side. "auto": tiles of up to 64 MiB, at least eight along a side
        where that leaves them 256 samples; in a folder that was begun, its own.
    dtype : {"float32", "float64"}, optional
        In which tiles are stored; the kernel's own if left out.
    executor : optional
        Who makes tiles: None for this process, one after the other; ``"joblib"`` or a `JoblibExecutor` for
        processes of this machine; ``"ray"`` or a `RayExecutor` for a cluster, or GPUs.

    Raises
    ------
    NtkitError
        A folder that holds tiles of another kernel, other weights or data, another tile size or dtype (each
        by name); one that was damaged, or cannot be written; values that are not finite; a tile at which a
        process died three times.

    Notes
    -----
    A tile's bits hang on its samples, the kernel, the tile size, the type of device and the versions of
    torch and NumPy only, not on the executor, the number of processes or the order: each tile is computed in
    one thread. Tiles are a zarr array (format 3, one object a tile, crc32c checksums), written beside and
    renamed; one that does not match its checksum is made again when it is read. Several builders may share a
    folder: each claims the tiles that it makes.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 64), torch.nn.ReLU(), torch.nn.Linear(64, 1))
    >>> x = torch.randn(10, 3)
    >>> kernel = ntkit.infinite_width(model, x[:1]).ntk
    >>> tiled = ntkit.TiledKernel(kernel, x, folder=tempfile.mkdtemp(), tile=4).build()
    >>> tiled.shape, list(tiled.tiles)
    ((10, 10), [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)])
    >>> tiled.array[2:4, [0, 9]].shape, (tiled.operator() @ torch.ones(10)).shape
    ((2, 2), torch.Size([10]))
    """

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
        size = None if tile == "auto" else whole("tile", tile)
        wanted = None if dtype is None else _dtype(dtype)
        self.store = TileStore(open_store(folder))
        picked = picked_by(kernel)
        one = Samples(x1, "x1", picked)
        two = None if x2 is None or x2 is x1 else Samples(x2, "x2", picked)
        few = Maker(self.kernel, one, two, FEW, None).make((0, 0))
        held = read(self.store)
        if size is None:
            n, outputs = max(len(one), len(two or one)), few.shape[0] // min(FEW, len(one))
            size = held["tile"] if held else _chosen(n, outputs, (wanted or few.dtype).itemsize)
        name = str(wanted or few.dtype).removeprefix("torch.")
        self._maker: Maker | None = Maker(self.kernel, one, two, size, name)
        self._open(begin(self.store, self._of(self._maker, few)))

    @classmethod
    def open(cls, folder: str | os.PathLike[str] | Store) -> TiledKernel:
        """Return what a folder holds without its kernel: to be read, not built."""
        tiled = cls.__new__(cls)
        tiled.store, tiled._maker = TileStore(open_store(folder)), None
        held = read(tiled.store)
        if held is None:
            raise TileError(f"{tiled.store} is not a folder of tiles: ntkit.TiledKernel(...) begins one.")
        tiled._open(held)
        return tiled

    def _of(self, maker: Maker, few: Tensor) -> Json:
        """Return the manifest of what was given."""
        n, m = len(maker.x1), len(maker.x2 or maker.x1)
        data = {"x1": maker.x1.hash()} | ({} if maker.x2 is None else {"x2": maker.x2.hash()})
        return {
            "kernel": identity(self.kernel, "kernel"),
            "data": data,
            "samples": [n, m],
            "outputs": few.shape[0] // min(FEW, n),
            "symmetric": maker.x2 is None,
            "tile": maker.tile,
            "dtype": maker.dtype,
            "device": self.executor.device or device_of(self.kernel),
            "threads": THREADS,
            VALUES: few.double().flatten()[:VALUES_KEPT].tolist(),
            "versions": versions(),
        }

    def _open(self, manifest: Json) -> None:
        self.manifest = manifest
        n, m = manifest["samples"]
        self.samples: tuple[int, int] = (n, m)
        self.outputs: int = manifest["outputs"]
        self.symmetric: bool = manifest["symmetric"]
        self.shape: tuple[int, int] = n * self.outputs, m * self.outputs
        self.tile: int = manifest["tile"] * self.outputs
        self.dtype: torch.dtype = getattr(torch, manifest["dtype"])
        chunks = min(self.tile, self.shape[0]), min(self.tile, self.shape[1])
        self.store.make(Layout(self.shape, chunks, manifest["dtype"]))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        return f"TiledKernel({list(self.shape)} {name}, tiles of {self.tile} rows, in {self.folder})"

    @property
    def folder(self) -> str:
        """The folder or address of the tiles."""
        return str(self.store)

    @property
    def tiles(self) -> Iterator[Tile]:
        """The tiles of the folder, row by row: of a symmetric matrix those with i <= j."""
        rows, columns = (math.ceil(n / self.tile) for n in self.shape)
        for i in range(rows):
            for j in range(i if self.symmetric else 0, columns):
                yield i, j

    def rows(self, i: int) -> slice:
        """Return the rows of the matrix that tiles (i, ...) hold."""
        return slice(i * self.tile, min(self.shape[0], (i + 1) * self.tile))

    def cols(self, j: int) -> slice:
        """Return the columns of the matrix that tiles (..., j) hold."""
        return slice(j * self.tile, min(self.shape[1], (j + 1) * self.tile))

    @property
    def progress(self) -> Progress:
        """How many tiles are there: print it."""
        every, stored = list(self.tiles), self.store.stored()
        return Progress(sum(t in stored for t in every), len(every), len(every) * self.store.layout.bytes)

    def build(self, *, check: bool = False) -> TiledKernel:
        """Make the tiles that are missing, and return this; with ``check`` those that are damaged, too.

        It waits for the tiles that other builders are making. Interrupted or killed, it goes on when it is
        called again, with the tiles that were not finished.
        """
        one_of("check", check, (True, False))
        if check:
            for tile in self.tiles:
                self._read(tile)
        stored = self.store.stored()
        missing = [tile for tile in self.tiles if tile not in stored]
        if missing:
            build(Work(self._checked_maker(), self.store), self.executor, missing)
        return self

    def block(self, i: int, j: int) -> Tensor:
        """Return tile (i, j), checked; made again where it is missing or does not match its checksum.

        For i > j of a symmetric matrix, the transpose of tile (j, i).
        """
        rows, columns = (math.ceil(n / self.tile) for n in self.shape)
        if not (0 <= i < rows and 0 <= j < columns):
            raise IndexError(f"There is no tile ({i}, {j}): there are {rows} by {columns}.")
        if self.symmetric and i > j:
            return self.block(j, i).T
        found = self._read((i, j))
        if found is None:
            maker = self._checked_maker()
            device = device_of(self.kernel)
            if device != self.manifest["device"]:
                raise TileError(
                    f"Tile {(i, j)} of {self.folder} is missing, the others were made on "
                    f"{self.manifest['device']}, and the kernel is on {device}: call build()."
                )
            found = maker.make((i, j))
            self.store.write((i, j), found.numpy())
        rows, columns = self.rows(i), self.cols(j)
        return found[: rows.stop - rows.start, : columns.stop - columns.start].contiguous()

    def dense(self) -> Tensor:
        """Return the whole matrix, in memory."""
        whole = torch.from_numpy(np.empty(self.shape, self.manifest["dtype"]))
        for i, j in self.tiles:
            tile = self.block(i, j)
            whole[self.rows(i), self.cols(j)] = tile
            if self.symmetric and i != j:
                whole[self.cols(j), self.rows(i)] = tile.T
        return whole

    def values(self) -> Tensor:
        """Return the matrix as the kernel returns it, ``[n, m]`` or ``[n, m, o, o]``, in memory."""
        return unflattened(self.dense(), self.outputs)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        return self.array.__array__(dtype, copy)

    @property
    def by_number(self) -> StoredKernel:
        """The matrix as a kernel of the numbers of its samples: ``k(i, j)`` for integers ``[n]``, ``[m]``."""
        return StoredKernel(self)

    @property
    def array(self) -> TiledArray:
        """The matrix as a lazy array: slices as of NumPy, read tile by tile."""
        return TiledArray(self)

    def operator(self) -> TiledOperator:
        """Return the matrix as a `linear_operator.LinearOperator`, whose products read each tile once."""
        return operator_of(self)

    def diag(self) -> Tensor:
        """Return the diagonal, from the tiles on it."""
        if self.shape[0] != self.shape[1]:
            raise BadValueError(f"A matrix of shape {self.shape} is not square: it has no diagonal.")
        return torch.cat([self.block(i, i).diagonal() for i in range(math.ceil(len(self) / self.tile))])

    def _read(self, tile: Tile) -> Tensor | None:
        try:
            return self.store.read(tile)
        except DamagedTile:
            if self._maker is None:
                raise
            self.store.remove(tile)
            return None

    def _checked_maker(self) -> Maker:
        """Return what makes tiles; refuse where kernel or versions are no longer those of the folder."""
        if self._maker is None:
            raise TileError(
                f"Tiles of {self.folder} are missing, and it was opened without its kernel: give kernel and "
                f"data to ntkit.TiledKernel(kernel, x, folder=...), which makes them."
            )
        # a network may have been trained meanwhile
        compare(self.manifest, self.manifest | {"kernel": identity(self.kernel, "kernel")}, self.folder)
        compare_versions(self.manifest, self.folder)
        return self._maker


def _dtype(given: str | torch.dtype) -> torch.dtype:
    name = one_of("dtype", str(given).removeprefix("torch."), ("float32", "float64"))
    return getattr(torch, name)


def _chosen(n: int, outputs: int, itemsize: int) -> int:
    """Return how many samples a tile holds."""
    most = max(1, int(math.sqrt(TILE / itemsize)) // outputs)
    return even_tile(n, min(most, max(LEAST, -(-n // PARTS))))
