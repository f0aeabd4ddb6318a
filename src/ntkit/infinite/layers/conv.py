"""Convolutions: covariances summed along the diagonals of pairs of positions, one axis after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

from ntkit.infinite.layers.arithmetic import times
from ntkit.infinite.layers.linear import matrix_of
from ntkit.infinite.layers.views import pixels, refactored
from ntkit.infinite.reading.rules import Reading, rows_of, rule
from ntkit.infinite.reading.values import Operand, Weight, Wide, numbers
from ntkit.infinite.variables.algebra import Need
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import KernelSum, unrelated
from ntkit.infinite.variables.positions import Move, Shape
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import (
    Coefficient,
    Line,
    Moved,
    Raw,
    Vector,
    VectorSum,
    expanded,
)

aten = torch.ops.aten
Parameters = tuple[Weight, Weight | None]  # weight and bias
PerAxis = int | Sequence[int]
Steps = Any  # stride, padding, ... in the order of the operation's schema
_SHORT_AXIS = 64  # numbers along an axis


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

    def needs(self, other: Window, need: Need) -> Need:
        """Return which pairs of positions of the inputs it takes."""
        return need if self == other else "all"

    def size(self, axis: int, n: int) -> int:
        """Return the number of positions of the result along an axis."""
        span = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (n + sum(self.padding[axis]) - span) // self.stride[axis] + 1

    def sum(self, other: Window, inner: Tensor, a: Shape, b: Shape, batch: int, need: Need) -> Tensor:
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

    def _crossed(self, other: Window, inner: Tensor, rank: int, batch: int, need: Need) -> Tensor:
        """Return the same for one weight used with two strides, paddings or dilations."""
        total = None
        for offsets in product(*map(range, self.kernel)):
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
    if any(window.padding[axis]):
        t = F.pad(t, [0, 0] * (t.ndim - dim - 1) + [*window.padding[axis]])
    start = j * window.dilation[axis]
    part = slice(start, start + (size - 1) * window.stride[axis] + 1, window.stride[axis])
    return t[(slice(None),) * dim + (part,)]


def _band(t: Tensor, window: Window, axis: int, dim: int) -> Tensor:
    """Sum over the window along one axis, for short axes by a product with a matrix of zeros and ones.

    That is fast, and what comes before it is computed once, not for each place of the window.
    """
    n = t.shape[dim]
    if n > _SHORT_AXIS or dim < t.ndim - 2:
        return _window(t, window, axis, (dim,))
    ones = _ones if get_proxy_mode() is None else _ones.__wrapped__
    band = ones(window, axis, n, t.device, t.dtype)
    return t @ band.T if dim == t.ndim - 1 else band @ t


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _ones(window: Window, axis: int, n: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return what a window along an axis of n sees, ``[size, n]``: one where it does, else zero."""
    size, taps = window.size(axis, n), torch.arange(window.kernel[axis]) * window.dilation[axis]
    seen = torch.arange(size)[:, None] * window.stride[axis] + taps - window.padding[axis][0]
    return (seen[:, :, None] == torch.arange(n)).any(1).to(device, dtype)


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


def _frame(read: Reading, value: Operand, rank: int) -> tuple[tuple[tuple[float, Expression], ...], Shape]:
    """Return the vectors at the pixels of an input ``[1, channels, *pixels]``, and the number of pixels."""
    if isinstance(value, Wide):
        value = pixels(read, value, rank)
        if value.dims[-rank - 1] != tuple(-j - 1 for j in range(len(value.channels))):
            raise read.refuse("its channels do not lie in the dimension of channels.")
        inputs = tuple((width / value.width, expanded(e, value.shape)) for width, e in value.pieces)
        return inputs, value.shape
    data = numbers(value)
    if data is None or data.moments:
        raise read.refuse("its input is not a picture.")
    channels, *sizes = data.example.shape[-rank - 1 :]

    def of(side: SideValues) -> Tensor:
        return data.rows(side).reshape(side.n, channels, *sizes).movedim(1, -1)

    return ((1.0, Raw(tuple(sizes), Coefficient((*sizes, channels), of))),), tuple(sizes)


def _many(value: PerAxis, rank: int) -> Shape:
    values = tuple([value] * rank if isinstance(value, int) else value)
    return values if len(values) == rank else values * rank


def convolved(
    read: Reading, x: Operand, layer: Parameters, window: Window, groups: int, upsample: Shape | None = None
) -> Wide:
    """Return the line of a convolution, of a transposed one with ``upsample`` zeros between the pixels."""
    rank, (weight, bias), out = len(window.kernel), layer, int(upsample is not None)
    inputs, sizes = _frame(read, x, rank)
    move = None
    if upsample and any(s > 1 for s in upsample):
        sizes = tuple((n - 1) * s + 1 for n, s in zip(sizes, upsample, strict=True))
        move = Move((apart, upsample), inputs[0][1].shape, sizes, True)
        inputs = tuple((share, Moved(sizes, move, e)) for share, e in inputs)
    channels = weight.tensor.shape[1 - out] * (groups if not out else 1)
    width = weight.tensor.shape[out] * (groups if out else 1)
    if groups > 1:
        if isinstance(x, Wide) and channels == groups:
            x = pixels(read, x, rank)
            return depthwise(read, x if move is None else x.moved(move), layer, window)
        if len(inputs) > 1 or not isinstance(x, Wide):
            raise read.refuse("groups of channels of data, or of concatenated vectors, are not alike.")
    fan_in = channels // groups * prod(window.kernel)
    read.starts(x, weight, fan_in)
    matrix, rows = matrix_of(read, weight, out, fan_in)
    if out and groups > 1:
        entries = weight.tensor[..., *([0] * rank)].reshape(groups, -1, weight.tensor.shape[1])
        rows = rows_of(entries[:, 0]).reshape(-1)
    shape = tuple(window.size(i, n) for i, n in enumerate(sizes))
    value: Expression = Line(shape, matrix, rows, inputs, window)
    text = f"{weight.name} * {read.name(x)}"
    if bias is not None:
        value = VectorSum(shape, (value, read.bias(bias, fan_in, rank)))
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


