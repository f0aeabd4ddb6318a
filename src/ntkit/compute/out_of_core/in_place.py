"""Cholesky in one buffer: one triangle becomes the factor, the other keeps the matrix."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ntkit.compute.out_of_core.column_files import ColumnFiles
from ntkit.compute.out_of_core.costs import WIDTH
from ntkit.compute.out_of_core.factor import ROWS, ColumnFactor, check_shift, finish_column
from ntkit.compute.out_of_core.source import Tiles
from ntkit.compute.plan import chunks
from ntkit.compute.threads import threads
from ntkit.files import Json

STRIP, REACH = 64, 4096  # rows and columns of K that are turned into float64 at once: they stay in the cache


class InPlaceCholesky(ColumnFactor):
    """K + shift = L L^T in one buffer ``[n, n]`` of K's dtype, with K kept for exact residuals.

        L_kk L_kk^T = K_kk + shift - sum_{j<k} L_kj L_kj^T,    L_ik = (K_ik - sum_{j<k} L_ij L_kj^T) L_kk^-T

    by columns of tiles (left-looking): the lower triangle with the diagonal becomes L, the strict upper one
    and ``diag()`` stay K, so that ``self @ v`` is K v in float64. Each finished column is final; it is
    written into the folder, and a process that starts again reads what is there.

    Parameters
    ----------
    source : Tiles
        A symmetric matrix in tiles.
    shift : float
        The ridge or noise. In float32 at least a thousandth of the mean diagonal.
    folder : Path
        Where finished columns go.
    key : dict
        What tells this matrix from others.
    width : int
        The columns of a column of tiles.
    report : callable, optional
        ``report(k, count)`` is called when a column has been finished and written.

    Raises
    ------
    NtkitError
        A ridge that is too small for float32; a pivot that is not positive; a folder of another factor.

    References
    ----------
    Golub, Van Loan, "Matrix computations", section 4.2; Higham, "Accuracy and stability of numerical
    algorithms", chapter 12, for refinement with residuals of higher precision.
    """

    def __init__(
        self,
        source: Tiles,
        shift: float,
        folder: Path,
        key: Json,
        *,
        width: int = WIDTH,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        self.n, self.dtype, self.shift = source.shape[0], source.dtype, float(shift)
        self.width = min(width, self.n)
        key = {**key, "shift": self.shift, "how": "in place"}
        self.files = ColumnFiles(folder, key, self.n, self.width, self.dtype, torch.get_num_threads())
        self.values = _room(self.n, self.dtype)
        self._load(source)
        check_shift(self._diagonal, self.shift, self.dtype)
        self.resumed = self._read_back()
        with threads(self.files.threads):
            for k in range(self.resumed, self.count):
                self._finish(k)
                if report is not None:
                    report(k + 1, self.count)

    def below(self, k: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and blocks of the k-th column of tiles.

        Yields
        ------
        slice, Tensor
            The rows of a block, and the block; first the square on the diagonal.
        """
        cols = self.column(k)
        yield cols, self.values[cols, cols].tril()
        for s in chunks(self.n - cols.stop, ROWS):
            if s.stop > s.start:
                rows = slice(cols.stop + s.start, cols.stop + s.stop)
                yield rows, self.values[rows, cols]

    @threads(1)  # of small products, in which several threads wait for each other
    def __matmul__(self, v: Tensor) -> Tensor:
        """Return K v in float64, from the upper triangle."""
        v = v.double()
        out = self._diagonal[:, None] * v
        strip = torch.empty(STRIP, REACH, dtype=torch.float64)
        for rows in chunks(self.n, STRIP):
            corner = self.values[rows, rows].triu(1).double()
            out[rows] += corner @ v[rows] + corner.T @ v[rows]
            for cols in chunks(self.n - rows.stop, REACH):
                cols = slice(rows.stop + cols.start, rows.stop + cols.stop)
                part = strip[: rows.stop - rows.start, : cols.stop - cols.start]
                part.copy_(self.values[rows, cols])
                out[rows].addmm_(part, v[cols])
                out[cols].addmm_(part.T, v[rows])
        return out

    def diag(self) -> Tensor:
        """Return the diagonal of K, ``[n]``."""
        return self._diagonal

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns of K, ``[n, len(index)]``."""
        out = torch.empty(self.n, len(index), dtype=torch.float64)
        for at, j in enumerate(index.tolist()):
            out[:j, at], out[j + 1 :, at] = self.values[:j, j], self.values[j, j + 1 :]
            out[j, at] = self._diagonal[j]
        return out

    def _load(self, source: Tiles) -> None:
        self._diagonal = torch.empty(self.n, dtype=torch.float64)
        for i, j in source.tiles:
            rows, cols = source.rows(i), source.cols(j)
            tile = source.block(i, j)
            self.values[rows, cols] = tile
            if i == j:
                self._diagonal[rows] = tile.diagonal().double()
            else:
                self.values[cols, rows] = tile.T

    def _read_back(self) -> int:
        done = self.files.finished
        for k in range(done):
            cols = self.column(k)
            corner = self.values[cols, cols]
            corner.copy_(self.files.read(k, cols).tril() + corner.triu(1))
            for s in chunks(self.n - cols.stop, ROWS):
                rows = slice(cols.stop + s.start, cols.stop + s.stop)
                self.values[rows, cols] = self.files.read(k, rows)
        return done

    def _finish(self, k: int) -> None:
        cols = self.column(k)
        start, corner = cols.start, self.values[cols, cols]
        upper = corner.triu(1)
        row = self.values[cols, :start].T
        if start:
            for s in chunks(self.n - start, ROWS):
                rows = slice(start + s.start, start + s.stop)
                self.values[rows, cols].addmm_(self.values[rows, :start], row, alpha=-1)
        corner.copy_(finish_column(self.values[start:, cols], self.shift, start))
        self.files.write(k, self.values[start:, cols])  # the square is L alone, for now
        corner.add_(upper)


def _room(n: int, dtype: torch.dtype) -> Tensor:
    """Return room for a matrix in large pages of memory, where the system has them: its start is aligned."""
    room = mmap.mmap(-1, max(1, n * n * dtype.itemsize))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(room, dtype=dtype, count=n * n).view(n, n)
