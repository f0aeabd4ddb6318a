"""Functions of coordinates, whatever they are: one variable or several, with or without numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import find
from ntkit.infinite.layers.arithmetic import add, mul, multiple, taken, times, total
from ntkit.infinite.layers.selections import chunk
from ntkit.infinite.reading.alignment import Term, combine
from ntkit.infinite.reading.rules import Reading, known, rule
from ntkit.infinite.reading.values import Argument, Known, Weight, Wide, compact, numbers, per_channel
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Function
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import Coefficient

aten = torch.ops.aten


# functions of single numbers to which torch 2.9 and older give no tag that says so
_UNTAGGED = ("leaky_relu", "leaky_relu_", "celu_", "elu_", "hardsigmoid_", "hardtanh_", "selu_")


def is_pointwise(op: object) -> bool:
    """Return whether an operation is a function of single numbers."""
    untagged = [getattr(aten, name).default for name in _UNTAGGED]
    return torch.Tag.pointwise in getattr(op, "tags", ()) or op in untagged


def function(read: Reading, op: torch._ops.OpOverload, args: tuple, kwargs: dict) -> Wide:
    """Return a function of vectors and numbers, coordinate by coordinate."""
    places = [i for i, a in enumerate(args) if isinstance(a, Wide | Known | Weight | Tensor)]
    rest = tuple(a for i, a in enumerate(args) if i not in places)
    dual = find(op, rest, kwargs) if places == [0] else None

    def call(*tensors: Tensor) -> Tensor:
        filled = list(args)
        for place, t in zip(places, tensors, strict=True):
            filled[place] = t
        return op(*filled, **kwargs)

    name = str(op.overloadpacket).rpartition(".")[2].rstrip("_")
    detail = ", ".join([f"{a}" for a in rest] + [f"{k}={v}" for k, v in kwargs.items()])

    def apply(*terms: Term) -> Expression:
        constants = {i: torch.tensor(t) for i, t in enumerate(terms) if isinstance(t, float | int)}
        moving = [t for t in terms if isinstance(t, Expression | Coefficient)]

        def with_constants(*tensors: Tensor) -> Tensor:
            left, every = iter(tensors), range(len(terms))
            return call(*(constants[i].to(tensors[0]) if i in constants else next(left) for i in every))

        f = Function(name, with_constants if constants else call, dual)
        return read.apply(f, *moving)

    value = combine(read, [args[i] for i in places], apply)
    text = f"{name}({', '.join(read.name(args[i]) for i in places)}{', ' + detail if detail else ''})"
    return read.write("Nonlin", f"{text}   {taken(value.only)}", value)


@rule(aten.div.Tensor, aten.div.Scalar)
def div(read: Reading, a: Argument, b: Argument) -> Wide | Weight:
    """Return a multiple by 1 / b, or a function of two vectors."""
    if isinstance(b, Wide | Weight):
        return function(read, aten.div.Tensor, (a, b), {})
    if isinstance(b, Known):
        inverse = Coefficient(b.numbers.shape, lambda side: 1 / b.numbers.value(side))
        example = (1 / compact(b.example)).expand(b.example.shape)
        return mul(read, a, Known(example, inverse, b.moments))
    return mul(read, a, 1 / b)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(read: Reading, a: Argument, mask: Argument, value: float | Tensor) -> Wide | Weight:
    """Numbers in place of some positions: linear, where the mask is data."""
    return _chosen(read, aten.masked_fill.Scalar, (a, mask, float(value)), mask, float(value), a)


@rule(aten.where.self)
def where(read: Reading, condition: Argument, a: Argument, b: Argument) -> Wide | Weight:
    """Return one of two vectors or numbers: linear in both, where the condition is data."""
    return _chosen(read, aten.where.self, (condition, a, b), condition, a, b)


@rule(aten.where.ScalarOther)
def where_other(read: Reading, condition: Argument, a: Argument, b: float) -> Wide | Weight:
    """Return a vector, or a number."""
    return _chosen(read, aten.where.ScalarOther, (condition, a, b), condition, a, b)


@rule(aten.where.ScalarSelf)
def where_self(read: Reading, condition: Argument, a: float, b: Argument) -> Wide | Weight:
    """Return a number, or a vector."""
    return _chosen(read, aten.where.ScalarSelf, (condition, a, b), condition, a, b)


def _chosen(
    read: Reading, op: torch._ops.OpOverload, args: tuple, condition: Argument, a: Argument, b: Argument
) -> Wide | Weight:
    """Return condition a + (1 - condition) b if the condition is data and all numbers finite."""
    data = numbers(condition)
    fills = [
        torch.as_tensor(x.example if isinstance(x, Known) else x)
        for x in (a, b)
        if not isinstance(x, Wide | Weight)
    ]
    if data is not None and fills and all(bool(fill.isinf().all()) for fill in fills):
        return _hidden(read, data, a, b)
    if data is None or not all(bool(fill.isfinite().all()) for fill in fills):
        return function(read, op, args, {})

    def share(of: bool) -> Known:
        def value(side: SideValues) -> Tensor:
            return (data.numbers.value(side).bool() == of).to(side.numerics.dtype)

        example = (data.example.bool() == of).double()
        return Known(example, Coefficient(data.numbers.shape, value), data.moments)

    parts: list[Argument] = [
        mul(read, x, share(of)) for x, of in ((a, True), (b, False)) if isinstance(x, Wide | Weight)
    ]
    for x, of in ((a, True), (b, False)):
        if not isinstance(x, Wide | Weight) and (isinstance(x, Known | Tensor) or x):
            parts.append(_number_times(share(of), x))
    if len(parts) > 1:
        return add(read, parts[0], parts[1])
    assert isinstance(parts[0], Wide | Weight)
    return parts[0]


def _hidden(read: Reading, data: Known, a: Argument, b: Argument) -> Wide | Weight:
    """Return a vector plus minus infinity where data hide it: scores of attention."""
    vector, fill, shown = (a, b, True) if isinstance(a, Wide | Weight) else (b, a, False)
    other = numbers(fill if isinstance(fill, Known | Tensor) else torch.tensor(float(fill)))  # pyright: ignore
    assert other is not None
    offset = known(lambda c, x: torch.where(c.bool() == shown, torch.zeros_like(x), x), (data, other), {})
    return add(read, vector, offset)


def _number_times(share: Known, x: Known | Tensor | float) -> Known:
    """Return numbers times those of a share."""
    other = numbers(x if isinstance(x, Known | Tensor) else torch.tensor(float(x)))
    assert other is not None
    shape = torch.broadcast_shapes(share.numbers.shape, other.numbers.shape)

    def value(side: SideValues) -> Tensor:
        one, two = share.numbers.value(side), other.numbers.value(side)
        rank = len(shape) + 1
        one, two = (t.reshape(t.shape[0], *[1] * (rank - t.ndim), *t.shape[1:]) for t in (one, two))
        return one * two

    return Known(
        share.example * other.example, Coefficient(tuple(shape), value), share.moments or other.moments
    )


@rule(aten.glu.default)
def glu(read: Reading, a: Wide, dim: int = -1) -> Wide | Weight:
    """Return the first half of the channels times the sigmoid of the second."""
    first, second = chunk(read, a, 2, dim)
    return mul(read, first, function(read, aten.sigmoid.default, (second,), {}))


@rule(aten.prelu.default)
def prelu(read: Reading, a: Wide, slopes: object) -> Wide:
    """relu(h) - slope relu(-h), a slope for each channel."""
    if not isinstance(slopes, Weight):
        raise read.refuse("its slopes are not a parameter of the model as it is.")
    f = Function("relu", torch.relu, find(aten.relu.default, (), {}))

    def of(h: Expression, s: Term) -> Expression:
        below = times(read, read.apply(f, multiple(h, -1)), s)
        return total(read.apply(f, h), multiple(below, -1))

    text = f"prelu({read.name(a)}, {slopes.name})   [closed form]"
    return read.write("Nonlin", text, combine(read, [a, per_channel(slopes, len(a.dims) - 2)], of))
