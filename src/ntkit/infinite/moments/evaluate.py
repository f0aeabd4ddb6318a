"""A function of vectors at draws of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ntkit.infinite.variables import vectors as vec
from ntkit.infinite.variables.algebra import refuse
from ntkit.infinite.variables.expression import Expression, walk
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.positions import expand, matvec
from ntkit.infinite.variables.protocols import SideValues

Lift = Callable[[Tensor], Tensor]  # a value [n, *shape] of a side, to broadcast with its draws


def evaluate(u: Expression, drawn: dict[Expression, Tensor], lift: Lift, side: SideValues) -> Tensor:
    """Return a function of vectors at draws ``[..., *shape]`` of those vectors."""
    done = dict(drawn)

    def known(a: Expression | vec.Coefficient) -> Tensor:
        return done[a] if isinstance(a, Expression) else lift(a.value(side))

    for e in walk(u, below=lambda e: e not in drawn):
        if e in done:
            continue
        match e:
            case vec.VectorSum():
                done[e] = sum((done[t] for t in e.terms[1:]), done[e.terms[0]])
            case vec.Multiple():
                factor = e.number(side)
                done[e] = _times(done[e.inner], lift(factor) if isinstance(factor, Tensor) else factor)
            case vec.Gain():
                done[e] = done[e.vector] * done[e.inner]
            case vec.Moved():
                done[e] = e.move.apply(done[e.inner])
            case vec.Mixed():
                done[e] = matvec(lift(e.weights.value(side)), done[e.inner])
            case vec.Stopped():
                done[e] = done[e.inner].detach()
            case vec.Attended():
                z = done[e.scores.inner] * e.scores.number
                z = z if e.scores.trained else z.detach()
                for mask in e.scores.masks:
                    z = z * lift(mask.value(side))
                for offset in e.scores.offsets:
                    z = z + lift(offset.value(side))
                for table in e.scores.tables:
                    added = done[table.vector] * table.number
                    z = z + (added if table.trained and e.scores.trained else added.detach())
                done[e] = matvec(softmax(expand(z, e.scores.shape)), done[e.values])
            case vec.Raw():
                raise refuse("Numbers that differ from head to head are read in a softmax of scores only.")
            case vec.Offset():
                done[e] = lift(e.coefficient.value(side))
            case Apply():
                done[e] = e.function.call(*map(known, e.arguments))
            case _:
                raise AssertionError(e)
    return done[u]


def _times(values: Tensor, factor: Tensor | float) -> Tensor:
    """Return a product, zero where the factor is: a mask hides infinities too."""
    if isinstance(factor, Tensor) and values.isinf().any():
        return torch.where(factor == 0, 0.0, values * factor)
    return values * factor


def softmax(z: Tensor) -> Tensor:
    """Return a softmax along the last axis, zeros where a row sees nothing, as torch's own attention does."""
    blind = (z == -torch.inf).all(-1, keepdim=True)
    if not blind.any():
        return torch.softmax(z, -1)
    return torch.softmax(z.masked_fill(blind, 0.0), -1).masked_fill(blind, 0.0)
