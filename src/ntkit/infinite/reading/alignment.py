"""Several operands of one operation, brought to the same axes as the broadcasting of their tensors does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.reading.rules import Reading, rows_of
from ntkit.infinite.reading.values import (
    Argument,
    Known,
    Operand,
    Weight,
    Wide,
    compact,
    numbered,
    numbers,
    sizes_of,
)
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.positions import Shape, broadcast
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.rewrites import narrow
from ntkit.infinite.variables.vectors import Coefficient, Raw, Vector

Term = Expression | Coefficient | float | int
Concatenated = tuple[tuple[int, Expression], ...]


class Aligned:
    """Operands with a common frame: for each dimension its axes, sizes of positions and -1 for channels."""

    def __init__(self, read: Reading, values: Sequence[Argument]) -> None:
        self.read = read
        tensors = [v for v in values if not isinstance(v, float | int)]
        wides = [v.canonical() for v in tensors if isinstance(v, Wide)]
        self.rank = max(len(sizes_of(v)) for v in tensors)
        dims = [((),) * (self.rank - len(w.dims)) + w.dims for w in wides]
        wides = [Wide(w.pieces, w.shape, w.channels, d) for w, d in zip(wides, dims, strict=True)]
        if len({tuple(w.channels) for w in wides}) > 1:
            wides = [w.merged() for w in wides]
        self.channels = self._channels(wides)
        self.frame = [self._dimension(d, wides, tensors) for d in range(self.rank)]
        self.shape = tuple(s for dim in self.frame for s in dim if s > 0)
        self.bounds = sorted({b for w in wides for b in accumulate(width for width, _ in w.pieces)})
        aligned = iter([self._wide(w) for w in wides])
        self.terms = [next(aligned) if isinstance(v, Wide) else self._term(v) for v in values]

    def _channels(self, wides: list[Wide]) -> Shape:
        layouts = {tuple(tuple(w.size(a) for a in dim if a < 0) for dim in w.dims) for w in wides}
        if len(layouts) > 1:
            raise self.read.refuse(
                f"vectors whose channels lie in other dimensions meet, {sorted(layouts)}: coordinates of one "
                f"are shared by heads of the other (a table of positions that is a parameter, say)."
            )
        return wides[0].channels

    def _dimension(self, d: int, wides: list[Wide], values: list[Operand]) -> Shape:
        """Return the axes of a dimension: sizes of positions, and -1 for each axis of channels."""
        layouts = [tuple(w.size(a) if a >= 0 else -1 for a in w.dims[d]) for w in wides]
        layouts = list(dict.fromkeys(tuple(s for s in layout if s != 1) for layout in layouts))
        some = [layout for layout in layouts if layout]
        if len(some) > 1 and not any(-1 in layout for layout in some):
            some = [(prod(some[0]),)]
        if len(some) > 1:
            raise self.read.refuse("vectors whose channels and positions are mixed in different ways meet.")
        if some:
            return some[0]
        others = [self._sizes(v) for v in values if not isinstance(v, Wide)]
        sizes = {s[d] for s in others} - {1}
        return (sizes.pop(),) if sizes else ()

    def _sizes(self, value: Operand) -> Shape:
        """Return the shape of a value with ones in front."""
        sizes = sizes_of(value)
        return (1,) * (self.rank - len(sizes)) + sizes

    @property
    def dims(self) -> tuple[tuple[int, ...], ...]:
        """The dimensions of the result."""
        dims = numbered([[s > 0 for s in dim] for dim in self.frame])
        channels = sum(s < 0 for dim in self.frame for s in dim)
        last = tuple(-j - 1 for j in range(channels, len(self.channels)))  # of size 1: they lie anywhere
        return (*dims[:-1], (*dims[-1], *last))

    def _wide(self, w: Wide) -> list[Expression]:
        shape: list[int] = []
        for dim, axes in zip(self.frame, w.dims, strict=True):
            mine = [w.size(a) for a in axes if a >= 0]
            wanted = [s for s in dim if s > 0]
            shape += wanted if prod(mine) == prod(wanted) else [1] * len(wanted)
        return self._cut(w.pieces if w.shape == tuple(shape) else w.reshaped(tuple(shape), ()).pieces)

    def _cut(self, pieces: Concatenated) -> list[Expression]:
        if len(self.bounds) == len(pieces):
            return [e for _, e in pieces]
        cut, start = [], 0
        for width, e in pieces:
            inside = [b for b in self.bounds if start < b <= start + width]
            for low, high in zip([start, *inside], inside, strict=False):
                cut.append(narrow(e, torch.arange(low - start, high - start)))
            start += width
        return cut

    def _term(self, value: Argument) -> Sequence[Term]:
        if isinstance(value, float | int):
            return [value] * len(self.bounds)
        if isinstance(value, Weight):
            return self._cut(((prod(self.channels), self._vector(value)),))
        known = numbers(value)
        assert known is not None
        return self._numbers(known, isinstance(value, Tensor))

    def _numbers(self, known: Known, fixed: bool) -> Sequence[Term]:
        sizes = self._sizes(known)
        per_channel = any(size != 1 and -1 in dim for size, dim in zip(sizes, self.frame, strict=True))
        if per_channel and fixed:
            one = known.example
            for d, (size, dim) in enumerate(zip(sizes, self.frame, strict=True)):
                if size != 1 and dim == (-1,):
                    one = one.narrow(d - self.rank + known.example.ndim, 0, 1)
            flat = any(len(dim) > 1 for dim in self.frame if -1 in dim)
            alike = numbers(one)
            if not flat and alike is not None and bool((one == known.example).all()):
                return self._numbers(alike, True)
        alike = per_channel and not fixed and self._one_for_all(known)
        if alike:
            return self._numbers(alike, False)
        if per_channel:
            raw = self.raw(known)
            return self._cut(((raw.data.shape[-1], raw),))
        if fixed and known.example.numel() == 1:
            return [float(known.example)] * len(self.bounds)
        shape = self._positions(sizes)
        own = known.example.reshape(shape) if fixed else None
        numbers_of = Coefficient(shape, lambda side: known.numbers.value(side).reshape(-1, *shape), own)
        return [numbers_of] * len(self.bounds)

    def _one_for_all(self, known: Known) -> Known | None:
        """Return numbers that were expanded along the channels with one for all of them."""
        example, lead = compact(known.example), self.rank - known.example.ndim
        dims = [d for d, dim in enumerate(self.frame[lead:]) if -1 in dim and known.example.shape[d] > 1]
        if any(example.shape[d] > 1 for d in dims):
            return None
        sizes = tuple(1 if d in dims else s for d, s in enumerate(known.example.shape))

        def of(side: SideValues) -> Tensor:
            value = known.numbers.value(side)
            for d in dims:
                value = value.narrow(d + 1, 0, 1)
            return value

        return Known(known.example[tuple(slice(s) for s in sizes)], Coefficient(sizes, of), known.moments)

    def _positions(self, sizes: Shape) -> Shape:
        """Return the positions of numbers: those of the frame, or ones where they broadcast."""
        both = zip(sizes, self.frame, strict=True)
        return tuple(s if size != 1 else 1 for size, dim in both for s in dim if s > 0)

    def raw(self, known: Known) -> Raw:
        """Return numbers of a sample that differ from channel to channel as a vector."""
        sizes = self._sizes(known)
        if any(-1 in dim and len(dim) > 1 for dim in self.frame) or len(self.channels) > 1:
            raise self.read.refuse(
                "data with a number for each channel meet a vector with axes that were flattened."
            )
        place = next(d for d, dim in enumerate(self.frame) if -1 in dim)
        shape = self._positions(sizes)

        def of(side: SideValues) -> Tensor:
            value = known.rows(side).reshape(side.n, *sizes).movedim(place + 1, -1)
            return value.reshape(side.n, *shape, sizes[place])

        return Raw(shape, Coefficient((*shape, sizes[place]), of))

    def _vector(self, weight: Weight) -> Expression:
        t = weight.tensor.reshape(self._sizes(weight.tensor))
        width = prod(self.channels)
        shared = self._of_each_head(weight, t)
        if shared is not None:
            return shared
        split = self._of_split_channels(weight, t)
        if split is not None:
            return split
        shape: list[int] = []
        channels = []
        for d, dim in enumerate(self.frame):
            if -1 in dim:
                if len(dim) > 1 or t.shape[d] not in (1, width):
                    raise self.read.refuse(f"the parameter {weight.name!r} meets flattened channels.")
                channels.append(d)
            else:
                shape += [s if t.shape[d] != 1 else 1 for s in dim]
        place = channels[0] if channels else self.rank - 1
        if len(channels) > 1 or t.shape[place] != width or (t.numel() == 1 and width > 1):
            raise self.read.refuse(
                f"the parameter {weight.name!r} of shape {tuple(weight.shape)} is shared by all channels: "
                f"its gradient grows with the width, and the tangent kernel has no limit. Give it one "
                f"entry per channel."
            )
        rows = rows_of(t).movedim(place, -1).reshape(-1, t.shape[place])[0]
        self.read.use(weight.name, "coordinate by coordinate")
        average, law = self.read.laws.vector(weight)
        return Vector(tuple(shape), weight.name, rows, average, law)

    def _of_split_channels(self, weight: Weight, t: Tensor) -> Vector | None:
        """Return parameters with an entry for each channel, where these lie in several dimensions."""
        places = [d for d, dim in enumerate(self.frame) if dim == (-1,)]
        if len(places) < 2 or tuple(t.shape[d] for d in places) != tuple(self.channels):
            return None
        both = zip(t.shape, self.frame, strict=True)
        shape = tuple(s if n != 1 else 1 for n, dim in both for s in dim if s > 0)
        self.read.use(weight.name, "coordinate by coordinate")
        average, law = self.read.laws.vector(weight)
        rows = rows_of(t).movedim(places, list(range(-len(places), 0)))
        return Vector(shape, weight.name, rows.reshape(-1, prod(self.channels))[0], average, law)

    def _of_each_head(self, weight: Weight, t: Tensor) -> Vector | None:
        """Return parameters of the channels of a head, alike at the start, that all heads share.

        The gradients of heads are independent: they add up like those of parameters of their own.
        """
        channels = [d for d, dim in enumerate(self.frame) if dim == (-1,)]
        size = self.channels[-1]
        if (
            len(channels) < 2
            or len(channels) != len(self.channels)
            or t.shape[channels[-1]] != size
            or size < 2
        ):
            return None
        average, law = self.read.laws.vector(weight)
        if law.variance or any(t.shape[d] != 1 for d in channels[:-1]):
            return None
        both = zip(t.shape, self.frame, strict=True)
        shape = tuple(s if n != 1 else 1 for n, dim in both for s in dim if s > 0)
        self.read.use(weight.name, "coordinate by coordinate")
        rows = rows_of(t).movedim(channels[-1], -1).reshape(-1, size)[0]
        return Vector(shape, weight.name, rows.repeat(prod(self.channels[:-1])), average, law)

    def pieces(self, terms: Sequence[Expression]) -> Concatenated:
        """Return the result of an operation on each piece, with its width."""
        widths = [high - low for low, high in zip([0, *self.bounds], self.bounds, strict=False)]
        return tuple(zip(widths, terms, strict=True))


def combine(read: Reading, values: Sequence[Argument], of: Callable[..., Expression]) -> Wide:
    """Align values and apply a function to the terms of each piece."""
    aligned = Aligned(read, values)
    pieces = aligned.pieces([of(*terms) for terms in zip(*aligned.terms, strict=True)])
    return Wide(pieces, aligned.shape, aligned.channels, aligned.dims)


def of_parameters(read: Reading, weight: Weight) -> Wide:
    """Return parameters ``[*positions, channels]`` as a vector."""
    *sizes, width = weight.tensor.shape
    read.use(weight.name, "coordinate by coordinate")
    average, law = read.laws.vector(weight)
    shape = tuple(s for s in sizes if s != 1)
    rows = rows_of(weight.tensor).reshape(-1, width)[0]
    vector = Vector(shape, weight.name, rows, average, law)
    dims = numbered([*([True] if s != 1 else [] for s in sizes), [False]])
    return Wide(((width, vector),), shape, (width,), dims)


def shape_of(*terms: Term) -> Shape:
    """Return the positions of several terms together."""
    return broadcast(*(t.shape for t in terms if isinstance(t, Expression | Coefficient)))
