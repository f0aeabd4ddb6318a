"""Sums, multiples and products of vectors, numbers and parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import find
from ntkit.infinite.layers import rotary
from ntkit.infinite.moments.expectation import how
from ntkit.infinite.reading.alignment import Term, combine, shape_of
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Argument, Weight, Wide
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply, Function
from ntkit.infinite.variables.vectors import Coefficient, Gain, Multiple, Offset, Vector, VectorSum

aten = torch.ops.aten
FEW = 8  # terms up to which a sum is opened in another: sums of sums keep deep residual networks linear


def multiple(vector: Expression, factor: Coefficient | float) -> Expression:
    """Return a vector times a number or numbers."""
    if isinstance(factor, float | int) and factor == 1:
        return vector
    return Multiple(shape_of(vector, factor), factor, vector)


def scale(term: Term, factor: Coefficient | float) -> Term:
    """Return a term times a number or numbers."""
    if isinstance(term, Expression):
        return multiple(term, factor)
    if isinstance(factor, float | int) and factor == 1:
        return term
    if isinstance(term, float | int) and isinstance(factor, float | int):
        return term * factor
    if isinstance(term, Coefficient) and isinstance(factor, Coefficient):
        return Coefficient(shape_of(term, factor), lambda side: term.value(side) * factor.value(side))
    numbers, number = (term, factor) if isinstance(term, Coefficient) else (factor, term)
    assert isinstance(numbers, Coefficient) and isinstance(number, float | int)
    return Coefficient(numbers.shape, lambda side: numbers.value(side) * number)


def total(*terms: Term) -> Expression:
    """Return a sum of vectors and numbers."""
    ones = (1,) * max(len(t.shape) for t in terms if isinstance(t, Expression | Coefficient))
    parts: list[Expression] = []
    for t in terms:
        if isinstance(t, Expression):
            parts += t.terms if type(t) is VectorSum and len(t.terms) <= FEW else [t]
        elif isinstance(t, Coefficient):
            parts.append(Offset(t.shape, t))
        elif t:
            number = Coefficient(ones, lambda side, t=t: side.numerics.zeros(1, *ones) + t)
            parts.append(Offset(ones, number))
    return parts[0] if len(parts) == 1 else VectorSum(shape_of(*parts), tuple(parts))


def taken(e: Expression) -> str:
    """Return how expectations of a function are taken, for people."""
    return f"[{how(e)}]" if isinstance(e, Apply) else ""


def times(read: Reading, x: Term, y: Term) -> Expression:
    """Return a product of two terms, at least one of them a vector."""
    for h, g in ((x, y), (y, x)):
        if isinstance(g, Vector) and not g.law.variance:
            if isinstance(h, Expression) and not isinstance(h, Vector):
                return Gain(shape_of(h, g), g, h)
    if isinstance(x, Expression) and isinstance(y, Expression):
        if x is y:
            return read.apply(Function("square", torch.square, find(aten.pow.Tensor_Scalar, (2,), {})), x)
        return read.apply(Function("mul", torch.mul), x, y)
    vector, number = (x, y) if isinstance(x, Expression) else (y, x)
    assert isinstance(vector, Expression) and not isinstance(number, Expression)
    return multiple(vector, number)


def add(read: Reading, a: Argument, b: Argument, *, alpha: float = 1) -> Wide:
    """Return a sum, bilinear in covariance and tangent kernel."""
    value = combine(read, [a, b], lambda x, y: total(x, scale(y, alpha)))
    return read.write("LinComb", f"{read.name(a)} + {read.name(b)}", value)


@rule(aten.add.Tensor)
def add_any(read: Reading, a: Argument, b: Argument, *, alpha: float = 1) -> Wide | Weight:
    """Return a sum; of a weight and a number, such a weight."""
    if isinstance(a, Weight) and isinstance(b, float | int):
        return a.plus(alpha * b)
    if isinstance(b, Weight) and isinstance(a, float | int):
        return b.times(alpha).plus(a)
    return add(read, a, b, alpha=alpha)


def sub(read: Reading, a: Argument, b: Argument, *, alpha: float = 1) -> Wide:
    """Return a difference."""
    value = combine(read, [a, b], lambda x, y: total(x, scale(y, -alpha)))
    return read.write("LinComb", f"{read.name(a)} - {read.name(b)}", value)


@rule(aten.sub.Tensor)
def sub_any(read: Reading, a: Argument, b: Argument, *, alpha: float = 1) -> Wide | Weight:
    """Return a difference; of a weight and a number, such a weight."""
    if isinstance(a, Weight | float | int) and isinstance(b, Weight | float | int):
        return add_any(read, a, b, alpha=-alpha)
    return sub(read, a, b, alpha=alpha)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def rsub(read: Reading, a: Argument, b: Argument, alpha: float = 1) -> Wide | Weight:
    """Return a difference, the other way round."""
    return sub_any(read, b, a, alpha=alpha)


@rule(aten.neg.default)
def neg(read: Reading, a: Wide) -> Wide:
    """Return a multiple by -1."""
    return read.write("LinComb", f"-{read.name(a)}", a.map(lambda e: multiple(e, -1)))


@rule(aten.mul.Tensor, aten.mul.Scalar, aten.multiply.Tensor, aten.multiply.Scalar)
def mul(read: Reading, a: Argument, b: Argument) -> Wide | Weight:
    """Return a product: linear with numbers and parameters, of vectors a function of both."""
    if isinstance(a, Weight) and isinstance(b, float | int):
        return a.times(b)
    if isinstance(b, Weight) and isinstance(a, float | int):
        return mul(read, b, a)
    for vector, numbers in ((a, b), (b, a)):
        if isinstance(vector, Wide) and isinstance(numbers, Tensor) and rotary.varies(vector, numbers):
            return rotary.scaled(read, vector, numbers)
    value = combine(read, [a, b], lambda x, y: times(read, x, y))
    text = f"{read.name(a)} * {read.name(b)}"
    if isinstance(value.only, Apply):
        return read.write("Nonlin", f"{text}   {taken(value.only)}", value)
    return read.write("LinComb", text, value)
