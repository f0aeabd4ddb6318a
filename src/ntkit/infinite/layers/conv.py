"""Convolutions: covariances summed along the diagonals of pairs of positions, one axis after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ntkit.infinite.layers.elementwise import times
from ntkit.infinite.layers.linear import matrix_of
from ntkit.infinite.layers.views import refactored, single
from ntkit.infinite.moments.vectors import (
    Coefficient,
    Expression,
    Line,
    Move,
    Moved,
    Raw,
    Shape,
    Sum,
    Vector,
)
from ntkit.infinite.reading.rules import Reading, rows_of, rule
from ntkit.infinite.reading.values import Weight, Wide, numbers, rows_for

aten = torch.ops.aten
_SHORT = 64  # numbers along an axis


@dataclass(frozen=True)
class Window:
    """The sum over a window along each axis, with ``padding`` zeros ``(before, after)``."""

    kernel: Shape
    stride: Shape
    padding: tuple[tuple[int, int], ...]
    dilation: Shape

    @property
    def scale(self) -> float:
        """What makes a mean of the sum."""
        return 1 / prod(self.kernel)

    def needs(self, other: Window, need: str) -> str:
        """Return which pairs of positions of the inputs it takes."""
        return need if self == other else "all"

    def size(self, axis: int, n: int) -> int:
        """Return the number of positions of the result along an axis."""
        span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (n + sum(self.padding[axis]) - span) // self.stride[axis] + 1

    def sum(self, other: Window, inner: Tensor, a: Shape, b: Shape, batch: int, need: str) -> Tensor:
        """Return the sum over the window of a kernel of the inputs, at windows around the positions."""
        lead = inner.shape[:batch]
        if self.needs(other, need) == "equal":
            inner = inner.expand(*lead, *a)
            for axis in range(len(a)):
                inner = _band(inner, self, axis, batch + axis)
            return inner
        inner = inner.expand(*lead, *a, *b)
        if self == other:
            for axis in range(len(a)):
                inner = _window(inner, self, axis, (batch + axis, batch + len(a) + axis))
            return inner
        return self._crossed(other, inner, len(a), batch, need)

    def _crossed(self, other: Window, inner: Tensor, rank: int, batch: int, need: str) -> Tensor:
        """Return the same for one weight used with two strides, paddings or dilations."""
        total = None
        for offsets in (
            torch.cartesian_prod(*(torch.arange(k) for k in self.kernel)).reshape(-1, rank).tolist()
        ):
            term = inner
            for axis, j in enumerate(offsets):
                term = _shifted(term, self, axis, batch + axis, j)
                term = _shifted(term, other, axis, batch + rank + axis, j)
            total = term if total is None else total + term
        assert total is not None
        if need == "equal":
            for i in range(rank):
                total = torch.diagonal(total, dim1=batch, dim2=batch + rank - i)
        return total


def _shifted(t: Tensor, window: Window, axis: int, dim: int, j: int) -> Tensor:
    size = window.size(axis, t.shape[dim])
    t = _zeros(t, dim, *window.padding[axis])
    start = j * window.dilation[axis]
    return t[
        (slice(None),) * dim
        + (slice(start, start + (size - 1) * window.stride[axis] + 1, window.stride[axis]),)
    ]


def _zeros(t: Tensor, dim: int, before: int, after: int) -> Tensor:
    return F.pad(t, [0, 0] * (t.ndim - dim - 1) + [before, after]) if before or after else t


def _band(t: Tensor, window: Window, axis: int, dim: int) -> Tensor:
    """Sum over the window along one axis, for short axes by a product with a matrix of zeros and ones.

    That is fast, and what comes before it is computed once, not for each place of the window.
    """
    n = t.shape[dim]
    if n > _SHORT or dim < t.ndim - 2:
        return _window(t, window, axis, (dim,))
    size, taps = window.size(axis, n), torch.arange(window.kernel[axis]) * window.dilation[axis]
    seen = torch.arange(size)[:, None] * window.stride[axis] + taps - window.padding[axis][0]
    band = (seen[:, :, None] == torch.arange(n)).any(1).to(t.device, t.dtype)
    return t @ band.T if dim == t.ndim - 1 else band @ t


def _window(t: Tensor, window: Window, axis: int, dims: tuple[int, ...]) -> Tensor:
    """Sum over the window along one axis, or along the diagonal of two."""
    size, stride, dilation = window.size(axis, t.shape[dims[0]]), window.stride[axis], window.dilation[axis]
    widths = [0] * (2 * (t.ndim - min(dims)))
    for dim in dims:
        at = 2 * (t.ndim - 1 - dim)
        widths[at : at + 2] = window.padding[axis]
    t = F.pad(t, widths) if any(widths) else t
    total = None
    for j in range(window.kernel[axis]):
        part = slice(j * dilation, j * dilation + (size - 1) * stride + 1, stride)
        seen = t[tuple(part if d in dims else slice(None) for d in range(t.ndim))]
        total = seen if total is None else total + seen
    assert total is not None
    return total


def _frame(read: Reading, value: Any, rank: int) -> tuple[tuple[tuple[float, Expression], ...], Shape]:
    """Return the vectors at the pixels of an input ``[1, channels, *pixels]``, and the number of pixels."""
    if isinstance(value, Wide):
        value = value.canonical()
        dims = value.dims[-rank:]
        if value.dims[-rank - 1] != tuple(-j - 1 for j in range(len(value.channels))) or any(
            x < 0 for d in dims for x in d
        ):
            raise read.refuse("its channels do not lie in the dimension of channels.")
        for i in range(rank):
            value, _ = single(value, len(value.dims) - rank + i)
        if len(value.shape) != rank:
            raise read.refuse("it has positions besides the pixels.")
        total = sum(width for width, _ in value.pieces)
        return tuple((width / total, e.expanded(value.shape)) for width, e in value.pieces), value.shape
    data = numbers(value)
    if data is None or data.moments:
        raise read.refuse("its input is no picture.")
    example = data.example
    pixels = tuple(example.shape[-rank:])
    full = (*pixels, example.shape[-rank - 1])

    def of(side: Any) -> Tensor:
        value = rows_for(side, data.numbers.value(side))
        return value.reshape(side.n, full[-1], *pixels).movedim(1, -1)

    return ((1.0, Raw(pixels, Coefficient(full, of))),), pixels


def _many(value: int | Sequence[int], rank: int) -> Shape:
    values = tuple([value] * rank if isinstance(value, int) else value)
    return values if len(values) == rank else values * rank


def convolved(
    read: Reading,
    x: Any,
    weight: Any,
    bias: Any,
    window: Window,
    groups: int,
    out: int = 0,
    upsample: Shape = (),
) -> Wide:
    """Return the line of a convolution."""
    rank = len(window.kernel)
    if not isinstance(weight, Weight):
        raise read.refuse("its weight is no parameter of the model as it is.")
    inputs, pixels = _frame(read, x, rank)
    if upsample and any(s > 1 for s in upsample):
        pixels = tuple((n - 1) * s + 1 for n, s in zip(pixels, upsample, strict=True))
        move = Move((apart, upsample), inputs[0][1].shape, pixels, True, True)
        inputs = tuple((share, Moved(pixels, move, e)) for share, e in inputs)
    channels = weight.tensor.shape[1 - out] * (groups if not out else 1)
    width = weight.tensor.shape[out] * (groups if out else 1)
    if groups > 1:
        if isinstance(x, Wide) and channels == groups:
            return depthwise(read, x, weight, bias, window)
        if len(inputs) > 1 or not isinstance(x, Wide):
            raise read.refuse("groups of channels of data, or of concatenated vectors, are not alike.")
    fan_in = channels // groups * prod(window.kernel)
    read.starts(x, weight, fan_in)
    matrix, rows = matrix_of(read, weight, out, fan_in)
    if out and groups > 1:
        rows = rows_of(
            weight.tensor[..., *([0] * rank)].reshape(groups, -1, weight.tensor.shape[1])[:, 0]
        ).reshape(-1)
    shape = tuple(window.size(i, n) for i, n in enumerate(pixels))
    value: Expression = Line(shape, matrix, rows, inputs, window)
    text = f"{weight.name} * {read.name(x)}"
    if bias is not None:
        value = Sum(shape, (value, read.bias(bias, fan_in, rank)))
        text += f" + {bias.name}"
    dims = ((), (-1,), *((i,) for i in range(rank)))
    wide = Wide(((width, value),), shape, (width,), dims)
    text += f"   (convolution {'x'.join(map(str, window.kernel))}, fan_in {fan_in})"
    return refactored(read, read.write("MatMul", text, wide, "g"), wide.sizes)


def apart(t: Tensor, steps: Shape) -> Tensor:
    """Put zeros between the positions of the last axes."""
    lead = t.ndim - len(steps)
    pixels = [(n - 1) * s + 1 for n, s in zip(t.shape[lead:], steps, strict=True)]
    wide = t.new_zeros(*t.shape[:lead], *pixels)
    wide[(..., *(slice(None, None, s) for s in steps))] = t
    return wide


def depthwise(read: Reading, x: Wide, weight: Weight, bias: Any, window: Window) -> Wide:
    """Return a convolution of each channel with its own kernel: products with vectors of parameters.

    Each of the k entries of the kernels is a vector over the channels, of variance sigma_w^2 / k.
    """
    rank = len(window.kernel)
    if weight.tensor.shape[0] != prod(x.channels):
        raise read.refuse("a depthwise convolution with several outputs a channel.")
    read.use(weight.name, "in a depthwise convolution")
    x = x.canonical()
    for i in range(rank):
        x, _ = single(x, len(x.dims) - rank + i)
    shape = tuple(window.size(i, n) for i, n in enumerate(x.shape))
    size = prod(window.kernel)
    law = read.laws.depthwise(weight, size, read.path)
    kernels = weight.tensor.reshape(weight.tensor.shape[0], -1)

    def of(e: Expression) -> Expression:
        terms = []
        for j, offsets in enumerate(
            torch.cartesian_prod(*map(torch.arange, window.kernel)).reshape(-1, rank).tolist()
        ):
            entry = Vector((1,) * rank, weight.name, rows_of(kernels[:, j]), 0.0, law)
            move = Move((windowed, window, tuple(offsets)), x.shape, shape, True, True)
            terms.append(times(read, entry, Moved(shape, move, e.expanded(x.shape))))
        if bias is not None:
            terms.append(read.bias(bias, size, rank))
        return Sum(shape, tuple(terms))

    pieces = tuple((w, of(e)) for w, e in x.pieces)
    wide = Wide(pieces, shape, x.channels, ((), (-1,), *((i,) for i in range(rank))))
    text = f"{weight.name} * {read.name(x)}   (depthwise)   [product of independent factors]"
    return refactored(read, read.write("Nonlin", text, wide), wide.sizes)


def windowed(t: Tensor, window: Window, offsets: Shape) -> Tensor:
    """Return what one entry of a kernel sees, for the last axes."""
    for axis, j in enumerate(offsets):
        t = _shifted(t, window, axis, t.ndim - len(offsets) + axis, j)
    return t


def _window_of(weight: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    kernel = tuple(weight.tensor.shape[2:])
    rank = len(kernel)
    stride, dilation = _many(stride, rank), _many(dilation, rank)
    if padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return Window(kernel, stride, tuple((s // 2, s - s // 2) for s in spans), dilation)
    padding = (0,) * rank if padding == "valid" else _many(padding, rank)
    return Window(kernel, stride, tuple((p, p) for p in padding), dilation)


@rule(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
def conv(
    read: Reading,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Wide:
    """Return a convolution: K(p, q) = sigma_w^2 / k sum_j E[h h'](p + j, q + j)."""
    return convolved(read, x, weight, bias, _window_of(weight, stride, padding, dilation), groups)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(
    read: Reading,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Wide:
    """Return a transposed convolution: zeros between the pixels, then a convolution of stride 1."""
    kernel = tuple(weight.tensor.shape[2:])
    rank = len(kernel)
    padding, output_padding, dilation = (_many(v, rank) for v in (padding, output_padding, dilation))
    sides = tuple(
        (d * (k - 1) - p, d * (k - 1) - p + o)
        for d, k, p, o in zip(dilation, kernel, padding, output_padding, strict=True)
    )
    window = Window(kernel, (1,) * rank, sides, dilation)
    return convolved(read, x, weight, bias, window, groups, out=1, upsample=_many(stride, rank))


@rule(aten.convolution.default)
def convolution(
    read: Reading,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Wide:
    """Return a convolution of either kind."""
    if transposed:
        return conv_transpose(read, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return conv(read, x, weight, bias, stride, padding, dilation, groups)
