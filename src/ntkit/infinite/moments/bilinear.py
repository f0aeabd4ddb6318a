"""Kernels of sums, multiples and moved vectors: linear in each of the two."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ntkit.infinite.variables.algebra import Need, Value, add, at_equal, mapped, times
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import terms_that_meet
from ntkit.infinite.variables.positions import expand
from ntkit.infinite.variables.protocols import PairValues
from ntkit.infinite.variables.vectors import Mixed, Moved, Multiple, VectorSum

COMPOUND = (VectorSum, Multiple, Moved, Mixed)

KernelOf = Callable[[Expression, Expression, Need], Value]


def bilinear(pairs: PairValues, of: KernelOf, u: Expression, v: Expression, need: Need) -> Value:
    """Return a kernel of two vectors from that of the parts of one, which is of a compound kind."""
    if need == "equal" and (isinstance(u, Moved | Mixed) or isinstance(v, Moved | Mixed)):
        if isinstance(u, Moved) and isinstance(v, Moved) and u.move == v.move and u.move.selects:
            return mapped(of(u.inner, v.inner, "equal"), u.move.apply)
        return at_equal(of(u, v, "all"), u.shape, v.shape)
    match u, v:
        case Moved(), _:
            return mapped(of(u.inner, v, "all"), lambda t: _moved_left(u, t, len(v.shape)))
        case _, Moved():
            return mapped(of(u, v.inner, "all"), v.move.apply)
        case Mixed(), _:
            return mapped(of(u.inner, v, "all"), lambda t: _mixed_left(pairs, u, t, v))
        case _, Mixed():
            return mapped(of(u, v.inner, "all"), lambda t: _mixed_right(pairs, v, t))
        case Multiple(), _:
            factor = u.number(pairs.left)
            if isinstance(factor, Tensor):
                factor = pairs.lift(factor, "left", need, len(v.shape))
            return times(of(u.inner, v, need), factor)
        case _, Multiple():
            factor = v.number(pairs.right)
            if isinstance(factor, Tensor):
                factor = pairs.lift(factor, "right", need, len(u.shape))
            return times(of(u, v.inner, need), factor)
        case VectorSum(), VectorSum() if len(u.names) == len(v.names):  # sums of sums: level by level
            return add(of(a, b, need) for a, b in terms_that_meet(u, v))
        case VectorSum(), _ if not isinstance(v, VectorSum) or len(u.names) > len(v.names):
            return add(of(term, v, need) for term in u.terms)
        case _, VectorSum():
            return add(of(u, term, need) for term in v.terms)
    raise AssertionError((u, v))


def _moved_left(u: Moved, t: Tensor, right: int) -> Tensor:
    """Move the positions of the left one of a pair, in front of ``right`` axes of the other."""
    left = len(u.inner.shape)
    batch = t.ndim - left - right
    lead = range(batch)
    first, second = range(batch, batch + left), range(batch + left, t.ndim)
    moved = u.move.apply(t.permute(*lead, *second, *first))
    after = range(batch + right, moved.ndim)
    return moved.permute(*lead, *after, *range(batch, batch + right))


def _mixed_left(pairs: PairValues, u: Mixed, t: Tensor, v: Expression) -> Tensor:
    """Sum positions of the left one of a pair with the weights of its sample."""
    batch, right = len(pairs.batch), len(v.shape)
    t = expand(t, (*u.inner.shape, *t.shape[t.ndim - right :]))
    weights = pairs.lift(u.weights.value(pairs.left), "left", "all", right - 1)
    weights = weights.reshape(*weights.shape[:batch], *u.weights.shape)
    mixed = weights @ t.flatten(batch + 1)
    return mixed.reshape(*mixed.shape[:-1], *t.shape[batch + 1 :])


def _mixed_right(pairs: PairValues, v: Mixed, t: Tensor) -> Tensor:
    """Sum positions of the right one of a pair with the weights of its sample."""
    batch = len(pairs.batch)
    t = expand(t, v.inner.shape)
    weights = pairs.lift(v.weights.value(pairs.right), "right", "all", 0)
    mixed = t.flatten(batch, -2) @ weights.mT
    return mixed.reshape(*mixed.shape[:batch], *t.shape[batch:-1], mixed.shape[-1])