def depthwise(read: Reading, x: Wide, layer: Parameters, window: Window) -> Wide:
    """Return a convolution of each channel of `pixels` with its own kernel: products with parameters.

    Each of the k entries of the kernels is a vector over the channels, of variance sigma_w^2 / k.
    """
    rank, (weight, bias) = len(window.kernel), layer
    if weight.tensor.shape[0] != prod(x.channels):
        raise read.refuse("a depthwise convolution with several outputs per channel.")
    read.use(weight.name, "in a depthwise convolution")
    shape = tuple(window.size(i, n) for i, n in enumerate(x.shape))
    size = prod(window.kernel)
    law = read.laws.depthwise(weight, size, read.path)
    kernels = weight.tensor.reshape(weight.tensor.shape[0], -1)

    places = list(product(*map(range, window.kernel)))
    entries = [Vector((1,) * rank, weight.name, rows_of(kernels[:, j]), 0.0, law) for j in range(size)]
    moves = [Move((windowed, window, offsets), x.shape, shape, True) for offsets in places]

    def of(e: Expression) -> Expression:
        inner = expanded(e, x.shape)
        seen = (Moved(shape, move, inner) for move in moves)
        terms = tuple(times(read, w, part) for w, part in zip(entries, seen, strict=True))
        value: Expression = VectorSum(shape, terms)
        if unrelated(tuple(entries), (e,)):
            value = KernelSum(shape, terms, inner, window, law, tuple(w.key for w in entries))
        return value if bias is None else VectorSum(shape, (value, read.bias(bias, size, rank)))

    wide = replace(x.map(of, shape), dims=((), (-1,), *((i,) for i in range(rank))))
    text = f"{weight.name} * {read.name(x)}   (depthwise)   [product of independent factors]"
    return refactored(read, read.write("Nonlin", text, wide), wide.sizes)


def windowed(t: Tensor, window: Window, offsets: Shape) -> Tensor:
    """Return what one entry of a kernel sees, for the last axes."""
    for axis, j in enumerate(offsets):
        t = _shifted(t, window, axis, t.ndim - len(offsets) + axis, j)
    return t


def _kernel(read: Reading, weight: object) -> Shape:
    """Return the sizes of the window of a weight."""
    if not isinstance(weight, Weight):
        raise read.refuse("its weight is not a parameter of the model as it is.")
    return tuple(weight.tensor.shape[2:])


@rule(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
)
def conv(read: Reading, x: Operand, weight: Weight, bias: Weight | None = None, *steps: Steps) -> Wide:
    """Return a convolution: K(p, q) = sigma_w^2 / k sum_j E[h h'](p + j, q + j)."""
    stride, padding, dilation, groups = (*steps, *(1, 0, 1, 1)[len(steps) :])
    kernel = _kernel(read, weight)
    stride, dilation = _many(stride, len(kernel)), _many(dilation, len(kernel))
    if padding == "same":
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        sides = tuple((s // 2, s - s // 2) for s in spans)
    else:
        sides = tuple((p, p) for p in _many(0 if padding == "valid" else padding, len(kernel)))
    return convolved(read, x, (weight, bias), Window(kernel, stride, sides, dilation), groups)


@rule(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
def conv_transpose(
    read: Reading, x: Operand, weight: Weight, bias: Weight | None = None, *steps: Steps
) -> Wide:
    """Return a transposed convolution: zeros between the pixels, then a convolution of stride 1."""
    stride, padding, extra, groups, dilation = (*steps, *(1, 0, 0, 1, 1)[len(steps) :])
    kernel = _kernel(read, weight)
    rank = len(kernel)
    padding, extra, dilation = (_many(v, rank) for v in (padding, extra, dilation))
    each = zip(dilation, kernel, padding, extra, strict=True)
    sides = tuple((d * (k - 1) - p, d * (k - 1) - p + o) for d, k, p, o in each)
    window = Window(kernel, (1,) * rank, sides, dilation)
    return convolved(read, x, (weight, bias), window, groups, upsample=_many(stride, rank))


@rule(aten.convolution.default)
def convolution(read: Reading, x: Operand, weight: Weight, bias: Weight | None, *steps: Steps) -> Wide:
    """Return a convolution of either kind."""
    stride, padding, dilation, transposed, extra, groups = steps
    if transposed:
        return conv_transpose(read, x, weight, bias, stride, padding, extra, groups, dilation)
    return conv(read, x, weight, bias, stride, padding, dilation, groups)
