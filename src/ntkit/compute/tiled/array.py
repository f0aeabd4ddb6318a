"""A matrix of tiles as a lazy array, read where it is indexed, and as a linear operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from ntkit.compute.scripted import LinearOperator
from ntkit.errors import BadValueError
from ntkit.network import Values

if TYPE_CHECKING:
    from ntkit.compute.tiled.kernel import TiledKernel

Index = int | slice | list[int] | np.ndarray
_NUMPY = {torch.float32: np.dtype("float32"), torch.float64: np.dtype("float64")}


class TiledArray:
    """A matrix on disk that is indexed as NumPy's arrays are, rows and columns each by itself.

    ``a[i, j]``, ``a[2:8]``, ``a[:, [0, 3]]``, ``a[mask, :10]`` read the tiles that they touch, checked. Two
    lists mean the rows by the columns of these (as ``numpy.ix_`` does). `numpy.asarray` reads all.
    """

    ndim = 2

    def __init__(self, tiled: TiledKernel) -> None:
        self._tiled = tiled
        self.shape, self.dtype = tiled.shape, _NUMPY[tiled.dtype]

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"TiledArray({list(self.shape)}, {self.dtype}, in {self._tiled.folder})"

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("A matrix on disk is an array only as a copy.")
        return self._tiled.dense().numpy().astype(dtype or self.dtype, copy=False)

    def __getitem__(self, index: Index | tuple[Index, ...]) -> Values:
        parts = list(index) if isinstance(index, tuple) else [index]
        if len(parts) > 2:
            raise BadValueError(
                f"[{index!r}] is not an index of rows and columns; give at most two of integers, slices, "
                f"lists of integers and masks."
            )
        rows = _places(parts[0], self.shape[0], "row")
        columns = _places(parts[1] if len(parts) > 1 else slice(None), self.shape[1], "column")
        out = np.empty((len(rows), len(columns)), self.dtype)
        size = self._tiled.tile
        for i in np.unique(rows // size):
            into = np.flatnonzero(rows // size == i)
            for j in np.unique(columns // size):
                across = np.flatnonzero(columns // size == j)
                tile = self._tiled.block(int(i), int(j)).numpy()
                out[np.ix_(into, across)] = tile[np.ix_(rows[into] - i * size, columns[across] - j * size)]
        taken = [isinstance(p, int | np.integer) for p in [*parts, slice(None)]]
        return out[tuple(0 if one else slice(None) for one in taken[:2])]


def _places(index: object, n: int, what: str) -> np.ndarray:
    if isinstance(index, slice):
        return np.arange(n)[index]
    places = np.atleast_1d(np.asarray(index))
    if places.ndim == 2 and 1 in places.shape:  # of numpy.ix_
        places = places.ravel()
    if places.dtype == bool:
        if places.shape != (n,):
            raise BadValueError(f"A mask of {what}s has shape {places.shape}; expected ({n},).")
        return np.flatnonzero(places)
    if places.ndim != 1 or (places.size and places.dtype.kind not in "iu"):
        raise BadValueError(f"{index!r} is not an index of {what}s; give integers, a slice or a mask.")
    bad = places[(places < -n) | (places >= n)]
    if bad.size:
        raise IndexError(f"{what} {bad[0]} is out of bounds: the matrix has {n} {what}s.")
    return places.astype(int) % n


class TiledOperator(LinearOperator):
    """A matrix of tiles as a linear operator, whose products read each tile once."""

    def __init__(self, like: Tensor, *, tiled: TiledKernel, transposed: bool = False) -> None:
        super().__init__(like, tiled=tiled, transposed=transposed)
        self._like, self._tiled, self._transposed = like, tiled, transposed

    def _size(self) -> torch.Size:
        shape = self._tiled.shape
        return torch.Size(shape[::-1] if self._transposed else shape)

    def _matmul(self, rhs: Tensor) -> Tensor:
        v = rhs.unsqueeze(-1) if rhs.ndim == 1 else rhs
        out = v.new_zeros(self.shape[0], v.shape[-1])
        tiled = self._tiled
        for i, j in tiled.tiles:
            tile = tiled.block(i, j).to(v)
            rows, columns = tiled.rows(i), tiled.cols(j)
            if self._transposed:
                rows, columns, tile = columns, rows, tile.T
            out[rows] += tile @ v[columns]
            if tiled.symmetric and i != j:
                out[columns] += tile.T @ v[rows]
        return out.squeeze(-1) if rhs.ndim == 1 else out

    def _transpose_nonbatch(self) -> TiledOperator:
        if self._tiled.symmetric:
            return self
        return TiledOperator(self._like, tiled=self._tiled, transposed=not self._transposed)

    def _diagonal(self) -> Tensor:
        return self._tiled.diag()

    def to_dense(self) -> Tensor:
        """Return the whole matrix, in memory."""
        whole = self._tiled.dense()
        return whole.T if self._transposed else whole


def operator_of(tiled: TiledKernel) -> TiledOperator:
    """Return a matrix of tiles as a linear operator."""
    return TiledOperator(torch.empty(0, dtype=tiled.dtype), tiled=tiled)
