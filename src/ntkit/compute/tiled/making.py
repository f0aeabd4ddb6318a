"""How one tile is made: the same bits wherever, in one thread, from the samples of its rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.compute.threads import threads
from ntkit.compute.tiled.samples import Samples
from ntkit.compute.tiled.store import Tile
from ntkit.errors import BadValueError
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel, Rebuilt, a_kernel

ASYMMETRY, ROUNDING = 1e-6, 1e3  # that a diagonal tile may have, relative to its values; in units of eps
THREADS = 1  # that a tile is computed in: sums over several differ in rounding


class Maker:
    """A kernel and its samples, of which it makes tiles.

    ``tile`` counts samples; a kernel with o x o values for two samples gives o rows a sample, of which
    output runs fastest.
    """

    def __init__(self, kernel: Kernel, x1: Samples, x2: Samples | None, tile: int, dtype: str | None) -> None:
        self.kernel, self.x1, self.x2, self.tile, self.dtype = kernel, x1, x2, tile, dtype

    def __getstate__(self) -> dict[str, object]:
        import cloudpickle

        # by value: classes and functions of a script or a notebook, too
        return {**vars(self), "kernel": cloudpickle.dumps(Rebuilt.of(self.kernel))}

    def __setstate__(self, state: dict[str, object]) -> None:
        import cloudpickle

        vars(self).update(state)
        self.kernel = a_kernel(cloudpickle.loads(state["kernel"]).again())  # pyright: ignore[reportArgumentType]

    def move(self, device: str) -> None:
        """Compute on another device."""
        self.kernel = a_kernel(Rebuilt.of(self.kernel).moved(device).again())

    def samples(self, tile: Tile) -> tuple[slice, slice]:
        """Return the samples of the rows and columns of a tile."""
        n, m = len(self.x1), len(self.x1 if self.x2 is None else self.x2)
        (i, j), size = tile, self.tile
        return slice(i * size, min(n, (i + 1) * size)), slice(j * size, min(m, (j + 1) * size))

    def make(self, tile: Tile) -> Tensor:
        """Return a tile ``[rows, columns]``, on the CPU."""
        rows, columns = self.samples(tile)
        first = self.x1.take(rows)
        second = None
        if self.x2 is not None:
            second = self.x2.take(columns)
        elif rows != columns:
            second = self.x1.take(columns)
        try:
            block = self.block(first, second)
        except Exception as error:
            error.add_note(f"(in the tile {tile}, of {rows_in_words(rows)} by {rows_in_words(columns)})")
            raise
        if not bool(block.sum().isfinite()) and not bool(block.isfinite().all()):
            bad = (~block.isfinite()).nonzero()[0].tolist()
            values = block.shape[0] // (rows.stop - rows.start)
            i, j = rows.start + bad[0] // values, columns.start + bad[1] // values
            raise BadValueError(
                f"The kernel of samples {i} and {j} is not finite in {self.dtype}. Give smaller inputs, or "
                f"dtype='float64'."
            )
        return _mirrored(block, rows) if second is None else block

    def block(self, first: Inputs, second: Inputs | None) -> Tensor:
        """Return the kernel of some samples as a matrix."""
        with threads(THREADS):
            block = flattened(self.kernel.repeatable()(first, second).detach())
        if self.dtype is not None:
            block = block.to(getattr(torch, self.dtype))
        return block.cpu().contiguous()


def flattened(block: Tensor) -> Tensor:
    """Return a block ``[n, m, o, o]`` (or of several axes of outputs) as a matrix ``[n o, m o]``.

    >>> flattened(torch.arange(8).reshape(2, 1, 2, 2))
    tensor([[0, 1],
            [2, 3],
            [4, 5],
            [6, 7]])
    """
    if block.ndim == 2:
        return block
    if block.ndim % 2:
        raise BadValueError(
            f"The kernel gives values of shape {tuple(block.shape[2:])} for two samples, which is one matrix "
            f"for each output; tiles are of one matrix: use outputs='full', 'trace' or 'mean'."
        )
    half = (block.ndim - 2) // 2
    order = (0, *range(2, 2 + half), 1, *range(2 + half, 2 + 2 * half))
    values = int(torch.tensor(block.shape[2 : 2 + half]).prod())
    return block.permute(order).reshape(block.shape[0] * values, -1)


def _mirrored(block: Tensor, rows: slice) -> Tensor:
    """Return a tile on the diagonal with its upper triangle in the lower one, which rounding changes."""
    scale, apart = float(block.abs().max()), float((block - block.T).abs().max())
    if apart > max(ASYMMETRY, ROUNDING * torch.finfo(block.dtype).eps) * scale:
        raise BadValueError(
            f"The kernel is not symmetric: between {rows_in_words(rows)}, k(x, x) differs from its transpose "
            f"by up to {apart:.1e}, of values up to {scale:.1e}."
        )
    return block.triu() + block.triu(1).T


def rows_in_words(rows: slice) -> str:
    """Return a slice of samples in words.

    >>> rows_in_words(slice(0, 4))
    'samples 0 to 3'
    """
    return f"samples {rows.start} to {rows.stop - 1}"
