"""Concatenation and padding: of positions, or of vectors of several widths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ntkit.infinite.layers.elementwise import Aligned, combine, total
from ntkit.infinite.layers.selections import selected
from ntkit.infinite.layers.views import single, unsqueeze
from ntkit.infinite.moments.vectors import Expression, Move, Moved, Sum
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Known, Weight, Wide, numbers

aten = torch.ops.aten


def place(t: Tensor, axis: int, rank: int, before: int, after: int) -> Tensor:
    """Add zeros before and after along one of the last ``rank`` axes."""
    return torch.nn.functional.pad(t, [0, 0] * (rank - axis - 1) + [before, after])


def padded(read: Reading, a: Wide, dim: int, low: int, high: int) -> Wide:
    """Add zeros (or, if negative, drop positions) before and after the positions of a dimension."""
    if any(x < 0 for x in a.dims[dim]):
        raise read.refuse("it pads channels.")
    a, axis = single(a, dim)
    shape = (*a.shape[:axis], a.shape[axis] + low + high, *a.shape[axis + 1 :])
    move = Move((place, axis, len(a.shape), low, high), a.shape, shape, True, True)
    return Wide(
        tuple((w, Moved(shape, move, e.expanded(a.shape))) for w, e in a.pieces), shape, a.channels, a.dims
    )


@rule(aten.cat.default)
def cat(read: Reading, values: Sequence[Any], dim: int = 0) -> Any:
    """Concatenate positions, or vectors of several widths along the channels."""
    values = [v for v in values if not (isinstance(v, Tensor) and v.numel() == 0)]
    first = next(v for v in values if isinstance(v, Wide))
    dim %= len(first.dims)
    text = ", ".join(map(read.name, values))
    if any(x < 0 for x in first.dims[dim]):
        return read.write("Concat", f"channels of {text}", _channels(read, values, dim))
    template = _hollow(first, dim)
    wides = [
        v if isinstance(v, Wide) else combine(read, [v, template], lambda x, _: total(x)) for v in values
    ]
    sizes = [w.sizes[dim] for w in wides]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [
        padded(read, w, dim, start, sum(sizes) - start - size)
        for w, start, size in zip(wides, starts, sizes, strict=True)
    ]
    return read.write("Concat", f"positions of {text}", combine(read, parts, total))


def _size(v: Any, dim: int) -> int:
    if isinstance(v, Wide):
        return v.sizes[dim]
    return (v.tensor if isinstance(v, Weight) else v.example if isinstance(v, Known) else v).shape[dim]


def _hollow(v: Wide, dim: int) -> Wide:
    """Return a zero of the shape of a vector, with one entry along a dimension."""
    v, at = single(v, dim)
    keep = v.shape[:at] + v.shape[at + 1 :]
    dims = [tuple(x - (x > at) if x >= 0 else x for x in d) for d in v.dims]
    dims[dim] = ()
    return Wide(tuple((w, Sum(keep, ())) for w, _ in v.pieces), keep, v.channels, tuple(dims))


def _channels(read: Reading, values: Sequence[Any], dim: int) -> Wide:
    """Concatenate along the channels: data and vectors, each with its width."""
    wides = [v.canonical() for v in values if isinstance(v, Wide)]
    if any(len(v.channels) != 1 or v.dims[dim] != (-1,) for v in wides):
        raise read.refuse("it concatenates vectors whose channels were flattened or split.")
    pieces: list[tuple[int, Expression]] = []
    frame = None
    for value in values:
        width = _size(value, dim)
        others = [Wide(((width, Sum(w.shape, ())),), w.shape, (width,), w.dims) for w in wides]
        aligned = Aligned(read, [value, *others])
        frame = aligned
        if not isinstance(value, Wide):
            raw = aligned._raw(numbers(value), len(aligned.frame))[0]  # pyright: ignore
            pieces.append((width, raw))
            continue
        mine = [e for e in aligned.terms[0]]
        starts = [0, *aligned.bounds]
        pieces += [(b - a, e) for a, b, e in zip(starts, aligned.bounds, mine, strict=False)]
    assert frame is not None
    return Wide(tuple(pieces), frame.shape, (sum(w for w, _ in pieces),), frame.dims)


@rule(aten.stack.default)
def stack(read: Reading, values: Sequence[Any], dim: int = 0) -> Any:
    """Put vectors side by side in a new axis of positions."""
    rank = max(len(v.dims) for v in values if isinstance(v, Wide)) + 1
    dim %= rank
    return cat(
        read,
        [unsqueeze(read, v, dim) if isinstance(v, Wide | Weight) else v.unsqueeze(dim) for v in values],
        dim,
    )


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(read: Reading, a: Wide, widths: Sequence[int], mode: str = "constant", value: Any = None) -> Wide:
    """Pad positions with zeros, around, by reflection or by the border."""
    if value:
        raise read.refuse("it pads with other numbers than zero.")
    for i in range(len(widths) // 2):
        dim, (low, high) = len(a.dims) - 1 - i, widths[2 * i : 2 * i + 2]
        if not low and not high:
            continue
        if mode == "constant":
            a = padded(read, a, dim, low, high)
            continue
        a, _ = single(a, dim)
        n = a.sizes[dim]
        index = torch.arange(-low, n + high)
        turned = {
            "circular": index % n,
            "replicate": index.clamp(0, n - 1),
            "reflect": n - 1 - (n - 1 - index.abs()).abs(),
        }
        a = selected(read, a, dim, turned[mode], False)
    return a
