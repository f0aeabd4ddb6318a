"""Vectors made of others by a change deep inside: no gradient passes, or only some coordinates do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from ntkit.infinite.moments import vectors as vec
from ntkit.infinite.moments.expression import Expression
from ntkit.infinite.moments.functions import Apply


def _rebuilt(u: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """Return a sum, a linear function or a function of vectors with its parts changed."""
    match u:
        case vec.VectorSum():
            return replace(u, terms=tuple(map(change, u.terms)))
        case vec.Gain():
            return replace(u, vector=change(u.vector), inner=change(u.inner))
        case vec.Linear():
            return replace(u, inner=change(u.inner))
        case Apply():
            changed = (change(a) if isinstance(a, Expression) else a for a in u.arguments)
            return replace(u, arguments=tuple(changed))
    raise AssertionError(u)


def stopped(u: Expression) -> Expression:
    """Return a vector through which no gradient goes."""
    memo = u.__dict__.setdefault("stopped", [])  # the same vector, stopped, is the same
    if not memo:
        memo.append(_stopped(u))
    return memo[0]


def _stopped(u: Expression) -> Expression:
    match u:
        case vec.Raw() | vec.Offset() | vec.Stopped():
            return u
        case vec.Gain():
            return vec.Multiple(u.shape, u.vector.average, stopped(u.inner))
        case vec.VectorSum() | vec.Linear() | Apply():
            return _rebuilt(u, stopped)
    return vec.Stopped(u.shape, u)


def narrow(u: Expression, index: Tensor) -> Expression:
    """Return some coordinates of a vector: other rows of the weights that made it."""
    memo = u.__dict__.setdefault("narrowed", {})  # the same coordinates are the same vector
    key = tuple(index.tolist())
    if key not in memo:
        memo[key] = _narrow(u, index)
    return memo[key]


def _narrow(u: Expression, index: Tensor) -> Expression:
    match u:
        case vec.Line() | vec.Vector():
            return replace(u, rows=u.rows[index])
        case vec.Raw():
            return replace(u, data=vec.Coefficient(u.data.shape, lambda side: u.data.value(side)[..., index]))
        case vec.Offset():
            return u
        case vec.Inner():
            raise ValueError("some of the heads of an attention")
    return _rebuilt(u, lambda part: narrow(part, index))
