"""What is kept of the o x o matrix of two samples: all of it, its diagonal, its trace or its mean.

Products are computed in layouts of their own: ``[o, n, p, m]`` (full; the sample runs fastest), ``[o, n, m]``
(diagonal), ``[n, m]``. As blocks these are matrices: ``[o n, p m]``, or one for each output, or one.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ntkit.compute.gemm import gram, product_transposed
from ntkit.errors import one_of

Outputs = Literal["full", "diagonal", "trace", "mean"]
Panel = tuple[slice, slice]  # outputs, samples


class Full:
    """All pairs of outputs: ``[n, m, o, o]``."""

    pairs_outputs = True  # each output of one sample meets each of the other
    sums_outputs = False  # one number for two samples
    gram_equation = "notmps,ntms->onpm"
    crossed_equation = "notms,ntmps->onpm"

    def shape(self, n: int, m: int, o: int) -> tuple[int, ...]:
        """Return the shape that a user gets."""
        return n, m, o, o

    def layout(self, n: int, m: int, o: int) -> tuple[int, ...]:
        """Return the shape that it is computed in."""
        return o, n, o, m

    def view(self, out: Tensor, o: int) -> Tensor:
        """Bring the result to the user's layout and scale."""
        return out.permute(1, 3, 0, 2)

    def block_shape(self, n: int, m: int, o: int, p: int) -> tuple[int, ...]:
        """Return the shape of a block."""
        return o * n, p * m

    def values(self, o: int, p: int) -> int:
        """Return how many numbers two samples have."""
        return o * p

    def panel(self, out: Tensor, row: Panel, column: Panel) -> Tensor:
        """Return the part of the layout that belongs to two panels."""
        return out[row[0], row[1], column[0], column[1]]

    def transposed(self, window: Tensor) -> Tensor:
        """Return a part of the layout with both sides exchanged."""
        return window.permute(2, 3, 0, 1)

    def block(self, window: Tensor) -> Tensor:
        """Return a part of the layout as a block, a new one of zeros where it is not a view."""
        q, n, p, m = window.shape
        try:
            return window.view(q * n, p * m)
        except RuntimeError:  # some of the samples only
            return window.new_zeros(self.block_shape(n, m, q, p))

    def window(self, out: Tensor, rows: slice, columns: slice, o: int, p: int) -> Tensor:
        """Return the part of a block that belongs to some samples."""
        return out.unflatten(0, (o, -1)).unflatten(2, (p, -1))[:, rows, :, columns]

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        """Return the block of two dense Jacobians ``[n, o, k]`` and ``[m, p, k]``."""
        (n, o, _), (m, p, _) = u.shape, v.shape
        # rather than the Jacobians, turn their small product
        product = _gram(u.flatten(0, 1), v.flatten(0, 1), u is v)
        return product.reshape(n, o, m, p).permute(1, 0, 3, 2).reshape(o * n, p * m)

    def diagonal_shape(self, n: int, o: int) -> tuple[int, ...]:
        """Return the shape of each sample with itself."""
        return n, o, o

    def diagonal_panel(self, out: Tensor, samples: slice, q: slice, p: slice) -> Tensor:
        """Return the part of it that belongs to some samples and outputs."""
        return out[samples, q, p]

    def diagonal_product(self, u: Tensor, v: Tensor) -> Tensor:
        """Return it for dense Jacobians ``[n, o, k]``."""
        return u @ v.transpose(1, 2)

    def diagonal_view(self, out: Tensor, o: int) -> Tensor:
        """Bring it to the user's scale."""
        return out


class Diagonal(Full):
    """Each output with itself: ``[n, m, o]``."""

    pairs_outputs = False
    gram_equation = "notmos,ntms->onm"
    crossed_equation = "notms,ntmos->onm"

    def shape(self, n: int, m: int, o: int) -> tuple[int, ...]:
        return n, m, o

    def layout(self, n: int, m: int, o: int) -> tuple[int, ...]:
        return o, n, m

    def view(self, out: Tensor, o: int) -> Tensor:
        return out.permute(1, 2, 0)

    def block_shape(self, n: int, m: int, o: int, p: int) -> tuple[int, ...]:
        return o, n, m

    def values(self, o: int, p: int) -> int:
        return o

    def panel(self, out: Tensor, row: Panel, column: Panel) -> Tensor:
        return out[row[0], row[1], column[1]]

    def transposed(self, window: Tensor) -> Tensor:
        return window.transpose(-1, -2)

    def block(self, window: Tensor) -> Tensor:
        return window

    def window(self, out: Tensor, rows: slice, columns: slice, o: int, p: int) -> Tensor:
        return out[..., rows, columns]

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.bmm(u.transpose(0, 1), v.permute(1, 2, 0))

    def diagonal_shape(self, n: int, o: int) -> tuple[int, ...]:
        return n, o

    def diagonal_panel(self, out: Tensor, samples: slice, q: slice, p: slice) -> Tensor:
        return out[samples, q]

    def diagonal_product(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.linalg.vecdot(u, v)


class Trace(Diagonal):
    """The sum over outputs: ``[n, m]``."""

    sums_outputs = True
    crossed_equation = "notms,ntmos->nm"

    def shape(self, n: int, m: int, o: int) -> tuple[int, ...]:
        return n, m

    def layout(self, n: int, m: int, o: int) -> tuple[int, ...]:
        return n, m

    def view(self, out: Tensor, o: int) -> Tensor:
        return out

    def block_shape(self, n: int, m: int, o: int, p: int) -> tuple[int, ...]:
        return n, m

    def values(self, o: int, p: int) -> int:
        return 1

    def panel(self, out: Tensor, row: Panel, column: Panel) -> Tensor:
        return out[row[1], column[1]]

    def product(self, u: Tensor, v: Tensor) -> Tensor:
        return _gram(u.flatten(1), v.flatten(1), u is v)

    def diagonal_shape(self, n: int, o: int) -> tuple[int, ...]:
        return (n,)

    def diagonal_panel(self, out: Tensor, samples: slice, q: slice, p: slice) -> Tensor:
        return out[samples]

    def diagonal_product(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.linalg.vecdot(u, v).sum(-1)


class Mean(Trace):
    """The trace over the number of outputs, ``[n, m]``: what tends to the infinite-width limit."""

    def view(self, out: Tensor, o: int) -> Tensor:
        return out.div_(o)

    def diagonal_view(self, out: Tensor, o: int) -> Tensor:
        return out / o


Kind = Full
FULL, DIAGONAL, TRACE, MEAN = Full(), Diagonal(), Trace(), Mean()
_KINDS: dict[str, Kind] = {"full": FULL, "diagonal": DIAGONAL, "trace": TRACE, "mean": MEAN}


def kind_of(outputs: str) -> Kind:
    """Return the kind that a user names."""
    return _KINDS[one_of("outputs", outputs, _KINDS)]


def _gram(a: Tensor, b: Tensor, same: bool) -> Tensor:
    return gram(a) if same else product_transposed(a, b)
