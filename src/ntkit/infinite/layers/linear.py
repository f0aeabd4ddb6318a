"""Products with a weight: linear layers, matrix products and embeddings, with or without positions."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.layers.arithmetic import add
from ntkit.infinite.layers.attention import between
from ntkit.infinite.reading.alignment import of_parameters
from ntkit.infinite.reading.rules import Reading, rows_of, rule
from ntkit.infinite.reading.values import Known, Operand, Weight, Wide, numbered, numbers
from ntkit.infinite.variables.algebra import Need
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.positions import Shape
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import Coefficient, Line, Raw, VectorSum, WeightMatrix, expanded

aten = torch.ops.aten


@dataclass(frozen=True)
class PositionMean:
    """The sum over channels and, behind the ``leading`` axes of positions, over equal positions."""

    leading: int
    scale = 1.0  # the mean over positions is taken where they are summed

    def needs(self, other: PositionMean, need: Need) -> Need:
        """Return which pairs of positions of the inputs it takes."""
        return "equal" if need == "equal" or not (self.leading or other.leading) else "all"

    def sum(self, other: PositionMean, inner: Tensor, a: Shape, b: Shape, batch: int, need: Need) -> Tensor:
        """Return the mean over what is contracted of a kernel of the inputs."""
        if self.needs(other, need) == "equal":
            axes = list(range(batch + self.leading, inner.ndim))
            return inner.mean(axes) if axes else inner
        contracted = len(a) - self.leading
        first, second = batch + self.leading, batch + len(a) + other.leading
        for axis in range(contracted):
            size = max(inner.shape[first], inner.shape[second - axis])
            shape = list(inner.shape)
            shape[first], shape[second - axis] = size, size
            inner = torch.diagonal(inner.expand(shape), dim1=first, dim2=second - axis).mean(-1)
        return inner


def vector_of(read: Reading, value: object) -> tuple[tuple[tuple[float, Expression], ...], Wide]:
    """Return the vectors along the last dimension of a value, and the frame of what is leading.

    The frame holds the sizes and dimensions of the leading positions; its pieces mean nothing.
    """
    if isinstance(value, Weight) and value.tensor.ndim > 1:
        value = of_parameters(read, value)
    if isinstance(value, Wide):
        value = value.canonical()
        if len(value.channels) != sum(a < 0 for a in value.dims[-1]):
            raise read.refuse("it mixes positions by a weight, or sums over some of the channels only.")
        leading = sum(a >= 0 for dim in value.dims[:-1] for a in dim)
        inputs = tuple((width / value.width, expanded(e, value.shape)) for width, e in value.pieces)
        return inputs, Wide((), value.shape[:leading], (), value.dims[:-1])
    data = numbers(value)
    if data is None or data.moments:
        raise read.refuse("its input is not a vector of the network.")
    sizes = tuple(data.example.shape[:-1])
    shape = tuple(s for s in sizes if s != 1)
    frame = Wide((), shape, (), numbered([[True] if s != 1 else [] for s in sizes]))
    if isinstance(value, Tensor) and not value.any():
        return (), frame
    full = (*shape, data.example.shape[-1])
    raw = Raw(shape, Coefficient(full, lambda side: data.rows(side).reshape(-1, *full)))
    return ((1.0, raw),), frame


def matrix_of(read: Reading, weight: Weight, out: int, fan_in: int) -> tuple[WeightMatrix, Tensor]:
    """Return a weight as the matrix that a product sees, ``out`` its dimension of outputs, and its rows."""
    t = weight.tensor.movedim(out, 0)
    row = prod(weight.shape[1:])
    transposed = t.shape[0] > 1 and t.stride(0) < max(t.stride()[1:], default=0)
    start = t.storage_offset() // row if transposed else t.storage_offset() % row
    read.use(weight.name, "transposed in a product" if transposed else "in a product")
    law = read.laws.matrix(weight, fan_in, read.path)
    matrix = WeightMatrix(weight.name, transposed, (start, prod(t.shape[1:])), law)
    return matrix, rows_of(t[(slice(None), *(0,) * (t.ndim - 1))])


@rule(aten.linear.default)
def linear(read: Reading, h: Operand, weight: object, bias: Weight | Wide | None = None) -> Wide:
    """Y = h W^T + b."""
    if isinstance(bias, Wide):  # of several parameters
        return add(read, linear(read, h, weight), bias)
    if not isinstance(weight, Weight) or weight.tensor.ndim != 2:
        raise read.refuse("its weight is not a parameter of the model as it is (or a slice of one).")
    return product(read, h, weight, 0, bias)


def product(read: Reading, h: Operand, weight: Weight, out: int, bias: Weight | None) -> Wide:
    """Return W h + b, with ``out`` the dimension of the weight that counts the outputs."""
    inputs, frame = vector_of(read, h)
    fan_in = weight.tensor.shape[1 - out]
    read.starts(h, weight, fan_in)
    matrix, rows = matrix_of(read, weight, out, fan_in)
    leading = len(frame.shape)
    value: Expression = Line(frame.shape, matrix, rows, inputs, PositionMean(leading))
    text = f"{weight.name} {read.name(h)}"
    if bias is not None:
        value = VectorSum(frame.shape, (value, read.bias(bias, fan_in, leading)))
        text += f" + {bias.name}"
    width = weight.tensor.shape[out]
    wide = Wide(((width, value),), frame.shape, (width,), (*frame.dims, (-1,)))
    return read.write("MatMul", f"{text}   (fan_in {fan_in})", wide, "g")


@rule(aten.addmm.default)
def addmm(read: Reading, bias: Weight, a: Operand, b: object, *, beta: float = 1, alpha: float = 1) -> Wide:
    """Y = b + A B."""
    if not isinstance(b, Weight) or beta != 1 or alpha != 1:
        raise read.refuse("of addmm only b + h W is known, with beta = alpha = 1.")
    return product(read, a, b, 1, bias)


@rule(aten.mm.default, aten.matmul.default, aten.bmm.default)
def matmul(read: Reading, a: Operand, b: Operand) -> Wide | Known:
    """Y = h W with a raw parameter; products of two vectors are in attention.py."""
    if isinstance(b, Weight) and b.tensor.ndim == 2 and not isinstance(a, Weight):
        return product(read, a, b, 1, None)
    return between(read, a, b)


@rule(aten.embedding.default)
def embedding(read: Reading, weight: object, tokens: object, padding: int = -1, *_: object) -> Wide:
    """K(t, t') = sigma_w^2 where the tokens are equal (entries of the table have variance one)."""
    data = numbers(tokens)
    if not isinstance(weight, Weight) or not isinstance(data, Known):
        raise read.refuse("its table is not a parameter of the model, or its tokens depend on weights.")
    count, width = weight.tensor.shape
    sizes = tuple(data.example.shape)
    shape = tuple(s for s in sizes if s != 1)
    full = (*shape, count)

    def of(side: SideValues) -> torch.Tensor:
        index = data.numbers.value(side).reshape(-1, *shape)
        hot = torch.nn.functional.one_hot(index, count).to(side.numerics.dtype)
        if padding >= 0:
            hot[..., padding] = 0
        return hot * count**0.5

    matrix, rows = matrix_of(read, weight, 1, 1)
    fixed = isinstance(tokens, torch.Tensor) and not bool((tokens == padding).any())
    raw = Raw(shape, Coefficient(full, of), data.example.reshape(shape) if fixed else None)
    line = Line(shape, matrix, rows, ((1.0, raw),), PositionMean(len(shape)))
    dims = numbered([[True] if s != 1 else [] for s in sizes])
    wide = Wide(((width, line),), shape, (width,), (*dims, (-1,)))
    text = f"{weight.name}[{read.name(tokens)}]   (embedding of {count} tokens)"
    return read.write("MatMul", text, wide, "g")
