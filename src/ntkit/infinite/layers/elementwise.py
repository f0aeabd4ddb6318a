"""Functions of coordinates, whatever they are: one variable or several, with or without numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import find
from ntkit.infinite.layers.alignment import Term, combine
from ntkit.infinite.layers.arithmetic import mul, multiple, taken, times, total
from ntkit.infinite.layers.selections import chunk
from ntkit.infinite.moments.expression import Expression
from ntkit.infinite.moments.functions import Function
from ntkit.infinite.moments.vectors import Coefficient
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Argument, Known, Weight, Wide, per_channel

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


@rule(aten.div.Tensor, aten.div_.Tensor, aten.div.Scalar)
def div(read: Reading, a: Argument, b: Argument) -> Wide | Weight:
    """Return a multiple by 1 / b, or a function of two vectors."""
    if isinstance(b, Wide | Weight):
        return function(read, aten.div.Tensor, (a, b), {})
    if isinstance(b, Known):
        inverse = Coefficient(b.numbers.shape, lambda side: 1 / b.numbers.value(side))
        return mul(read, a, Known(1 / b.example, inverse, b.moments))
    return mul(read, a, 1 / b)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor)
def masked_fill(read: Reading, a: Wide, mask: Known | Tensor, value: float | Tensor) -> Wide:
    """Numbers in place of some positions."""
    return function(read, aten.masked_fill.Scalar, (a, mask, float(value)), {})


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
