"""Selections: some positions, or some coordinates, which are different rows of the weights behind them."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.layers.views import refactored, single, viewed
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Weight, Wide, sizes_of
from ntkit.infinite.variables.positions import Move
from ntkit.infinite.variables.rewrites import Inseparable

aten = torch.ops.aten
Cuts = tuple[Wide | Weight, ...]
Bound = int | None  # of a slice


def pick(t: Tensor, axis: int, rank: int, index: tuple[int, ...]) -> Tensor:
    """Select positions along one of the last ``rank`` axes."""
    return t.index_select(t.ndim - rank + axis, torch.tensor(index, device=t.device))


def selected(read: Reading, a: Wide, dim: int, index: Tensor, drop: bool) -> Wide:
    """Return the entries ``index`` of a dimension: positions, or coordinates of the channels."""
    a = a.canonical()
    dim %= len(a.dims)
    if len(a.dims[dim]) > 1 and all(x >= 0 for x in a.dims[dim]):
        a, _ = single(a, dim)
    axes = a.dims[dim]
    if len(axes) > 1:
        raise read.refuse("it selects from a dimension where channels or positions were flattened together.")
    if not axes:
        return _dropped(a, dim) if drop else a
    if axes[0] >= 0:
        return _positions(read, a, dim, axes[0], index, drop)
    sizes, place = a.channels, -axes[0] - 1
    rows = torch.arange(prod(sizes)).reshape(sizes).index_select(place, index)
    channels = (*sizes[:place], len(index), *sizes[place + 1 :])
    if drop and len(sizes) > 1:
        channels = sizes[:place] + sizes[place + 1 :]
        dims = [tuple(x + 1 if x < axes[0] else x for x in d) for i, d in enumerate(a.dims) if i != dim]
    elif drop:
        raise read.refuse("it selects a single channel of a vector of infinite width.")
    else:
        dims = a.dims
    try:
        return a.narrowed(rows.reshape(-1), channels, dims)
    except Inseparable as error:
        raise read.refuse(f"it selects {error}.") from error


def _dropped(a: Wide, dim: int) -> Wide:
    return Wide(a.pieces, a.shape, a.channels, a.dims[:dim] + a.dims[dim + 1 :])


def _positions(read: Reading, a: Wide, dim: int, axis: int, index: Tensor, drop: bool) -> Wide:
    shape = (*a.shape[:axis], len(index), *a.shape[axis + 1 :])
    result = a.moved(Move((pick, axis, len(a.shape), tuple(index.tolist())), a.shape, shape, True))
    if len(index) == 1:
        result = refactored(read, result, result.sizes)
    return _dropped(result, dim) if drop else result


@rule(aten.select.int)
def select(read: Reading, a: Wide | Weight, dim: int, index: int) -> Wide | Weight:
    """Take one entry of a dimension."""
    if isinstance(a, Weight):
        return viewed(read, aten.select.int, a, dim, index)
    return selected(read, a, dim, torch.tensor([index % a.sizes[dim]]), True)


@rule(aten.slice.Tensor)
def slice_(
    read: Reading, a: Wide | Weight, dim: int = 0, start: Bound = None, end: Bound = None, step: int = 1
) -> Wide | Weight:
    """Take a range of a dimension."""
    if isinstance(a, Weight):
        return viewed(read, aten.slice.Tensor, a, dim, start, end, step)
    index = torch.arange(a.sizes[dim])[start:end:step]
    return a if len(index) == a.sizes[dim] and step == 1 else selected(read, a, dim, index, False)


@rule(aten.narrow.default)
def narrow(read: Reading, a: Wide | Weight, dim: int, start: int, length: int) -> Wide | Weight:
    """Take a range of a dimension, by its length."""
    return slice_(read, a, dim, start, start + length)


@rule(aten.index_select.default)
def index_select(read: Reading, a: Wide, dim: int, index: Tensor) -> Wide:
    """Take entries of a dimension by a fixed index."""
    return selected(read, a, dim, index, False)


@rule(aten.flip.default)
def flip(read: Reading, a: Wide, dims: Sequence[int]) -> Wide:
    """Reverse the order of positions."""
    for d in dims:
        a = selected(read, a, d, torch.arange(a.sizes[d]).flip(0), False)
    return a


@rule(aten.roll.default)
def roll(read: Reading, a: Wide, shifts: Sequence[int], dims: Sequence[int] = ()) -> Wide:
    """Shift positions around."""
    for shift, d in zip(shifts, dims, strict=True):
        a = selected(read, a, d, torch.arange(a.sizes[d]).roll(shift), False)
    return a


def _parts(read: Reading, a: Wide | Weight, sizes: Sequence[int], dim: int) -> Cuts:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(narrow(read, a, dim, start, size) for start, size in zip(starts, sizes, strict=True))


@rule(aten.chunk.default)
def chunk(read: Reading, a: Wide | Weight, count: int, dim: int = 0) -> Cuts:
    """Cut a dimension into a number of parts."""
    return split(read, a, -(-sizes_of(a)[dim] // count), dim)


@rule(aten.split.Tensor)
def split(read: Reading, a: Wide | Weight, size: int, dim: int = 0) -> Cuts:
    """Cut a dimension into parts of a size."""
    n = sizes_of(a)[dim]
    return _parts(read, a, [min(size, n - i) for i in range(0, n, size)], dim)


@rule(aten.split_with_sizes.default, aten.split.sizes)
def split_with_sizes(read: Reading, a: Wide | Weight, sizes: Sequence[int], dim: int = 0) -> Cuts:
    """Cut a dimension into parts of several sizes."""
    return _parts(read, a, sizes, dim)


@rule(aten.unbind.int)
def unbind(read: Reading, a: Wide | Weight, dim: int = 0) -> Cuts:
    """Split a dimension into its entries."""
    return tuple(select(read, a, dim, i) for i in range(sizes_of(a)[dim]))
