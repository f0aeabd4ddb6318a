"""Views and selections: they act on the names of axes, or select positions or coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from ntkit.infinite.elementwise import Aligned, combine, total
from ntkit.infinite.expressions import Expression, Move, Moved, Sum, stopped
from ntkit.infinite.rules import Reading, rule
from ntkit.infinite.values import Known, Weight, Wide, numbers

aten = torch.ops.aten


@rule(
    aten.contiguous.default,
    aten.clone.default,
    aten.alias.default,
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.lift_fresh_copy.default,
)
def same(read: Reading, a: Any, *_: Any, **__: Any) -> Any:
    """Return the same (dropout is not active: the graph refuses it where it is)."""
    return a


@rule(aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout, aten.to.other, aten.to.device)
def to(read: Reading, a: Any, *_: Any, **__: Any) -> Any:
    """Return the same; covariances keep the dtype of the network."""
    return a


@rule(aten.detach.default, aten.detach_.default)
def detach(read: Reading, a: Any) -> Any:
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
        raise read.refuse("concatenated vectors are cut into groups of channels.")
    position, channel, dims = 0, -1, []
    for mine in parts:
        dim = []
        for _, is_position in mine:
            dim.append(position if is_position else channel)
            position, channel = position + is_position, channel - (not is_position)
        dims.append(tuple(dim))
    pieces = a.pieces if shape == a.shape else a.reshaped(shape, ()).pieces
    return Wide(pieces, shape, channels, tuple(dims))


def _full(sizes: Sequence[int], total: int) -> list[int]:
    sizes = list(sizes)
    if -1 in sizes:
        sizes[sizes.index(-1)] = total // max(1, -prod(sizes))
    return sizes


def viewed(read: Reading, op: Any, a: Any, *args: Any) -> Any:
    """Apply a view to a weight: a view of its storage stays the weight."""
    if not isinstance(a, Weight):
        return None
    t = op(a.tensor, *args)
    if t.untyped_storage().data_ptr() != a.tensor.untyped_storage().data_ptr():
        raise read.refuse(f"it copies the weight {a.name!r} in another order.")
    return Weight(a.name, t, a.shape, a.factor)


@rule(aten.view.default, aten.reshape.default, aten._unsafe_view.default)
def view(read: Reading, a: Any, sizes: Sequence[int]) -> Any:
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
def unsqueeze(read: Reading, a: Any, dim: int) -> Any:
    """Add a dimension of size 1."""
    if isinstance(a, Weight):
        return viewed(read, aten.unsqueeze.default, a, dim)
    dim %= len(a.dims) + 1
    return Wide(a.pieces, a.shape, a.channels, (*a.dims[:dim], (), *a.dims[dim:]))


@rule(aten.squeeze.dim, aten.squeeze.default, aten.squeeze.dims)
def squeeze(read: Reading, a: Any, dims: int | Sequence[int] | None = None) -> Any:
    """Drop dimensions of size 1."""
    rank, sizes = len(a.dims), a.sizes
    chosen = range(rank) if dims is None else [dims] if isinstance(dims, int) else dims
    chosen = {d % rank for d in chosen if sizes[d] == 1 and not a.dims[d]}
    return Wide(a.pieces, a.shape, a.channels, tuple(d for i, d in enumerate(a.dims) if i not in chosen))


@rule(aten.permute.default)
def permute(read: Reading, a: Any, order: Sequence[int]) -> Any:
    """Permute dimensions."""
    if isinstance(a, Weight):
        return viewed(read, aten.permute.default, a, order)
    return Wide(a.pieces, a.shape, a.channels, tuple(a.dims[i] for i in order))


@rule(aten.transpose.int, aten.swapaxes.default)
def transpose(read: Reading, a: Any, first: int, second: int) -> Any:
    """Swap two dimensions."""
    if isinstance(a, Weight):
        return viewed(read, aten.transpose.int, a, first, second)
    order = list(range(len(a.dims)))
    order[first], order[second] = order[second], order[first]
    return permute(read, a, order)


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default)
def t(read: Reading, a: Any) -> Any:
    """Transpose a matrix."""
    return transpose(read, a, -2, -1)


@rule(aten.expand.default, aten.expand_as.default)
def expand(read: Reading, a: Any, sizes: Any, *, implicit: bool = False) -> Any:
    """Repeat along dimensions of size 1."""
    if isinstance(a, Weight):
        return viewed(read, aten.expand.default, a, list(sizes))
    sizes = sizes.sizes if isinstance(sizes, Wide) else sizes
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


def pick(t: Tensor, axis: int, rank: int, index: tuple[int, ...]) -> Tensor:
    """Select positions along one of the last ``rank`` axes."""
    return t.index_select(t.ndim - rank + axis, torch.tensor(index, device=t.device))


def selected(read: Reading, a: Wide, dim: int, index: Tensor, drop: bool) -> Wide:
    """Return the entries ``index`` of a dimension: positions, or coordinates of the channels."""
    a = a.canonical()
    dim %= len(a.dims)
    axes = a.dims[dim]
    if len(axes) > 1:
        raise read.refuse(
            "it selects from a dimension in which channels or positions were flattened together."
        )
    if not axes:
        return _dropped(a, dim) if drop else a
    if axes[0] >= 0:
        return _positions(a, dim, axes[0], index, drop)
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
    except ValueError as error:
        raise read.refuse(f"it selects {error}.") from error


def _dropped(a: Wide, dim: int) -> Wide:
    return Wide(a.pieces, a.shape, a.channels, a.dims[:dim] + a.dims[dim + 1 :])


def _positions(a: Wide, dim: int, axis: int, index: Tensor, drop: bool) -> Wide:
    shape = (*a.shape[:axis], len(index), *a.shape[axis + 1 :])
    move = Move((pick, axis, len(a.shape), tuple(index.tolist())), a.shape, shape, True, False)
    pieces = tuple((w, Moved(shape, move, e.expanded(a.shape))) for w, e in a.pieces)
    result = Wide(pieces, shape, a.channels, a.dims)
    if len(index) == 1:
        result = refactored(None, result, result.sizes)  # pyright: ignore
    return _dropped(result, dim) if drop else result


@rule(aten.select.int)
def select(read: Reading, a: Any, dim: int, index: int) -> Any:
    """Take one entry of a dimension."""
    if isinstance(a, Weight):
        return viewed(read, aten.select.int, a, dim, index)
    return selected(read, a, dim, torch.tensor([index % a.sizes[dim]]), True)


@rule(aten.slice.Tensor)
def slice_(read: Reading, a: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """Take a range of a dimension."""
    if isinstance(a, Weight):
        return viewed(read, aten.slice.Tensor, a, dim, start, end, step)
    index = torch.arange(a.sizes[dim])[start:end:step]
    return a if len(index) == a.sizes[dim] and step == 1 else selected(read, a, dim, index, False)


@rule(aten.narrow.default)
def narrow(read: Reading, a: Any, dim: int, start: int, length: int) -> Any:
    """Take a range of a dimension, by its length."""
    return slice_(read, a, dim, start, start + length)


@rule(aten.index_select.default)
def index_select(read: Reading, a: Any, dim: int, index: Tensor) -> Any:
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


def _parts(read: Reading, a: Any, sizes: Sequence[int], dim: int) -> tuple:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return tuple(narrow(read, a, dim, start, size) for start, size in zip(starts, sizes, strict=True))


def size_of(a: Any, dim: int) -> int:
    """Return the size of a dimension of a value."""
    return a.sizes[dim] if isinstance(a, Wide) else a.tensor.shape[dim]


@rule(aten.chunk.default)
def chunk(read: Reading, a: Any, count: int, dim: int = 0) -> tuple:
    """Cut a dimension into a number of parts."""
    n = size_of(a, dim)
    size = -(-n // count)
    return _parts(read, a, [min(size, n - i) for i in range(0, n, size)], dim)


@rule(aten.split.Tensor)
def split(read: Reading, a: Any, size: int, dim: int = 0) -> tuple:
    """Cut a dimension into parts of a size."""
    n = size_of(a, dim)
    return _parts(read, a, [min(size, n - i) for i in range(0, n, size)], dim)


@rule(aten.split_with_sizes.default, aten.split.sizes)
def split_with_sizes(read: Reading, a: Any, sizes: Sequence[int], dim: int = 0) -> tuple:
    """Cut a dimension into parts of several sizes."""
    return _parts(read, a, sizes, dim)


@rule(aten.unbind.int)
def unbind(read: Reading, a: Any, dim: int = 0) -> tuple:
    """Take a dimension apart."""
    return tuple(select(read, a, dim, i) for i in range(size_of(a, dim)))


def place(t: Tensor, axis: int, rank: int, before: int, after: int) -> Tensor:
    """Add zeros before and after along one of the last ``rank`` axes."""
    return torch.nn.functional.pad(t, [0, 0] * (rank - axis - 1) + [before, after])


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
