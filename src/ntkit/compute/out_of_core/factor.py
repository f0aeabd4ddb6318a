"""A lower triangular factor in columns of tiles: how a column is finished, and solutions with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ntkit.compute.plan import chunks
from ntkit.compute.threads import threads
from ntkit.errors import BadValueError

LEAST = 1e-3  # of the mean diagonal: the ridge below which a factor in float32 may meet a negative pivot
ROWS = 8192  # rows of a panel that are worked on at once


class ColumnFactor(ABC):
    """K + shift = L L^T, with L in columns of tiles, in memory or on disk.

    Attributes
    ----------
    n, width, shift : int, int, float
        The rows, the columns of a column of tiles, and what was added to the diagonal of K.
    resumed : int
        The columns of tiles that an earlier process had finished.
    """

    n: int
    width: int
    shift: float
    dtype: torch.dtype
    resumed: int
    jitter = 0.0

    @abstractmethod
    def below(self, k: int) -> Iterator[tuple[slice, Tensor]]:
        """Yield rows and blocks of the k-th column of tiles; the first is its square on the diagonal."""

    def column(self, k: int) -> slice:
        """Return the columns of the k-th column of tiles."""
        return slice(k * self.width, min(self.n, (k + 1) * self.width))

    @property
    def count(self) -> int:
        """The number of columns of tiles."""
        return -(-self.n // self.width)

    @threads(1)  # the memory sets the pace, and the bits are always the same
    def half(self, b: Tensor) -> Tensor:
        """Return L^-1 b for columns ``[n, r]``, in the dtype of the factor."""
        y = b.to(self.dtype, copy=True)
        for k in range(self.count):
            cols = self.column(k)
            for at, (rows, block) in enumerate(self.below(k)):
                if at == 0:
                    y[cols] = torch.linalg.solve_triangular(block, y[cols], upper=False)
                else:
                    y[rows] -= block @ y[cols]
        return y

    @threads(1)
    def solve(self, b: Tensor) -> Tensor:
        """Return (K + shift)^-1 b for columns ``[n, r]``, as exact as the dtype of the factor.

        Columns are scaled to length one meanwhile, so that small ones do not underflow.
        """
        length = b.norm(dim=0)
        length = torch.where(length > 0, length, 1.0)
        x = self.half(b / length)
        for k in reversed(range(self.count)):
            cols = self.column(k)
            corner = None
            for at, (rows, block) in enumerate(self.below(k)):
                if at == 0:
                    corner = block
                else:
                    x[cols] -= block.T @ x[rows]
            assert corner is not None
            x[cols] = torch.linalg.solve_triangular(corner.T, x[cols], upper=True)
        return x.to(b) * length

    @property
    def logdet(self) -> float:
        """The logarithm of the determinant of K + shift."""
        corners = (next(self.below(k))[1] for k in range(self.count))
        return float(2 * sum(corner.diagonal().double().log().sum() for corner in corners))


def finish_column(panel: Tensor, shift: float, start: int) -> Tensor:
    """Turn what is left of a column ``[m, w]``, from its diagonal down, into that of the factor.

    Its square is factored in float64; it is returned, the rows below are solved in place.

    Raises
    ------
    NtkitError
        A pivot is not positive.
    """
    width = panel.shape[1]
    square = panel[:width].to(torch.float64, copy=True)
    square.diagonal().add_(shift)
    corner, info = torch.linalg.cholesky_ex(square)
    if int(info):
        dtype = str(panel.dtype).removeprefix("torch.")
        raise BadValueError(
            f"The kernel matrix + {shift:.3g} is not positive definite to the rounding of {dtype}: pivot "
            f"{start + int(info) - 1} is not positive. Give a larger alpha or noise, tiles in float64, or "
            "solver='cg'."
        )
    corner = corner.to(panel.dtype)
    for rows in chunks(len(panel) - width, ROWS):
        below = panel[width + rows.start : width + rows.stop]
        below.copy_(torch.linalg.solve_triangular(corner.T, below, upper=True, left=False))
    return corner


def check_shift(diagonal: Tensor, shift: float, dtype: torch.dtype) -> None:
    """Refuse a ridge that a factor in float32 would drown in its rounding."""
    least = LEAST * float(diagonal.mean())
    if dtype == torch.float32 and shift < least:
        raise BadValueError(
            f"A factor in float32 needs a ridge of at least {LEAST:g} of the mean diagonal, {least:.3g}; got "
            f"{shift:.3g}. Give a larger alpha or noise, tiles in float64, or solver='cg'."
        )
