"""Cholesky of a matrix that does not fit: a panel in memory, the factor's other columns read from disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ntkit.compute.out_of_core.column_files import ColumnFiles
from ntkit.compute.out_of_core.factor import ColumnFactor, check_shift, finish_column
from ntkit.compute.out_of_core.source import Tiles
from ntkit.compute.plan import chunks, format_bytes
from ntkit.compute.threads import threads
from ntkit.errors import BadValueError
from ntkit.files import Json

LEAST_WIDTH = 64  # columns of a panel below which reading takes all the time
SHARE = 0.7  # of the memory that holds the panel; the rest holds what is read


class BlockedCholesky(ColumnFactor):
    """K + shift = L L^T with L on disk, and no more than ``memory`` bytes of it in memory.

    The formula and the folder are those of `InPlaceCholesky`. For each panel of w columns all finished
    columns are read from its first row on: n^3 / (6 w) numbers in all, so that memory saves reading.

    Raises
    ------
    NtkitError
        Memory for less than 64 columns; else as of `InPlaceCholesky`.
    """

    def __init__(
        self,
        source: Tiles,
        shift: float,
        folder: Path,
        key: Json,
        *,
        memory: int = 2**30,
        report: Callable[[int, int], None] | None = None,
    ) -> None:
        self.n, self.dtype, self.shift = source.shape[0], source.dtype, float(shift)
        row = self.n * self.dtype.itemsize
        self.width = min(self.n, panel_width(self.n, self.dtype.itemsize, memory))
        if self.width < min(self.n, LEAST_WIDTH):
            raise BadValueError(
                f"memory={format_bytes(memory)} holds {self.width} columns of {self.n} rows; expected room "
                f"for {LEAST_WIDTH}, {format_bytes(LEAST_WIDTH * row / SHARE)}. Give more, or solver='cg'."
            )
        self._rows = max(1, int((1 - SHARE) * memory / 2) // (self.width * self.dtype.itemsize))
        self.files = ColumnFiles(
            folder,
            {**key, "shift": self.shift, "how": "from disk"},
            self.n,
            self.width,
            self.dtype,
            torch.get_num_threads(),
        )
        diagonal = [source.block(i, i).diagonal() for i, j in source.tiles if i == j]
        check_shift(torch.cat(diagonal).double(), self.shift, self.dtype)
        self.resumed = self.files.finished
        with threads(self.files.threads):
            for k in range(self.resumed, self.count):
                self._finish(k, source)
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
        yield cols, self.files.read(k, cols).tril()
        yield from self._read(k, cols.stop)

    def _read(self, k: int, start: int) -> Iterator[tuple[slice, Tensor]]:
        for s in chunks(self.n - start, self._rows):
            if s.stop > s.start:
                rows = slice(start + s.start, start + s.stop)
                yield rows, self.files.read(k, rows)

    def _finish(self, k: int, source: Tiles) -> None:
        cols = self.column(k)
        start = cols.start
        panel = self._panel(cols, source)
        for j in range(k):
            row = self.files.read(j, cols).T
            for rows, block in self._read(j, start):
                panel[rows.start - start : rows.stop - start].addmm_(block, row, alpha=-1)
        panel[: cols.stop - start] = finish_column(panel, self.shift, start)
        self.files.write(k, panel)

    def _panel(self, cols: slice, source: Tiles) -> Tensor:
        """Return K's columns from their diagonal down, from the tiles above it."""
        panel = torch.empty(self.n - cols.start, cols.stop - cols.start, dtype=self.dtype)
        for i, j in source.tiles:
            high, low = source.rows(i), source.cols(j)
            first, last = max(high.start, cols.start), min(high.stop, cols.stop)
            if first >= last or low.stop <= cols.start:
                continue
            tile = source.block(i, j)[first - high.start : last - high.start]
            begin = max(low.start, cols.start)
            part = tile[:, begin - low.start :].T
            panel[begin - cols.start : low.stop - cols.start, first - cols.start : last - cols.start] = part
        return panel


def panel_width(n: int, itemsize: int, memory: int) -> int:
    """Return how many columns of n rows a panel has within so many bytes."""
    return int(SHARE * memory) // (n * itemsize)
