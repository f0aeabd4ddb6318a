"""Vectors made of others by a change deep inside: no gradient passes, or only some coordinates do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ntkit.infinite.variables import vectors as vec
from ntkit.infinite.variables.expression import Expression, walk
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.positions import Move


class Inseparable(ValueError):
    """Coordinates of a vector that are no vector."""


def _rebuilt(u: Expression, change: Callable[[Expression], Expression]) -> Expression:
    """Return a sum, a linear function or a function of vectors with its parts changed."""
    match u:
        case vec.VectorSum():
            return vec.VectorSum(u.shape, tuple(map(change, u.terms)))
        case vec.Gain():
            return replace(u, vector=change(u.vector), inner=change(u.inner))
        case vec.Linear():
            return replace(u, inner=change(u.inner))
        case vec.Attended():
            return replace(u, values=change(u.values))
        case Apply():
            changed = (change(a) if isinstance(a, Expression) else a for a in u.arguments)
            return replace(u, arguments=tuple(changed))
    raise AssertionError(u)


def stopped(u: Expression) -> Expression:
    """Return a vector through which no gradient goes."""
    known: Callable[[Expression], Expression] = lambda e: e.__dict__["stopped"]  # noqa: E731
    for e in walk(u, below=lambda e: "stopped" not in e.__dict__ and not isinstance(e, vec.Stopped)):
        if "stopped" not in e.__dict__:  # the same vector, stopped, is the same
            e.__dict__["stopped"] = _stopped(e, known)
    return known(u)


def _stopped(u: Expression, known: Callable[[Expression], Expression]) -> Expression:
    match u:
        case vec.Raw() | vec.Offset() | vec.Stopped():
            return u
        case vec.Gain():
            return vec.Multiple(u.shape, u.vector.average, known(u.inner))
        case vec.Attended():
            return replace(u, values=known(u.values), scores=replace(u.scores, trained=False))
        case vec.VectorSum() | vec.Linear() | Apply():
            return _rebuilt(u, known)
    return vec.Stopped(u.shape, u)


def narrow(u: Expression, index: Tensor, width: int | None = None) -> Expression:
    """Return some coordinates of a vector: other rows of the weights that made it.

    With the width of the vector it remembers which part of which vector it is.
    """
    key = tuple(index.tolist())
    done: Callable[[Expression], dict] = lambda e: e.__dict__.setdefault("narrowed", {})  # noqa: E731
    for e in walk(u, below=lambda e: key not in done(e)):
        if key not in done(e):  # the same coordinates are the same vector
            part = _narrow(e, index, lambda part: done(part)[key])
            done(e)[key] = part
            if width is not None and part is not e:
                part.__dict__.setdefault("part", (e, index, width))
    return done(u)[key]


def _narrow(u: Expression, index: Tensor, known: Callable[[Expression], Expression]) -> Expression:
    match u:
        case vec.Line() | vec.Vector():
            return replace(u, rows=u.rows[index])
        case vec.Raw():
            return replace(u, data=vec.Coefficient(u.data.shape, lambda side: u.data.value(side)[..., index]))
        case vec.Offset():
            return u
        case vec.Inner():
            raise Inseparable("some of the heads of an attention")
        case vec.Turned():
            return _some_rows(u, index)
    return _rebuilt(u, known)


def _some_rows(u: vec.Turned, index: Tensor) -> Expression:
    """Return the same coordinates of some heads."""
    out, size = u.matrices.shape[-2:]
    heads, rows = index // out, index % out
    count = int((rows == rows[0]).sum())
    heads, rows = heads.reshape(count, -1), rows.reshape(count, -1)
    if not (bool((heads == heads[:, :1]).all()) and bool((rows == rows[:1]).all())):
        raise Inseparable("other coordinates of one head than of others")
    whole = heads[:, :1] * size + torch.arange(size)
    return replace(u, matrices=u.matrices[..., rows[0], :], inner=narrow(u.inner, whole.reshape(-1)))


def gathered(u: Expression, move: Move) -> Expression | None:
    """Return positions of a vector, the move done before its functions; None where they mix positions."""
    done: Callable[[Expression], dict] = lambda e: e.__dict__.setdefault("gathered", {})  # noqa: E731
    for e in walk(u, below=lambda e: move not in done(e) and not _moves(e) and _local(e)):
        if move not in done(e):  # the same positions are the same vector
            done(e)[move] = _gathered(e, move, lambda part: done(part)[move])
    return done(u)[move]


def _moves(u: Expression) -> bool:
    """Return whether a vector is moved itself, not what it is made of."""
    return _alike(u) or isinstance(u, vec.Offset) or (u.gaussian and not u.gains)


def _alike(u: Expression) -> bool:
    return isinstance(u, vec.Vector) and all(s == 1 for s in u.shape)


def _local(u: Expression) -> bool:
    if isinstance(u, Apply):
        return u.function.local
    return isinstance(u, vec.VectorSum | vec.Multiple | vec.Gain)


def _gathered(
    u: Expression, move: Move, known: Callable[[Expression], Expression | None]
) -> Expression | None:
    if isinstance(u, vec.Offset):
        coefficient = _numbers_at(u.coefficient, move)
        return vec.Offset(coefficient.shape, coefficient)
    if _alike(u):
        return replace(u, shape=(1,) * len(move.after))
    if _moves(u):
        return vec.Moved(move.after, move, vec.expanded(u, move.before))
    if not _local(u) or any(known(part) is None for part in u.parts):
        return None
    moved = _rebuilt(u, known)  # pyright: ignore[reportArgumentType]
    if isinstance(moved, vec.Multiple) and isinstance(moved.factor, vec.Coefficient):
        moved = replace(moved, factor=_numbers_at(moved.factor, move))
    if isinstance(moved, Apply):
        numbers = (a if isinstance(a, Expression) else _numbers_at(a, move) for a in moved.arguments)
        moved = replace(moved, arguments=tuple(numbers))
    return replace(moved, shape=move.after)


def _numbers_at(c: vec.Coefficient, move: Move) -> vec.Coefficient:
    if all(s == 1 for s in c.shape):
        shape = (1,) * len(move.after)
        return vec.Coefficient(shape, lambda side: c.value(side).reshape(-1, *shape))
    return vec.Coefficient(move.after, lambda side: move.apply(c.value(side)))
