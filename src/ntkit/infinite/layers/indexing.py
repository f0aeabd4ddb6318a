"""Entries by an index, and sums into the places of an index: fixed ones move positions, data mix them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.layers.arithmetic import add, mul
from ntkit.infinite.layers.attention import mixed
from ntkit.infinite.layers.selections import selected, slice_
from ntkit.infinite.layers.views import expand, refactored, single, squeeze, unsqueeze
from ntkit.infinite.reading.rules import Reading, known, rows_of, rule
from ntkit.infinite.reading.values import Known, Operand, Weight, Wide, sizes_of
from ntkit.infinite.variables.positions import Move, broadcast
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import Coefficient, Vector

aten = torch.ops.aten
Index = Tensor | Known


def scatter(t: Tensor, axis: int, rank: int, places: tuple[int, ...], size: int, how: str) -> Tensor:
    """Sum (or average) the entries of one of the last ``rank`` axes into places of another of a size."""
    dim = t.ndim - rank + axis
    index = torch.tensor(places, device=t.device)
    shape = (*t.shape[:dim], size, *t.shape[dim + 1 :])
    total = t.new_zeros(shape).index_add(dim, index, t)
    if how == "sum":
        return total
    count = torch.bincount(index, minlength=size).clamp(min=1).to(t.dtype)
    return total / count.reshape(-1, *[1] * (rank - axis - 1))


def _hot(read: Reading, index: Known, size: int, places: int, gather: bool) -> Known:
    """Return the matrix that takes entries, ``[places, size]``, or sums them, ``[size, places]``."""

    def of(side: SideValues) -> Tensor:
        rows = index.rows(side).reshape(side.n, places).long()
        hot = torch.nn.functional.one_hot(rows % size, size).to(side.numerics.dtype)
        return hot if gather else hot.mT

    sizes = (places, size) if gather else (size, places)
    example = torch.zeros(sizes, dtype=read.dtype)
    return Known(example, Coefficient(sizes, of), index.moments)


def taken(read: Reading, a: Wide, dim: int, index: Index) -> Wide:
    """Return the entries of a dimension at an index of one dimension, fixed or of the sample."""
    if isinstance(index, Tensor):
        n = a.sizes[dim]
        return selected(read, a, dim, index.reshape(-1) % n, False)
    return _by_data(read, a, dim, index, a.sizes[dim], index.example.numel(), True)


def _by_data(read: Reading, a: Wide, dim: int, index: Known, size: int, places: int, gather: bool) -> Wide:
    a = a.canonical()
    rank = len(a.dims)
    if any(x < 0 for x in a.dims[dim]):
        raise read.refuse("an index of the sample chooses among channels of infinite width.")
    if dim == rank - 1:  # a product of matrices acts on the last dimension but one
        longer = unsqueeze(read, a, rank)
        assert isinstance(longer, Wide)
        return squeeze(read, _by_data(read, longer, dim, index, size, places, gather), -1)
    if dim != rank - 2:
        raise read.refuse("an index of the sample along a dimension that is not the one before the channels.")
    return mixed(read, _hot(read, index, size, places, gather), a)


def _summed(read: Reading, a: Wide, dim: int, index: Index, size: int, how: str) -> Wide:
    """Return the sums of entries of a dimension into the places of an index."""
    a, axis = single(a, dim)
    if isinstance(index, Known):
        if how != "sum":
            raise read.refuse(f"a {how} by an index of the sample.")
        return _by_data(read, a, dim, index, size, index.example.numel(), False)
    after = (*a.shape[:axis], size, *a.shape[axis + 1 :])
    places = tuple(index.reshape(-1).tolist())
    wide = a.moved(Move((scatter, axis, len(a.shape), places, size, how), a.shape, after, False))
    wide = read.write("Pooling", f"{how} of {read.name(a)} into {size} places", wide)
    return refactored(read, wide, wide.sizes)


def _of_dimension(read: Reading, a: Wide, dim: int, index: Index) -> Index:
    """Return an index that was repeated to the shape of a vector as one of a single dimension."""
    example = index if isinstance(index, Tensor) else index.example
    if example.ndim <= 1:
        return index
    lines = example.movedim(dim, 0).reshape(example.shape[dim], -1)
    if not bool((lines == lines[:, :1]).all()):
        raise read.refuse("its index differs from channel to channel.")
    if isinstance(index, Tensor):
        return lines[:, 0]
    places = example.shape[dim]

    def of(side: SideValues) -> Tensor:
        rows = index.rows(side).movedim(dim + 1, 1).reshape(side.n, places, -1)
        if not bool((rows == rows[:, :, :1]).all()):
            raise read.refuse("its index differs from channel to channel.")
        return rows[:, :, 0]

    return Known(lines[:, 0], Coefficient((places,), of), index.moments)


@rule(aten.gather.default)
def gather(read: Reading, a: Wide, dim: int, index: Index, **_: object) -> Wide:
    """Take entries of a dimension by an index that is the same in all channels."""
    dim %= len(a.dims)
    sizes = [n if d == dim else m for d, (n, m) in enumerate(zip(a.sizes, sizes_of(index), strict=True))]
    return taken(read, _cut(read, a, sizes), dim, _of_dimension(read, a, dim, index))


def _cut(read: Reading, a: Wide, sizes: Sequence[int]) -> Wide:
    """Return the first entries of each dimension, of which an index may have fewer than its source."""
    for d, size in enumerate(sizes):
        part = slice_(read, a, d, 0, size)
        assert isinstance(part, Wide)
        a = part
    return a


@rule(aten.scatter_add.default, aten.index_add.default)
def scatter_add(
    read: Reading, base: Operand, dim: int, index: Index, a: Operand, *, alpha: float = 1
) -> Wide:
    """Sum positions into the places of an index: messages of a graph to its nodes."""
    return _into(read, base, dim, index, mul(read, a, float(alpha)) if alpha != 1 else a, "sum")


@rule(aten.scatter_reduce.two, aten.index_reduce.default)
def scatter_reduce(
    read: Reading, base: Operand, dim: int, index: Index, a: Operand, how: str, *, include_self: bool = True
) -> Wide:
    """Sum or average positions into the places of an index."""
    if how not in ("sum", "mean") or (how == "mean" and include_self):
        raise read.refuse(f"a reduction by {how!r} into places; sums are known, and means without the base.")
    return _into(read, base, dim, index, a, how)


def _into(read: Reading, base: Operand, dim: int, index: Index, a: Operand, how: str) -> Wide:
    if not isinstance(a, Wide):
        raise read.refuse("it writes numbers into a vector.")
    dim %= len(a.dims)
    if len(sizes_of(index)) > 1:
        a = _cut(read, a, sizes_of(index))
    if any(d != dim and n != m for d, (n, m) in enumerate(zip(a.sizes, sizes_of(base), strict=True))):
        raise read.refuse("it writes into a part of the channels or of other positions.")
    sums = _summed(read, a, dim, _of_dimension(read, a, dim, index), sizes_of(base)[dim], how)
    if isinstance(base, Tensor) and not base.any():
        return sums
    return add(read, base, sums)


@rule(aten.index.Tensor)
def index(read: Reading, a: Wide | Weight, indices: Sequence[Index | None]) -> Wide:
    """Take entries by one index; by others of zero where a dimension has one entry only."""
    sizes = sizes_of(a)
    given = {d: i for d, i in enumerate(indices) if i is not None}
    trivial = [d for d, i in given.items() if isinstance(i, Tensor) and sizes[d] == 1 and not i.any()]
    left = [d for d in given if d not in trivial] or trivial[-1:]
    if len(left) != 1:
        raise read.refuse("it takes entries by an index in several dimensions at once.")
    (dim,) = left
    given = {d: _places(i) for d, i in given.items()}
    chosen, shape = given[dim], broadcast(*(sizes_of(i) for i in given.values()))
    if isinstance(a, Weight):
        if len(given) > 1 or dim or isinstance(chosen, Known):
            raise read.refuse(f"it takes entries of the weight {a.name!r} by an index of the sample.")
        return _of_table(read, a, chosen)
    if isinstance(chosen, Known):
        chosen = known(torch.broadcast_to, (chosen, shape), {})
    else:
        chosen = chosen.expand(shape)
    first = min(given)
    before = [s for d, s in enumerate(sizes) if d not in given and d < first]
    after = [s for d, s in enumerate(sizes) if d not in given and d > first]
    if max(given) - first >= len(given):  # not side by side: their dimensions come first
        if prod(before) * prod(sizes[d] for d in range(first, dim) if d not in given) > 1:
            raise read.refuse("it takes entries by indices of dimensions that are not side by side.")
        before, after = [], before + after
    return refactored(read, taken(read, a, dim, chosen), [*before, *shape, *after])


def _places(index: Index) -> Index:
    """Return an index of booleans as the places where they are true."""
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        return index.nonzero()[:, 0]
    return index


def _of_table(read: Reading, table: Weight, index: Tensor) -> Wide:
    """Return rows of a table of parameters at fixed places: biases by relative positions."""
    if table.tensor.ndim != 2:
        raise read.refuse(f"it takes entries of the weight {table.name!r}, which has no channels.")
    count, width = table.tensor.shape
    read.use(table.name, "coordinate by coordinate")
    average, law = read.laws.vector(table)
    rows = rows_of(table.tensor)[0]
    wide = Wide(
        ((width, Vector((count,), table.name, rows, average, law)),), (count,), (width,), ((0,), (-1,))
    )
    wide = selected(read, wide, 0, index.reshape(-1) % count, False)
    wide = read.write("Parameter", f"{table.name} at {index.numel()} places", wide)
    return refactored(read, wide, [*index.shape, width])


@rule(aten.repeat.default)
def repeat(read: Reading, a: Wide, counts: Sequence[int]) -> Wide:
    """Repeat positions, again and again."""
    a = replace(a, dims=((),) * (len(counts) - len(a.dims)) + a.dims)
    for d, count in enumerate(counts):
        if count != 1:
            a = _repeated(read, a, d, torch.arange(a.sizes[d]).repeat(count))
    return a


@rule(aten.repeat_interleave.self_int)
def repeat_interleave(read: Reading, a: Wide, count: int, dim: int | None = None, **_: object) -> Wide:
    """Repeat each position."""
    if dim is None:
        raise read.refuse("it repeats all numbers in one line.")
    dim %= len(a.dims)
    return _repeated(read, a, dim, torch.arange(a.sizes[dim]).repeat_interleave(count))


def _repeated(read: Reading, a: Wide, dim: int, index: Tensor) -> Wide:
    if a.sizes[dim] == 1 and not a.dims[dim]:
        sizes = list(a.sizes)
        sizes[dim] = len(index)
        wide = expand(read, a, sizes)
        assert isinstance(wide, Wide)
        return wide
    return selected(read, a, dim, index, False)


def _filled(*ops: torch._ops.OpOverload, value: float) -> None:
    @rule(*ops)
    def filled(read: Reading, a: Operand, *args: object, **_: object) -> Tensor:
        shape = args[0] if args and isinstance(args[0], list | tuple) else sizes_of(a)
        return torch.full(tuple(shape), value, dtype=read.dtype)  # pyright: ignore[reportArgumentType]


_filled(aten.zeros_like.default, aten.new_zeros.default, value=0.0)
_filled(aten.empty_like.default, aten.new_empty.default, value=0.0)
_filled(aten.ones_like.default, aten.new_ones.default, value=1.0)


@rule(aten.full_like.default)
def full_like(read: Reading, a: Operand, value: float, **_: object) -> Tensor:
    """Return a number in the shape of a vector."""
    return torch.full(sizes_of(a), float(value), dtype=read.dtype)


@rule(aten.new_full.default)
def new_full(read: Reading, a: Operand, sizes: Sequence[int], value: float, **_: object) -> Tensor:
    """Return a number in a shape."""
    return torch.full(tuple(sizes), float(value), dtype=read.dtype)


@rule(aten.tensor_split.indices)
def tensor_split(
    read: Reading, a: Wide | Weight, at: Sequence[int], dim: int = 0
) -> tuple[Wide | Weight, ...]:
    """Cut a dimension at some places."""
    n = sizes_of(a)[dim]
    return tuple(slice_(read, a, dim, low, high) for low, high in zip([0, *at], [*at, n], strict=True))
