"""The Jacobian of one use of a weight, kept as an outer product instead of being formed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class OneHot:
    """A slot whose vectors are rows of the identity: ``index [n, t]`` into ``size`` of them."""

    index: Tensor
    size: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """The shape of the dense slot, ``[n, 1, 1, t, size]``."""
        n, t = self.index.shape
        return torch.Size((n, 1, 1, t, self.size))


Slot = Tensor | OneHot
_TINY = 256  # numbers in a matrix


@dataclass(frozen=True)
class Factor:
    """The Jacobian of a use of a weight with respect to it, arranged as matrices ``[g, r, c]``.

        J[n, o, g, r, c] = sum_t left[n, o, g, t, r] right[n, o, g, t, c]

    n: sample, o: output (of size 1 in the slot that does not depend on it), g: group, t: position.
    ``right=None`` stands for a right slot of ones with c = 1 and t = 1: a weight that is a vector.
    ``arrange`` is the pure view that takes the weight to its ``[g, r, c]``.
    """

    left: Slot
    right: Slot | None
    arrange: Callable[[Tensor], Tensor]

    @classmethod
    def vector(cls, jacobian: Tensor) -> Factor:
        """Return the factor of a weight whose Jacobian ``[n, o, *shape]`` is small: kept dense."""
        n, o = jacobian.shape[:2]
        return cls(jacobian.reshape(n, o, 1, 1, -1), None, lambda w: w.reshape(1, -1, 1))

    @property
    def sizes(self) -> tuple[int, int, int, int, int, int]:
        """The sizes n, o, g, t, r, c."""
        n, o1, g, t, r = self.left.shape
        o2, c = (1, 1) if self.right is None else (self.right.shape[1], self.right.shape[4])
        return n, max(o1, o2), g, t, r, c

    @property
    def left_has_outputs(self) -> bool:
        """Whether it is the left slot that depends on the output."""
        return self.right is None or not (
            isinstance(self.left, OneHot) or (self.left.shape[1] == 1 and self.right.shape[1] > 1)
        )

    def rows(self, index: slice) -> Factor:
        """Return the factor of some of the samples."""
        return replace(self, left=slot_rows(self.left, index), right=slot_rows(self.right, index))

    def swapped(self) -> Factor:
        """Return the factor of the transposed matrices."""
        assert self.right is not None
        arrange = self.arrange
        return Factor(self.right, self.left, lambda w: arrange(w).transpose(1, 2))

    def scaled(self, scale: float) -> Factor:
        """Return the factor times a number."""
        if scale == 1:
            return self
        if isinstance(self.left, Tensor):
            return replace(self, left=scale * self.left)
        assert isinstance(self.right, Tensor)
        return replace(self, right=scale * self.right)

    def dense(self) -> Tensor:
        """Return the Jacobian ``[n, o, g, r, c]``."""
        n, o, g, t, r, c = self.sizes
        if self.right is None:
            assert isinstance(self.left, Tensor)
            return self.left.reshape(n, o, g, r, 1)
        if isinstance(self.right, OneHot):
            return self.swapped().dense().transpose(-1, -2)
        if isinstance(self.left, OneHot):
            right = self.right
            out = right.new_zeros(n, o, r, c)
            index = self.left.index[:, None, :, None].expand(n, o, t, c)
            return out.scatter_add_(2, index, right.reshape(n, o, t, c))[:, :, None]
        if not self.left_has_outputs:
            return self.swapped().dense().transpose(-1, -2)
        if self.right.shape[1] == 1:  # outputs in the left slot only: one product per sample and group
            left = self.left.permute(0, 2, 1, 4, 3).reshape(n * g, o * r, t)
            right = self.right.reshape(n * g, t, c)
            return torch.bmm(left, right).reshape(n, g, o, r, c).transpose(1, 2)
        return self.left.transpose(-1, -2) @ self.right


class WeightPart(NamedTuple):
    """The Jacobian of a set of elements of a weight, the sum of the factors of the uses that see it.

    ``elements`` is the place of each element of the factors in the flattened weight; None: all, in order.
    """

    elements: Tensor | None
    factors: list[Factor]

    @classmethod
    def vector(cls, jacobian: Tensor) -> WeightPart:
        """Return the Jacobian ``[n, o, *shape]`` of a whole weight, kept dense."""
        return cls(None, [Factor.vector(jacobian)])


def concatenate(factors: list[Factor]) -> Factor:
    """Return the sum of Jacobians of like uses: their positions one after the other."""
    if len(factors) == 1:
        return factors[0]
    first = factors[0]
    if first.right is None:
        return replace(first, left=sum(f.left for f in factors))  # pyright: ignore
    return replace(
        first,
        left=_concatenate([f.left for f in factors]),
        right=_concatenate([f.right for f in factors]),  # pyright: ignore
    )


def _concatenate(slots: list[Slot]) -> Slot:
    if isinstance(slots[0], OneHot):
        return OneHot(torch.cat([s.index for s in slots], 1), slots[0].size, slots[0].dtype)  # pyright: ignore
    return torch.cat(slots, dim=3)  # pyright: ignore


def slot_rows(slot: Slot | None, index: slice) -> Slot | None:
    """Return the slot of some of the samples."""
    if isinstance(slot, OneHot):
        return OneHot(slot.index[index], slot.size, slot.dtype)
    return None if slot is None else slot[index]


def form(parts: list[WeightPart], out: Tensor) -> None:
    """Write the Jacobian of one weight, from its factors, into ``out [n, q, size]``."""
    single = len(parts) == 1 and parts[0].elements is None and len(parts[0].factors) == 1
    if single and _formed_in_place(parts[0].factors[0], out):
        return
    out.zero_()
    for part in parts:
        for factor in part.factors:
            dense = factor.dense().reshape(*out.shape[:2], -1)
            if part.elements is None:
                out += dense
            else:
                out.index_add_(2, part.elements.to(out.device), dense)


def _formed_in_place(factor: Factor, out: Tensor) -> bool:
    """Write outer products by one batched product, the largest computation of a sweep."""
    n, o, groups, _, rows, columns = factor.sizes
    left, right = factor.left, factor.right
    if groups != 1 or not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return False
    left, right = (slot[:, :, 0].expand(n, o, *slot.shape[3:]).flatten(0, 1) for slot in (left, right))
    try:
        out = out.unflatten(2, (rows, columns)).view(n * o, rows, columns)
    except RuntimeError:  # some of the outputs only
        return False
    if rows * columns > _TINY or left.shape[1] > 8:
        torch.bmm(left.transpose(1, 2), right, out=out)
        return True
    for t in range(left.shape[1]):  # several times faster than many products of tiny matrices
        column, row = left[:, t, :, None], right[:, t, None, :]
        torch.mul(column, row, out=out) if t == 0 else out.addcmul_(column, row)
    return True


def weighted_sum(factor: Factor, shares: Tensor, owner: Tensor, place: Tensor, count: int) -> Factor:
    """Return sum_i shares_i J_i over the rows of each owner, as one factor of ``count`` samples.

    Row i is number ``place[i]`` of those of sample ``owner[i]``; they become positions of its outer product.
    """
    if factor.right is None:
        assert isinstance(factor.left, Tensor)
        left = factor.left * _column(shares, factor.left)
        return replace(factor, left=left.new_zeros(count, *left.shape[1:]).index_add_(0, owner, left))
    most = int(place.max()) + 1
    rows = owner * most + place

    def spread(slot: Tensor | OneHot, shares: Tensor | None) -> Tensor | OneHot:
        if isinstance(slot, OneHot):
            index = slot.index.new_zeros(count * most, slot.index.shape[1]).index_copy_(0, rows, slot.index)
            return replace(slot, index=index.reshape(count, -1))
        slot = slot.expand(len(rows), *slot.shape[1:])
        slot = slot if shares is None else slot * _column(shares, slot)
        wide = slot.new_zeros(count * most, *slot.shape[1:]).index_copy_(0, rows, slot)
        o, g, t, r = slot.shape[1:]
        wide = wide.reshape(count, most, o, g, t, r).permute(0, 2, 3, 1, 4, 5)
        return wide.reshape(count, o, g, most * t, r)

    if isinstance(factor.left, Tensor):
        return replace(factor, left=spread(factor.left, shares), right=spread(factor.right, None))
    return replace(factor, left=spread(factor.left, None), right=spread(factor.right, shares))


def _column(shares: Tensor, like: Tensor) -> Tensor:
    return shares.reshape(-1, *[1] * (like.ndim - 1))
