"""Views: they act on the names of axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Operand, Weight, Wide, numbered, sizes_of
from ntkit.infinite.variables.rewrites import stopped

aten = torch.ops.aten


@rule(
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.dropout.default,
    aten.type_as.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.lift_fresh_copy.default,
    aten.to.dtype,
    aten._to_copy.default,
    aten.to.dtype_layout,
    aten.to.other,
    aten.to.device,
)
def same(read: Reading, a: Operand, *_: object, **__: object) -> Operand:
    """Return the same: the graph refuses active dropout, covariances keep the dtype of the network."""
    return a


@rule(aten.copy.default)
def copy(read: Reading, a: Operand, b: Operand, *_: object) -> Operand:
    """Return what takes the place of a value of the same shape."""
    if sizes_of(a) != sizes_of(b):
        raise read.refuse(f"it fills the shape {sizes_of(a)} with values of shape {sizes_of(b)}.")
    return b


@rule(aten.detach.default)
def detach(read: Reading, a: Operand) -> Operand:
    """Detach keeps K and makes Theta zero."""
    return read.write("LinComb", f"{read.name(a)}, detached", a.map(stopped)) if isinstance(a, Wide) else a


def refactored(read: Reading, a: Wide, sizes: Sequence[int]) -> Wide:
    """Return a vector whose tensor has another shape, by splitting and regrouping its axes."""
    a = a.canonical()
    axes = [(a.size(x), x >= 0) for dim in a.dims for x in dim]  # size, is it a position
    axes = [axis for axis in axes if axis[0] != 1 or not axis[1]]
    parts: list[list[tuple[int, bool]]] = []
    queue = list(axes)
    for size in sizes:
        left, mine = size, []
        while left > 1:
            if not queue:
                raise read.refuse(f"the shape {tuple(sizes)} does not fit the axes {axes}.")
            n, position = queue.pop(0)
            if left % n == 0:
                mine.append((n, position))
                left //= n
            elif n % left == 0:
                mine.append((left, position))
                queue.insert(0, (n // left, position))
                left = 1
            else:
                raise read.refuse(f"the shape {tuple(sizes)} cuts across the axes {axes}.")
        parts.append(mine)
    parts[-1] += queue  # channels of size 1
    shape = tuple(n for mine in parts for n, position in mine if position)
    channels = tuple(n for mine in parts for n, position in mine if not position)
    if channels != a.channels and len(a.pieces) > 1:
        block = prod(channels[1:])
        if any(bound % block for bound in accumulate(width for width, _ in a.pieces)):
            raise read.refuse("concatenated vectors are cut into groups of channels.")
    pieces = a.pieces if shape == a.shape else a.reshaped(shape, ()).pieces
    return Wide(pieces, shape, channels, numbered([[position for _, position in mine] for mine in parts]))


def _full(sizes: Sequence[int], total: int) -> list[int]:
    sizes = list(sizes)
    if -1 in sizes:
        sizes[sizes.index(-1)] = total // max(1, -prod(sizes))
    return sizes


def viewed(read: Reading, op: Callable[..., Tensor], a: Weight, *args: object) -> Weight:
    """Apply a view to a weight: a view of its storage stays the weight."""
    t = op(a.tensor, *args)
    if t.untyped_storage().data_ptr() != a.tensor.untyped_storage().data_ptr():
        raise read.refuse(f"it copies the weight {a.name!r} in another order.")
    return replace(a, tensor=t)


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def view(read: Reading, a: Wide | Weight, sizes: Sequence[int]) -> Wide | Weight:
    """Split and merge axes."""
    if isinstance(a, Weight):
        return viewed(read, aten.reshape.default, a, list(sizes))
    return refactored(read, a, _full(sizes, prod(a.sizes)))


@rule(aten.flatten.using_ints)
def flatten(read: Reading, a: Wide, start: int = 0, end: int = -1) -> Wide:
    """Merge dimensions."""
    sizes = list(a.sizes)
    rank = len(sizes)
    start, end = start % rank, end % rank
    return refactored(read, a, [*sizes[:start], prod(sizes[start : end + 1]), *sizes[end + 1 :]])


@rule(aten.unflatten.int)
def unflatten(read: Reading, a: Wide, dim: int, sizes: Sequence[int]) -> Wide:
    """Split a dimension."""
    old = list(a.sizes)
    dim %= len(old)
    return refactored(read, a, old[:dim] + _full(sizes, old[dim]) + old[dim + 1 :])


@rule(aten.unsqueeze.default)
def unsqueeze(read: Reading, a: Wide | Weight, dim: int) -> Wide | Weight:
    """Add a dimension of size 1."""
    if isinstance(a, Weight):
        return viewed(read, aten.unsqueeze.default, a, dim)
    dim %= len(a.dims) + 1
    return Wide(a.pieces, a.shape, a.channels, (*a.dims[:dim], (), *a.dims[dim:]))


@rule(aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims)
def squeeze(read: Reading, a: Wide, dims: int | Sequence[int] | None = None) -> Wide:
    """Drop dimensions of size 1."""
    rank, sizes = len(a.dims), a.sizes
    chosen = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    chosen = {d % rank for d in chosen if sizes[d] == 1 and not a.dims[d]}
    return Wide(a.pieces, a.shape, a.channels, tuple(d for i, d in enumerate(a.dims) if i not in chosen))


@rule(aten.permute.default)
def permute(read: Reading, a: Wide | Weight, order: Sequence[int]) -> Wide | Weight:
    """Permute dimensions."""
    if isinstance(a, Weight):
        return viewed(read, aten.permute.default, a, order)
    return Wide(a.pieces, a.shape, a.channels, tuple(a.dims[i] for i in order))


@rule(aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist)
def movedim(
    read: Reading, a: Wide | Weight, source: int | Sequence[int], target: int | Sequence[int]
) -> Wide | Weight:
    """Move dimensions to other places, the rest in their order."""
    rank = len(sizes_of(a))
    sources, targets = ([d % rank for d in ([x] if isinstance(x, int) else x)] for x in (source, target))
    order = [d for d in range(rank) if d not in sources]
    for place, d in sorted(zip(targets, sources, strict=True)):
        order.insert(place, d)
    return permute(read, a, order)


@rule(aten.transpose.int, aten.swapaxes.default, aten.swapdims.default)
def transpose(read: Reading, a: Wide | Weight, first: int, second: int) -> Wide | Weight:
    """Swap two dimensions."""
    if isinstance(a, Weight):
        return viewed(read, aten.transpose.int, a, first, second)
    order = list(range(len(a.dims)))
    order[first], order[second] = order[second], order[first]
    return permute(read, a, order)


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default)
def t(read: Reading, a: Wide | Weight) -> Wide | Weight:
    """Transpose a matrix."""
    return transpose(read, a, -2, -1)


@rule(aten.expand.default, aten.expand_as.default)
def expand(
    read: Reading, a: Wide | Weight, sizes: Wide | Sequence[int], *, implicit: bool = False
) -> Wide | Weight:
    """Repeat along dimensions of size 1."""
    sizes = sizes.sizes if isinstance(sizes, Wide) else sizes
    if isinstance(a, Weight):
        return viewed(read, aten.expand.default, a, list(sizes))
    a = a.canonical()
    dims = ((),) * (len(sizes) - len(a.dims)) + a.dims
    shape, axes = [], []
    for dim, size in zip(dims, sizes, strict=True):
        if not dim and size not in (1, -1):
            axes.append((len(shape),))
            shape.append((size, 1))
        else:
            axes.append(tuple(x if x < 0 else len(shape) + i for i, x in enumerate(dim)))
            shape += [(a.size(x), a.size(x)) for x in dim if x >= 0]
    before = tuple(s for _, s in shape)
    return Wide(a.reshaped(before, ()).pieces, tuple(s for s, _ in shape), a.channels, tuple(axes))


def single(a: Wide, dim: int) -> tuple[Wide, int]:
    """Return a vector with exactly one axis of positions in a dimension, and that axis."""
    a = a.canonical()
    axes = a.dims[dim]
    at = sum(1 for d in a.dims[:dim] for x in d if x >= 0)
    if len(axes) == 1:
        return a, at
    count = len(axes)
    shape = (*a.shape[:at], prod(a.shape[at : at + count]), *a.shape[at + count :])
    dims = [tuple(x + 1 - count if x >= at + count else x for x in d) for d in a.dims]
    dims[dim] = (at,)
    return a.reshaped(shape, dims), at


def pixels(read: Reading, a: Wide, rank: int) -> Wide:
    """Return a vector ``[1, channels, *pixels]`` with one axis for each of the last ``rank`` dimensions."""
    a = a.canonical()
    for dim in range(len(a.dims) - rank, len(a.dims)):
        if any(x < 0 for x in a.dims[dim]):
            raise read.refuse("its channels lie in a dimension of pixels.")
        a, _ = single(a, dim)
    if len(a.shape) != rank:
        raise read.refuse("it has positions besides the pixels.")
    return a
