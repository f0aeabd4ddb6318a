"""Functions of coordinates, sums and multiples: aligned by the broadcasting of their tensors."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import find
from ntkit.infinite.moments.vectors import (
    Apply,
    Coefficient,
    Expression,
    Function,
    Gain,
    Offset,
    Raw,
    Scaled,
    Sum,
    Vector,
)
from ntkit.infinite.reading.rules import Reading, rows_of, rule
from ntkit.infinite.reading.values import Known, Weight, Wide, narrow, numbers, rows_for

aten = torch.ops.aten


class Aligned:
    """Several operands of one operation, brought to the same axes."""

    def __init__(self, read: Reading, values: list[Any]) -> None:
        self.read = read
        wides = [v.canonical() for v in values if isinstance(v, Wide)]
        rank = max(len(_sizes(v)) for v in values if not isinstance(v, float | int))
        wides = [Wide(w.pieces, w.shape, w.channels, ((),) * (rank - len(w.dims)) + w.dims) for w in wides]
        self.channels = self._channels(wides)
        self.frame = [self._dimension(d, wides, values, rank) for d in range(rank)]
        self.shape = tuple(s for dim in self.frame for s in dim if s > 0)
        bounds = {b for w in wides for b in _bounds(w)}
        self.bounds = sorted(bounds)
        aligned = iter([self._wide(w) for w in wides])
        self.terms = [self._term(v, next(aligned) if isinstance(v, Wide) else None, rank) for v in values]

    def _channels(self, wides: list[Wide]) -> tuple[int, ...]:
        found = {tuple(tuple(w.size(a) for a in dim if a < 0) for dim in w.dims) for w in wides}
        if len(found) > 1:
            raise self.read.refuse(f"vectors with channels {sorted(found)} in their dimensions meet.")
        return wides[0].channels

    def _dimension(self, d: int, wides: list[Wide], values: list[Any], rank: int) -> tuple[int, ...]:
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
        others = [_sizes(v) for v in values if not isinstance(v, Wide | float | int)]
        sizes = {s[d - rank + len(s)] for s in others if d - rank + len(s) >= 0} - {1}
        return (sizes.pop(),) if sizes else ()

    @property
    def dims(self) -> tuple[tuple[int, ...], ...]:
        """The dimensions of the result."""
        position, channel, dims = 0, -1, []
        for dim in self.frame:
            axes = []
            for s in dim:
                axes.append(channel if s < 0 else position)
                position, channel = position + (s > 0), channel - (s < 0)
            dims.append(axes)
        for j in range(-channel - 1, len(self.channels)):  # channels of size 1 lie anywhere
            dims[-1].append(-j - 1)
        return tuple(tuple(dim) for dim in dims)

    def _wide(self, w: Wide) -> list[Expression]:
        shape: list[int] = []
        for dim, axes in zip(self.frame, w.dims, strict=True):
            mine = [w.size(a) for a in axes if a >= 0]
            wanted = [s for s in dim if s > 0]
            shape += wanted if prod(mine) == prod(wanted) else [1] * len(wanted)
        pieces = w.pieces if w.shape == tuple(shape) else w.reshaped(tuple(shape), ()).pieces
        return self._cut(pieces)

    def _cut(self, pieces: tuple[tuple[int, Expression], ...]) -> list[Expression]:
        if len(self.bounds) == len(pieces):
            return [e for _, e in pieces]
        found, start = [], 0
        for width, e in pieces:
            inside = [b for b in self.bounds if start < b <= start + width]
            for low, high in zip([start, *inside], inside, strict=False):
                found.append(narrow(e, torch.arange(low - start, high - start)))
            start += width
        return found

    def _term(self, value: Any, aligned: list[Expression] | None, rank: int) -> list[Any]:
        if aligned is not None:
            return aligned
        if isinstance(value, float | int):
            return [value] * len(self.bounds)
        if isinstance(value, Weight):
            return self._cut(((prod(self.channels), self._vector(value, rank)),))
        known = numbers(value)
        assert known is not None
        return self._numbers(known, rank, isinstance(value, Tensor))

    def _numbers(self, known: Known, rank: int, fixed: bool) -> list[Any]:
        sizes = _sizes(known)
        shape: list[int] = []
        channels = False
        for size, dim in zip((1,) * (rank - len(sizes)) + sizes, self.frame, strict=True):
            wanted = [s for s in dim if s > 0]
            if size != 1 and -1 in dim:
                channels = True
            shape += wanted if size != 1 else [1] * len(wanted)
        if channels and fixed:
            narrowed = known.example
            for d, (size, dim) in enumerate(zip((1,) * (rank - len(sizes)) + sizes, self.frame, strict=True)):
                if size != 1 and dim == (-1,):
                    narrowed = narrowed.narrow(d - rank + len(sizes), 0, 1)
            if bool((narrowed == known.example).all()) and not any(
                len(dim) > 1 for dim in self.frame if -1 in dim
            ):
                return self._numbers(numbers(narrowed), rank, True)  # pyright: ignore
        if channels:
            return self._raw(known, rank)
        full = tuple(shape)
        if fixed and known.example.numel() == 1:
            return [float(known.example)] * len(self.bounds)
        return [Coefficient(full, lambda side: known.numbers.value(side).reshape(-1, *full))] * len(
            self.bounds
        )

    def _raw(self, known: Known, rank: int) -> list[Any]:
        sizes = (1,) * (rank - len(_sizes(known))) + _sizes(known)
        if any(-1 in dim and len(dim) > 1 for dim in self.frame) or len(self.channels) > 1:
            raise self.read.refuse(
                "data with a number for each channel meet a vector with axes that were flattened."
            )
        place = next(d for d, dim in enumerate(self.frame) if -1 in dim)
        shape = tuple(
            s if size != 1 else 1 for size, dim in zip(sizes, self.frame, strict=True) for s in dim if s > 0
        )

        def of(side: Any) -> Tensor:
            value = rows_for(side, known.numbers.value(side))
            value = value.reshape(side.n, *sizes).movedim(place + 1, -1)
            return value.reshape(side.n, *shape, sizes[place])

        raw = Raw(shape, Coefficient((*shape, sizes[place]), of))
        return self._cut(((sizes[place], raw),))

    def _vector(self, weight: Weight, rank: int) -> Expression:
        t = weight.tensor.reshape((1,) * (rank - weight.tensor.ndim) + tuple(weight.tensor.shape))
        shape: list[int] = []
        channels = []
        for d, dim in enumerate(self.frame):
            if -1 in dim:
                if len(dim) > 1 or t.shape[d] not in (1, prod(self.channels)):
                    raise self.read.refuse(
                        f"the parameter {weight.name!r} meets channels that were flattened."
                    )
                channels.append(d)
            else:
                shape += [s if t.shape[d] != 1 else 1 for s in dim]
        place = channels[0] if channels else rank - 1
        if (
            len(channels) > 1
            or t.shape[place] != prod(self.channels)
            or (t.numel() == 1 and prod(self.channels) > 1)
        ):
            raise self.read.refuse(
                f"the parameter {weight.name!r} of shape {tuple(weight.shape)} is shared by all channels: "
                f"its gradient grows with the width, and the tangent kernel has no limit. Give it one "
                f"entry per channel."
            )
        rows = rows_of(t).movedim(place, -1).reshape(-1, t.shape[place])[0]
        self.read.use(weight.name, "coordinate by coordinate")
        average, law = self.read.laws.vector(weight)
        return Vector(tuple(shape), weight.name, rows, average, law)

    def wide(self, pieces: list[Expression]) -> Wide:
        """Return the result of an operation on each piece."""
        starts = [0, *self.bounds]
        widths = [high - low for low, high in zip(starts, self.bounds, strict=False)]
        return Wide(tuple(zip(widths, pieces, strict=True)), self.shape, self.channels, self.dims)


def _sizes(value: Any) -> tuple[int, ...]:
    if isinstance(value, Wide):
        return value.sizes
    return tuple(
        (
            value.example
            if isinstance(value, Known)
            else value.tensor
            if isinstance(value, Weight)
            else value
        ).shape
    )


def _bounds(w: Wide) -> list[int]:
    total, found = 0, []
    for width, _ in w.pieces:
        total += width
        found.append(total)
    return found


def combine(read: Reading, values: list[Any], of: Callable[..., Expression]) -> Wide:
    """Align values and apply a function to the terms of each piece."""
    aligned = Aligned(read, values)
    return aligned.wide([of(*terms) for terms in zip(*aligned.terms, strict=True)])


def shape_of(*terms: Any) -> tuple[int, ...]:
    """Return the positions of several terms together."""
    return tuple(torch.broadcast_shapes(*(t.shape for t in terms if isinstance(t, Expression | Coefficient))))


def scale(term: Any, factor: Any) -> Any:
    """Return a term times a number or numbers."""
    if isinstance(factor, float | int) and factor == 1:
        return term
    if isinstance(term, Expression):
        return Scaled(shape_of(term, factor), factor, term)
    if isinstance(term, float | int) and isinstance(factor, float | int):
        return term * factor
    if not isinstance(term, Coefficient):
        term, factor = factor, term
    if isinstance(factor, Coefficient):
        return Coefficient(shape_of(term, factor), lambda side: term.value(side) * factor.value(side))
    return Coefficient(term.shape, lambda side: term.value(side) * factor)


def total(*terms: Any) -> Expression:
    """Return a sum of vectors and numbers."""
    rank = max(len(t.shape) for t in terms if isinstance(t, Expression | Coefficient))
    parts: list[Expression] = []
    for t in terms:
        if isinstance(t, float | int):
            if t:
                shape = (1,) * rank
                parts.append(
                    Offset(
                        shape,
                        Coefficient(shape, lambda side, t=t, shape=shape: side.numerics.zeros(1, *shape) + t),
                    )
                )
        elif isinstance(t, Coefficient):
            parts.append(Offset(t.shape, t))
        else:
            parts += t.terms if isinstance(t, Sum) else [t]
    return parts[0] if len(parts) == 1 else Sum(shape_of(*parts), tuple(parts))


@rule(aten.add.Tensor, aten.add_.Tensor)
def add(read: Reading, a: Any, b: Any, *, alpha: float = 1) -> Any:
    """Return a sum, bilinear in covariance and tangent kernel."""
    value = combine(read, [a, b], lambda x, y: total(x, scale(y, alpha)))
    return read.write("LinComb", f"{read.name(a)} + {read.name(b)}", value)


@rule(aten.sub.Tensor, aten.sub_.Tensor)
def sub(read: Reading, a: Any, b: Any, *, alpha: float = 1) -> Any:
    """Return a difference."""
    value = combine(read, [a, b], lambda x, y: total(x, scale(y, -alpha)))
    return read.write("LinComb", f"{read.name(a)} - {read.name(b)}", value)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(read: Reading, a: Any, b: Any, alpha: float = 1) -> Any:
    """Return a difference, the other way round."""
    return sub(read, b, a, alpha=alpha)


@rule(aten.neg.default)
def neg(read: Reading, a: Wide) -> Wide:
    """Return a multiple by -1."""
    return read.write("LinComb", f"-{read.name(a)}", a.map(lambda e: scale(e, -1)))


@rule(aten.mul.Tensor, aten.mul_.Tensor, aten.mul.Scalar)
def mul(read: Reading, a: Any, b: Any) -> Any:
    """Return a product: linear with numbers and parameters, of vectors a function of both."""
    if isinstance(a, Weight) and isinstance(b, float | int):
        return Weight(a.name, a.tensor, a.shape, a.factor * b)
    if isinstance(b, Weight) and isinstance(a, float | int):
        return mul(read, b, a)
    value = combine(read, [a, b], lambda x, y: times(read, x, y))
    text = f"{read.name(a)} * {read.name(b)}"
    if isinstance(value.only, Apply):
        return read.write("Nonlin", f"{text}   {taken(value.only)}", value)
    return read.write("LinComb", text, value)


def taken(e: Expression) -> str:
    """Return how expectations of a function are taken, for people."""
    from ntkit.infinite.moments.expectation import how

    return f"[{how(e)}]" if isinstance(e, Apply) else ""


def times(read: Reading, x: Any, y: Any) -> Expression:
    """Return a product of two terms."""
    if (
        isinstance(y, Vector)
        and not y.law.variance
        and not isinstance(x, Vector)
        and isinstance(x, Expression)
    ):
        return Gain(shape_of(x, y), y, x)
    if (
        isinstance(x, Vector)
        and not x.law.variance
        and not isinstance(y, Vector)
        and isinstance(y, Expression)
    ):
        return Gain(shape_of(x, y), x, y)
    if not isinstance(y, Expression) or not isinstance(x, Expression):
        return scale(x, y) if isinstance(x, Expression) else scale(y, x)
    if x is y:
        return read.apply(Function("square", torch.square, find(aten.pow.Tensor_Scalar, (2,), {})), x)
    return read.apply(Function("mul", torch.mul), x, y)


@rule(aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar)
def div(read: Reading, a: Any, b: Any) -> Any:
    """Return a multiple by 1 / b, or a function of two vectors."""
    if isinstance(b, float | int):
        return mul(read, a, 1 / b)
    if isinstance(b, Wide | Weight):
        return function(read, aten.div.Tensor, (a, b), {})
    known = numbers(b)
    assert known is not None
    one = Known(
        1 / known.example,
        Coefficient(known.numbers.shape, lambda side: 1 / known.numbers.value(side)),
        known.moments,
    )
    return mul(read, a, 1 / b if isinstance(b, Tensor) else one)


def function(read: Reading, op: Any, args: tuple, kwargs: dict) -> Wide:
    """Return a function of vectors and numbers, coordinate by coordinate."""
    places = [
        i for i, a in enumerate(args) if isinstance(a, Wide | Known | Weight) or (isinstance(a, Tensor))
    ]
    rest = tuple(a for i, a in enumerate(args) if i not in places)
    dual = find(op, rest, kwargs) if places == [0] else None

    def call(*tensors: Tensor) -> Tensor:
        filled = list(args)
        for place, t in zip(places, tensors, strict=True):
            filled[place] = t
        return op(*filled, **kwargs)

    name = str(op.overloadpacket).removeprefix("aten.").rstrip("_")
    detail = ", ".join([f"{a}" for a in rest] + [f"{k}={v}" for k, v in kwargs.items()])

    def apply(*terms: Any) -> Expression:
        fixed = [t if not isinstance(t, float | int) else torch.tensor(t) for t in terms]
        constants = {i: t for i, t in enumerate(fixed) if isinstance(t, Tensor)}
        moving = [t for t in fixed if not isinstance(t, Tensor)]

        def with_constants(*tensors: Tensor) -> Tensor:
            left = iter(tensors)
            return call(
                *(constants[i].to(tensors[0]) if i in constants else next(left) for i in range(len(fixed)))
            )

        f = Function(name, with_constants if constants else call, dual)
        return read.apply(f, *moving)

    value = combine(read, [args[i] for i in places], apply)
    text = f"{name}({', '.join(read.name(args[i]) for i in places)}{', ' + detail if detail else ''})"
    return read.write("Nonlin", f"{text}   {taken(value.only)}", value)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(read: Reading, a: Wide, mask: Any, value: Any) -> Wide:
    """Numbers in place of some positions."""
    return function(read, aten.masked_fill.Scalar, (a, mask, float(value)), {})


@rule(aten.glu.default)
def glu(read: Reading, a: Wide, dim: int = -1) -> Wide:
    """Return the first half of the channels times the sigmoid of the second."""
    from ntkit.infinite.layers.selections import chunk

    first, second = chunk(read, a, 2, dim)
    return mul(read, first, function(read, aten.sigmoid.default, (second,), {}))


@rule(aten.prelu.default)
def prelu(read: Reading, a: Wide, slopes: Any) -> Wide:
    """relu(h) - slope relu(-h), a slope for each channel."""
    if not isinstance(slopes, Weight):
        raise read.refuse("its slopes are no parameter of the model as it is.")
    rank = len(a.dims)
    slopes = Weight(
        slopes.name, slopes.tensor.reshape(-1, *(1 for _ in range(rank - 2))), slopes.shape, slopes.factor
    )
    f = Function("relu", torch.relu, find(aten.relu.default, (), {}))

    def of(h: Any, s: Any) -> Expression:
        below = times(read, read.apply(f, scale(h, -1)), s)
        return total(read.apply(f, h), scale(below, -1))

    text = f"prelu({read.name(a)}, {slopes.name})   [closed form]"
    return read.write("Nonlin", text, combine(read, [a, slopes], of))
