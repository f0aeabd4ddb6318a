"""Concatenation and padding: of positions, or of vectors of several widths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ntkit.infinite.layers import rotary
from ntkit.infinite.layers.arithmetic import total
from ntkit.infinite.layers.selections import selected
from ntkit.infinite.layers.views import single, unsqueeze
from ntkit.infinite.reading.alignment import Aligned, Concatenated, Term, combine
from ntkit.infinite.reading.rules import Reading, known, rows_of, rule
from ntkit.infinite.reading.values import Operand, Weight, Wide, numbers, sizes_of
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.positions import Move
from ntkit.infinite.variables.vectors import Coefficient, Offset, Vector, VectorSum

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
    return a.moved(Move((place, axis, len(a.shape), low, high), a.shape, shape, True))


@rule(aten.cat.default)
def cat(read: Reading, values: Sequence[Operand], dim: int = 0) -> Wide:
    """Concatenate positions, or vectors of several widths along the channels."""
    values = [v for v in values if not (isinstance(v, Tensor) and v.numel() == 0)]
    if not any(isinstance(v, Wide) for v in values):
        return _parameters(read, values)
    first = next(v for v in values if isinstance(v, Wide))
    dim %= len(first.dims)
    text = ", ".join(map(read.name, values))
    if any(x < 0 for x in first.dims[dim]) and len(first.channels) > 1:
        whole = rotary.rejoined(read, [v for v in values if isinstance(v, Wide)], dim, False)
        if whole is not None and all(isinstance(v, Wide) for v in values):
            return read.write("Concat", f"parts of the channels of heads: {text}", whole)
    if any(x < 0 for x in first.dims[dim]):
        return read.write("Concat", f"channels of {text}", _channels(read, values, dim))
    template = _hollow(first, dim)
    wides, start, parts = [], 0, []
    for v in values:
        wides.append(v if isinstance(v, Wide) else combine(read, [v, template], _alone))
    whole = sum(w.sizes[dim] for w in wides)
    for w in wides:
        parts.append(padded(read, w, dim, start, whole - start - w.sizes[dim]))
        start += w.sizes[dim]
    return read.write("Concat", f"positions of {text}", combine(read, parts, total))


def _parameters(read: Reading, values: Sequence[Operand]) -> Wide:
    """Return parameters side by side, zeros between them: the biases of queries, keys and values."""
    pieces: Concatenated = ()
    for v in values:
        if isinstance(v, Weight) and v.tensor.ndim == 1:
            read.use(v.name, "coordinate by coordinate")
            average, law = read.laws.vector(v)
            pieces += ((len(v.tensor), Vector((), v.name, rows_of(v.tensor), average, law)),)
        elif isinstance(v, Tensor) and v.ndim == 1 and not v.any():
            pieces += ((len(v), VectorSum((), ())),)
        else:
            raise read.refuse("it concatenates weights that are no vectors, or numbers, with weights.")
    wide = Wide(pieces, (), (sum(width for width, _ in pieces),), ((-1,),))
    return read.write("Parameter", ", ".join(map(read.name, values)), wide)


def _alone(x: Term, like: Term) -> Expression:
    """Return a parameter, or numbers, as a vector with axes like those of another."""
    if not isinstance(x, float | int):
        return total(x)
    assert isinstance(like, Expression)
    ones = (1,) * len(like.shape)
    return Offset(ones, Coefficient(ones, lambda side: side.numerics.zeros(1, *ones) + x))


def _hollow(v: Wide, dim: int) -> Wide:
    """Return a zero of the shape of a vector, with one entry along a dimension."""
    v, at = single(v, dim)
    keep = v.shape[:at] + v.shape[at + 1 :]
    dims = [tuple(x - (x > at) if x >= 0 else x for x in d) for d in v.dims]
    dims[dim] = ()
    return Wide(tuple((w, VectorSum(keep, ())) for w, _ in v.pieces), keep, v.channels, tuple(dims))


def _channels(read: Reading, values: Sequence[Operand], dim: int) -> Wide:
    """Concatenate along the channels: data and vectors, each with its width."""
    wides = [v.canonical() for v in values if isinstance(v, Wide)]
    if any(len(v.channels) != 1 or v.dims[dim] != (-1,) for v in wides):
        raise read.refuse("it concatenates vectors whose channels were flattened or split.")
    pieces: Concatenated = ()
    aligned = None
    for value in values:
        width = sizes_of(value)[dim]
        others = [Wide(((width, VectorSum(w.shape, ())),), w.shape, (width,), w.dims) for w in wides]
        aligned = Aligned(read, [value, *others])
        known = numbers(value)
        if known is not None:
            pieces += ((width, aligned.raw(known)),)
        elif isinstance(value, Wide):
            pieces += aligned.pieces([e for e in aligned.terms[0] if isinstance(e, Expression)])
        else:
            raise read.refuse("it concatenates a parameter with vectors along the channels.")
    assert aligned is not None
    return Wide(pieces, aligned.shape, (sum(w for w, _ in pieces),), aligned.dims)


@rule(aten.stack.default)
def stack(read: Reading, values: Sequence[Operand], dim: int = 0) -> Wide:
    """Put vectors side by side in a new axis of positions."""
    rank = max(len(v.dims) for v in values if isinstance(v, Wide)) + 1
    dim %= rank

    def longer(v: Operand) -> Operand:
        if isinstance(v, Wide | Weight):
            return unsqueeze(read, v, dim)
        return v.unsqueeze(dim) if isinstance(v, Tensor) else known(torch.unsqueeze, (v, dim), {})

    wides = [v for v in values if isinstance(v, Wide)]
    if len(wides) == len(values) and _flattened(read):
        whole = rotary.rejoined(read, wides, dim, True)
        if whole is not None:
            return read.write(
                "Concat", f"channels of heads in turns: {', '.join(map(read.name, values))}", whole
            )
    return cat(read, [longer(v) for v in values], dim)


def _flattened(read: Reading) -> bool:
    """Return whether the next operation merges the new dimension with the one before."""
    users = list(read.node.users) if read.node is not None else []
    return bool(users) and all(node.target in _MERGING for node in users)


_MERGING = (aten.flatten.using_ints, aten.reshape.default, aten.view.default, aten._unsafe_view.default)


@rule(aten.pad.default, aten.constant_pad_nd.default)
def pad(
    read: Reading, a: Wide, widths: Sequence[int], mode: str = "constant", value: float | None = None
) -> Wide:
    """Pad positions with zeros, around, by reflection or by the border."""
    if value:
        raise read.refuse("it pads with numbers other than zero.")
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
