"""Pooling and means over positions; maxima over positions, by sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import find
from ntkit.infinite.layers import reductions
from ntkit.infinite.layers.views import pixels, refactored
from ntkit.infinite.reading.rules import Entry, Reading, known, rule
from ntkit.infinite.reading.values import Known, Wide
from ntkit.infinite.variables.algebra import Value
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply, Function
from ntkit.infinite.variables.positions import Move, Shape, Windows, at_windows, expand
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.rewrites import gathered
from ntkit.infinite.variables.vectors import Coefficient, expanded

aten = torch.ops.aten
Dims = int | Sequence[int] | None
SEEN = 512  # places that are looked at together
Outcome = Wide | tuple[Wide, None]  # with the places of the maxima, which are not a value of the network


def pooled(t: Tensor, rank: int, op: Callable[..., Tensor], *args: object) -> Tensor:
    """Apply an operation on pictures ``[n, 1, *pixels]`` to the last ``rank`` axes of a tensor."""
    lead = t.shape[: t.ndim - rank]
    out = op(t.reshape(-1, 1, *t.shape[t.ndim - rank :]), *args)
    return out.reshape(*lead, *out.shape[2:])


def reduced(t: Tensor, rank: int, axes: tuple[int, ...], how: str) -> Tensor:
    """Sum or average over some of the last ``rank`` axes, which stay with size 1."""
    dims = [t.ndim - rank + a for a in axes]
    return getattr(t, how)(dims, keepdim=True)


def _average(
    op: torch._ops.OpOverload, rank: int, read: Reading, a: Wide, after: Shape, args: Sequence[object]
) -> Outcome:
    keys = (tuple(x) if isinstance(x, list) else x for x in args)
    wide = a.moved(Move((pooled, rank, op, *keys), a.shape, after, False))
    return refactored(read, read.write("Pooling", f"{_named(op)}({read.name(a)})", wide), wide.sizes)


def _maximum(
    op: torch._ops.OpOverload, rank: int, read: Reading, a: Wide, after: Shape, args: Sequence[object]
) -> Outcome:
    name = _named(op).removesuffix("_with_indices")
    windows = _windows(op, rank, a.shape, *(tuple(x) if isinstance(x, list) else x for x in args))
    move = Move((at_windows, rank, windows), a.shape, tuple(windows.places.shape), True)

    def whole(t: Tensor) -> Tensor:
        return pooled(expand(t, a.shape), rank, lambda picture: _first(op(picture, *args)))

    def highest(t: Tensor) -> Tensor:
        return t.masked_fill(~windows.inside.to(t.device), -torch.inf).amax(-1)

    def maximum(e: Expression) -> Expression:
        rows = gathered(e, move)
        if rows is None:
            return replace(read.apply(Function(name, whole, None, False), expanded(e, a.shape)), shape=after)
        return replace(read.apply(Function(name, highest, None, False, True), rows), shape=after)

    wide = a.map(maximum, after)
    wide = read.write("Nonlin", f"{name}({read.name(a)})   [sampling]", wide)
    wide = refactored(read, wide, wide.sizes)
    return wide if len(op._schema.returns) == 1 else (wide, None)


@cache
def _windows(op: torch._ops.OpOverload, rank: int, before: Shape, *args: object) -> Windows:
    """Return which positions each maximum is taken over: those of which a one among zeros is seen there."""
    size = prod(before)
    seen = []
    for some in torch.arange(size).split(SEEN):
        ones = torch.nn.functional.one_hot(some, size).double().reshape(-1, 1, *before)
        seen.append(_first(op(ones, *args)).flatten(1) > 0)
    after = _first(op(torch.zeros(1, 1, *before), *args)).shape[2:]
    belongs = torch.cat(seen).T  # [places after, places before]
    most = int(belongs.sum(1).max())
    order = belongs.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :most]
    return Windows(torch.where(belongs.gather(1, order), order, -1).reshape(*after, most))


def _named(op: torch._ops.OpOverload) -> str:
    return str(op.overloadpacket).removeprefix("aten.")


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def _on_pixels(
    kind: Callable[..., Outcome], op: torch._ops.OpOverload, rank: int, read: Reading, a: Wide, *args: object
) -> Outcome:
    """Pool the last ``rank`` dimensions of a vector ``[1, channels, *pixels]``."""
    if any(x < 0 for dim in a.dims[-rank:] for x in dim):
        raise read.refuse("it pools over channels.")
    a = pixels(read, a, rank)
    after = tuple(_first(op(torch.zeros(1, 1, *a.shape), *args)).shape[2:])
    return kind(op, rank, read, a, after, args)


_POOLING = {
    _average: [
        (aten.avg_pool1d.default, aten.adaptive_avg_pool1d.default, aten.upsample_nearest1d.vec),
        (
            aten.avg_pool2d.default,
            aten.adaptive_avg_pool2d.default,
            aten.upsample_nearest2d.vec,
            aten.upsample_bilinear2d.vec,
        ),
        (aten.avg_pool3d.default, aten.adaptive_avg_pool3d.default),
    ],
    _maximum: [
        (aten.max_pool1d.default, aten.max_pool1d_with_indices.default, aten.adaptive_max_pool1d.default),
        (aten.max_pool2d.default, aten.max_pool2d_with_indices.default, aten.adaptive_max_pool2d.default),
        (aten.max_pool3d.default, aten.max_pool3d_with_indices.default, aten.adaptive_max_pool3d.default),
    ],
}
for _kind, _by_rank in _POOLING.items():
    for _rank, _ops in enumerate(_by_rank, 1):
        for _op in _ops:
            rule(_op)(partial(_on_pixels, _kind, _op, _rank))


@rule(aten.mean.dim)
def mean(read: Reading, a: Wide, dims: Dims = None, keepdim: bool = False, **_: object) -> Wide | Known:
    """Return the mean over positions; over channels it is a number, for norms written by hand."""
    return _reduction(read, a, dims, keepdim, "mean")


@rule(aten.sum.dim_IntList)
def sum_(read: Reading, a: Wide, dims: Dims = None, keepdim: bool = False, **_: object) -> Wide | Known:
    """Return the sum over positions."""
    return _reduction(read, a, dims, keepdim, "sum")


def averaged(read: Reading, a: Wide, chosen: Sequence[int], keepdim: bool) -> Known:
    """Return the mean over channels, and over the positions of some dimensions: numbers, without a gradient.

    E[h] by the law of large numbers; of h^2, the second moment of h.
    """
    a = a.canonical()
    parts = [(width / a.width, e) for width, e in a.pieces]
    axes = [x for d in chosen for x in a.dims[d] if x >= 0]
    alike = {d for d, dim in enumerate(a.dims) if any(x < 0 for x in dim)}.union(chosen)  # heads too
    sizes = tuple(1 if d in alike else s for d, s in enumerate(a.sizes) if keepdim or d not in chosen)

    def of(side: SideValues) -> Tensor:
        total = side.numerics.zeros(1, *(1 for _ in a.shape))
        for share, e in parts:
            value = _average_of(side, e)
            total = total if value is None else total + share * value
        total = total.expand(side.n, *a.shape)
        total = total.mean([1 + x for x in axes], keepdim=True) if axes else total
        return total.reshape(side.n, *sizes)

    read.lines.append(Entry("", "Mean", f"over {a.width} channels of {read.name(a)}: a number", read.path))
    return Known(torch.ones(sizes, dtype=read.dtype), Coefficient(sizes, of), moments=True)


def of_heads(a: Wide, axes: Sequence[int]) -> bool:
    """Return whether all axes of channels are among some, or those of each head: the last, behind others."""
    mine = [-x - 1 for x in axes if x < 0]
    size = prod(a.channels[j] for j in mine)
    whole = len(mine) == len(a.channels)
    return whole or (sorted(mine) == list(range(len(a.channels) - len(mine), len(a.channels))) and size > 1)


def _average_of(side: SideValues, e: Expression) -> Value:
    if isinstance(e, Apply) and e.function.dual is find(aten.pow.Tensor_Scalar, (2,), {}):
        (h,) = e.arguments
        assert isinstance(h, Expression)
        return side.itself.moment(h, h, "equal")
    return side.mean(e)


def _chosen(dims: Dims, rank: int) -> list[int]:
    """Return the dimensions that are meant, of all where none is given (or an empty list)."""
    some = [dims] if isinstance(dims, int) else list(dims or range(rank))
    return sorted({d % rank for d in some})


def _variance(read: Reading, a: Wide, dims: Dims, keepdim: bool) -> tuple[Known, Known]:
    """Return variance and mean over channels: numbers, E[h^2] - E[h]^2 and E[h]."""
    a = a.canonical()
    rank = len(a.dims)
    chosen = _chosen(dims, rank)
    if sum(x < 0 for d in chosen for x in a.dims[d]) != len(a.channels):
        raise read.refuse("a variance over some of the channels only: it is random.")
    first = averaged(read, a, chosen, keepdim)
    second = averaged(read, _squared(read, a), chosen, keepdim)
    return known(lambda x, y: x - y * y, (second, first), {}), first


def _positions_only(a: Wide, dims: Dims) -> bool:
    return all(x >= 0 for d in _chosen(dims, len(a.dims)) for x in a.dims[d])


def _squared(read: Reading, a: Wide) -> Wide:
    square = Function("square", torch.square, find(aten.pow.Tensor_Scalar, (2,), {}))
    return a.map(lambda e: read.apply(square, e))


def _moments(*ops: torch._ops.OpOverload, root: bool, both: bool) -> None:
    """Register a variance or its root, alone or with the mean; over positions, by sampling."""

    @rule(*ops)
    def moments(
        read: Reading, a: Wide, dims: Dims = None, correction: float = 1, keepdim: bool = False, **_: object
    ) -> Known | Wide | tuple[Known, Known] | tuple[Wide, Wide | Known]:
        if _positions_only(a, dims):
            spread = partial(torch.std if root else torch.var, dim=-1, correction=correction)
            wide = reductions.reduced(read, a, dims, keepdim, "std" if root else "var", spread)
            return (wide, mean(read, a, dims, keepdim)) if both else wide
        variance, average = _variance(read, a, dims, keepdim)
        spread = known(torch.sqrt, (variance,), {}) if root else variance
        return (spread, average) if both else spread


_moments(aten.var.correction, aten.var.dim, root=False, both=False)
_moments(aten.std.correction, aten.std.dim, root=True, both=False)
_moments(aten.var_mean.correction, aten.var_mean.dim, root=False, both=True)
_moments(aten.std_mean.correction, aten.std_mean.dim, root=True, both=True)


@rule(aten.linalg_vector_norm.default)
def vector_norm(
    read: Reading, a: Wide, order: float = 2, dims: Dims = None, keepdim: bool = False, **_: object
) -> Known:
    """Return the length over channels: a number, the root of their count times E[h^2]."""
    a = a.canonical()
    rank = len(a.dims)
    chosen = _chosen(dims, rank)
    if order != 2 or sum(x < 0 for d in chosen for x in a.dims[d]) != len(a.channels):
        raise read.refuse("a norm over positions, over some of the channels, or of another order than two.")
    count = prod(a.sizes[d] for d in chosen)
    square = averaged(read, _squared(read, a), chosen, keepdim)
    return known(lambda x: (count * x).sqrt(), (square,), {})


def _reduction(read: Reading, a: Wide, dims: Dims, keepdim: bool, how: str) -> Wide | Known:
    a = a.canonical()
    rank = len(a.dims)
    chosen = _chosen(dims, rank)
    axes = tuple(x for d in chosen for x in a.dims[d])
    if any(x < 0 for x in axes):
        if how == "mean" and of_heads(a, axes):
            return averaged(read, a, chosen, keepdim)
        raise read.refuse(
            f"a {how} over channels of infinite width has no limit as a vector, nor has a mean over some of "
            f"them only (norms are known: LayerNorm, RMSNorm, GroupNorm)."
        )
    wide = a
    if axes:
        after = tuple(1 if i in axes else s for i, s in enumerate(a.shape))
        wide = a.moved(Move((reduced, len(a.shape), axes, how), a.shape, after, False))
        names = f"{how} over {'x'.join(str(a.shape[i]) for i in axes)} positions of {read.name(a)}"
        wide = read.write("Pooling", names, wide)
    wide = refactored(read, wide, wide.sizes)
    if keepdim:
        return wide
    return replace(wide, dims=tuple(d for i, d in enumerate(wide.dims) if i not in chosen))
