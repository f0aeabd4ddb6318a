"""Pooling and means over positions; maxima over positions, by sampling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ntkit.infinite.layers.views import refactored, single
from ntkit.infinite.moments.vectors import Expression, Function, Move, Moved, Shape
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Wide

aten = torch.ops.aten


def pooled(t: Tensor, rank: int, op: Callable[..., Tensor], *args: Any) -> Tensor:
    """Apply an operation on pictures ``[n, 1, *pixels]`` to the last ``rank`` axes of a tensor."""
    lead = t.shape[: t.ndim - rank]
    out = op(t.reshape(-1, 1, *t.shape[t.ndim - rank :]), *args)
    return out.reshape(*lead, *out.shape[2:])


def reduced(t: Tensor, rank: int, axes: tuple[int, ...], how: str) -> Tensor:
    """Sum or average over some of the last ``rank`` axes, which stay with size 1."""
    dims = [t.ndim - rank + a for a in axes]
    return getattr(t, how)(dims, keepdim=True)


def on_pixels(read: Reading, a: Wide, rank: int, move: Callable[[Shape], Move], text: str) -> Wide:
    """Apply a map of the last ``rank`` dimensions of a vector ``[1, channels, *pixels]``."""
    a, _ = _pixels(read, a, rank)
    m = move(a.shape)
    pieces = tuple((w, Moved(m.after, m, e.expanded(a.shape))) for w, e in a.pieces)
    wide = Wide(pieces, m.after, a.channels, a.dims)
    return refactored(read, read.write("Pooling", f"{text}({read.name(a)})", wide), wide.sizes)


def _pixels(read: Reading, a: Wide, rank: int) -> tuple[Wide, Shape]:
    a = a.canonical()
    for i in range(rank):
        dim = len(a.dims) - rank + i
        if any(x < 0 for x in a.dims[dim]):
            raise read.refuse("it pools over channels.")
        a, _ = single(a, dim)
    if len(a.shape) != rank:
        raise read.refuse("it has positions besides the pixels.")
    return a, a.shape


def _after(op: Callable[..., Tensor], shape: Shape, *args: Any) -> Shape:
    return tuple(op(torch.zeros(1, 1, *shape), *args).shape[2:])


def _rank(op: Any) -> int:
    name = op.__name__ if hasattr(op, "__name__") else str(op)
    return next(r for r in (1, 2, 3) if f"{r}d" in name)


def _register(op: Any, rank: int) -> None:
    @rule(op)
    def pool(read: Reading, a: Wide, *args: Any) -> Wide:
        name = str(op.overloadpacket).removeprefix("aten.")
        keys = tuple(tuple(x) if isinstance(x, list) else x for x in args)

        def move(shape: Shape) -> Move:
            after = _after(op, shape, *args)
            return Move((pooled, rank, op, *keys), shape, after, False, False)

        return on_pixels(read, a, rank, move, name)


for _op, _r in (
    (aten.avg_pool1d.default, 1),
    (aten.avg_pool2d.default, 2),
    (aten.avg_pool3d.default, 3),
    (aten.adaptive_avg_pool1d.default, 1),
    (aten.adaptive_avg_pool2d.default, 2),
    (aten.adaptive_avg_pool3d.default, 3),
    (aten.upsample_nearest1d.vec, 1),
    (aten.upsample_nearest2d.vec, 2),
    (aten.upsample_bilinear2d.vec, 2),
):
    _register(_op, _r)


def _maximum(op: Any, rank: int) -> None:
    pair = len(op._schema.returns) == 2

    @rule(op)
    def pool(read: Reading, a: Wide, *args: Any) -> Any:
        name = str(op.overloadpacket).removeprefix("aten.").removesuffix("_with_indices")
        a, shape = _pixels(read, a, rank)

        def first(t: Tensor, *args: Any) -> Tensor:
            out = op(t, *args)
            return out[0] if pair else out

        after = _after(first, shape, *args)
        f = Function(
            name,
            lambda t: pooled(t.expand(*t.shape[: t.ndim - rank], *shape), rank, first, *args),
            None,
            False,
        )
        pieces = tuple((w, _applied(read, f, e.expanded(shape), after)) for w, e in a.pieces)
        wide = Wide(pieces, after, a.channels, a.dims)
        wide = read.write("Nonlin", f"{name}({read.name(a)})   [sampling]", wide)
        wide = refactored(read, wide, wide.sizes)
        return (wide, None) if pair else wide  # the places of the maxima are no value of the network


def _applied(read: Reading, f: Function, e: Expression, after: Shape) -> Expression:
    from dataclasses import replace

    return replace(read.apply(f, e), shape=after)


for _op, _r in (
    (aten.max_pool1d.default, 1),
    (aten.max_pool2d.default, 2),
    (aten.max_pool3d.default, 3),
    (aten.adaptive_max_pool1d.default, 1),
    (aten.adaptive_max_pool2d.default, 2),
):
    _maximum(_op, _r)


@rule(aten.mean.dim)
def mean(read: Reading, a: Wide, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """Return the mean over positions; over channels it is a number, for norms written by hand."""
    return _reduction(read, a, dims, keepdim, "mean")


@rule(aten.sum.dim_IntList)
def sum_(read: Reading, a: Wide, dims: Any = None, keepdim: bool = False, **_: Any) -> Any:
    """Return the sum over positions."""
    return _reduction(read, a, dims, keepdim, "sum")


def _reduction(read: Reading, a: Wide, dims: Any, keepdim: bool, how: str) -> Any:
    a = a.canonical()
    rank = len(a.dims)
    chosen = sorted(
        {d % rank for d in (range(rank) if dims is None else [dims] if isinstance(dims, int) else dims)}
    )
    axes = tuple(x for d in chosen for x in a.dims[d])
    if any(x < 0 for x in axes):
        raise read.refuse(
            f"a {how} over channels of infinite width has no limit as a vector (norms are known: LayerNorm, "
            f"RMSNorm, GroupNorm)."
        )
    wide = a
    if axes:
        after = tuple(1 if i in axes else s for i, s in enumerate(a.shape))
        move = Move((reduced, len(a.shape), axes, how), a.shape, after, False, False)
        pieces = tuple((w, Moved(after, move, e.expanded(a.shape))) for w, e in a.pieces)
        wide = Wide(pieces, after, a.channels, a.dims)
        names = f"{how} over {'x'.join(str(a.shape[i]) for i in axes)} positions of {read.name(a)}"
        wide = read.write("Pooling", names, wide)
    wide = refactored(read, wide, wide.sizes)
    if keepdim:
        return wide
    return Wide(
        wide.pieces, wide.shape, wide.channels, tuple(d for i, d in enumerate(wide.dims) if i not in chosen)
    )
