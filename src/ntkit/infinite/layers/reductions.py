"""Functions of the positions of a dimension: maxima, products, spreads, by sampling; running sums exactly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ntkit.infinite.layers.views import single
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Wide
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Function
from ntkit.infinite.variables.positions import Move, Shape, expand
from ntkit.infinite.variables.rewrites import gathered
from ntkit.infinite.variables.vectors import expanded

aten = torch.ops.aten
Dims = int | Sequence[int] | None
OfRows = Callable[[Tensor], Tensor]  # a function of the last axis


def lined_up(t: Tensor, axes: tuple[int, ...], rank: int) -> Tensor:
    """Return a tensor with some of its last ``rank`` axes as one, the last."""
    lead = t.ndim - rank
    kept = [lead + x for x in range(rank) if x not in axes]
    t = t.permute(*range(lead), *kept, *(lead + x for x in axes))
    return t.flatten(t.ndim - len(axes))


def summed(t: Tensor, axis: int, rank: int) -> Tensor:
    """Return the sums up to each position of one of the last ``rank`` axes."""
    return t.cumsum(t.ndim - rank + axis)


def reduced(read: Reading, a: Wide, dims: Dims, keepdim: bool, name: str, of: OfRows) -> Wide:
    """Return a function of all positions of some dimensions (of all, where none is given)."""
    a = a.canonical()
    rank = len(a.dims)
    some = [dims] if isinstance(dims, int) else list(dims or range(rank))
    chosen = {d % rank for d in some}
    axes = tuple(x for d in sorted(chosen) for x in a.dims[d])
    if any(x < 0 for x in axes):
        raise read.refuse(
            f"a {name} over channels of infinite width has no limit; it is known over positions."
        )
    kept = [x for x in range(len(a.shape)) if x not in axes]
    shape = tuple(a.shape[x] for x in kept)
    left = [d for d in range(rank) if keepdim or d not in chosen]
    layout = tuple(tuple(kept.index(x) if x >= 0 else x for x in a.dims[d] if x not in axes) for d in left)
    value = a.map(lambda e: _of_rows(read, e, a.shape, axes, shape, name, of), shape)
    wide = Wide(value.pieces, shape, a.channels, layout)
    return read.write("Nonlin", f"{name}({read.name(a)}) over {_count(a, axes)} positions   [sampling]", wide)


def _of_rows(
    read: Reading, e: Expression, before: Shape, axes: tuple[int, ...], after: Shape, name: str, of: OfRows
) -> Expression:
    count = 1
    for x in axes:
        count *= before[x]
    move = Move((lined_up, axes, len(before)), before, (*after, count), True)
    rows = gathered(e, move)
    if rows is not None:
        function = Function(name, lambda t: of(expand(t, move.after)), None, False, True)
        value = read.apply(function, expanded(rows, move.after))
    else:
        function = Function(name, lambda t: of(move.apply(t)), None, False)
        value = read.apply(function, expanded(e, before))
    return type(value)(after, value.function, value.arguments)


def _count(a: Wide, axes: tuple[int, ...]) -> str:
    return "x".join(str(a.shape[x]) for x in axes) or "1"


def _highest(sign: float, t: Tensor) -> Tensor:
    return sign * (sign * t).amax(-1)


def _extreme(*ops: torch._ops.OpOverload, name: str, sign: float) -> None:
    @rule(*ops)
    def extreme(read: Reading, a: Wide, dims: Dims = None, keepdim: bool = False) -> Wide:
        return reduced(read, a, dims, keepdim, name, partial(_highest, sign))


_extreme(aten.amax.default, aten.max.default, name="max", sign=1.0)
_extreme(aten.amin.default, aten.min.default, name="min", sign=-1.0)


def _with_places(op: torch._ops.OpOverload, name: str, sign: float) -> None:
    @rule(op)
    def extreme(read: Reading, a: Wide, dim: int, keepdim: bool = False) -> tuple[Wide, None]:
        """Return the values; their places are not a value of the network."""
        return reduced(read, a, dim, keepdim, name, partial(_highest, sign)), None


_with_places(aten.max.dim, "max", 1.0)
_with_places(aten.min.dim, "min", -1.0)


@rule(aten.logsumexp.default)
def logsumexp(read: Reading, a: Wide, dims: Dims, keepdim: bool = False) -> Wide:
    """Return log sum exp over positions."""
    return reduced(read, a, dims, keepdim, "logsumexp", lambda t: t.logsumexp(-1))


@rule(aten.prod.dim_int, aten.prod.default)
def product(read: Reading, a: Wide, dim: Dims = None, keepdim: bool = False, **_: object) -> Wide:
    """Return the product over positions."""
    return reduced(read, a, dim, keepdim, "prod", lambda t: t.prod(-1))


@rule(aten.cumsum.default)
def cumsum(read: Reading, a: Wide, dim: int, **_: object) -> Wide:
    """Return the sums over the positions up to each."""
    a = a.canonical()
    dim %= len(a.dims)
    if not a.dims[dim]:
        return a
    if any(x < 0 for x in a.dims[dim]):
        raise read.refuse(
            "sums over channels of infinite width have no limit; they are known over positions."
        )
    a, axis = single(a, dim)
    move = Move((summed, axis, len(a.shape)), a.shape, a.shape, False)
    return read.write("LinComb", f"cumsum({read.name(a)})", a.moved(move))
