"""Norms: statistics over channels become numbers in the limit, and pass no gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ntkit.infinite.layers.arithmetic import multiple, scale, times, total
from ntkit.infinite.layers.pooling import of_heads
from ntkit.infinite.moments.accuracy import enlarge
from ntkit.infinite.reading.alignment import combine
from ntkit.infinite.reading.rules import Reading, rows_of, rule
from ntkit.infinite.reading.values import Operand, Weight, Wide, per_channel
from ntkit.infinite.variables.positions import Shape
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import Coefficient, Vector

aten = torch.ops.aten
Affine = Weight | None  # parameters of a norm


def normalized(read: Reading, a: Wide, pooled: Sequence[int], centered: bool, eps: float, text: str) -> Wide:
    """Return (h - E[h]) / sqrt(Var[h] + eps), moments over the channels and the axes ``pooled`` of positions.

    Vectors that are concatenated share the moments, each by its width.
    """
    shape = tuple(1 if x in pooled else size for x, size in enumerate(a.shape))
    parts = [(width / a.width, e) for width, e in a.pieces]
    axes = [1 + x for x in pooled]

    def first(side: SideValues) -> Tensor:
        mean = side.numerics.zeros(1, *(1 for _ in a.shape))
        for share, e in parts:
            value = side.mean(e) if centered else None
            mean = mean if value is None else mean + share * value
        return mean.expand(mean.shape[0], *a.shape).mean(axes, keepdim=True) if axes else mean

    average = Coefficient(shape, first)

    def second(side: SideValues) -> Tensor:
        square = side.numerics.zeros(1, *(1 for _ in a.shape))
        for share, e in parts:
            value = side.itself.moment(e, e, "equal")
            square = square if value is None else square + share * value
        if axes:
            square = square.expand(square.shape[0], *a.shape).mean(axes, keepdim=True)
        variance = square - average.value(side).square() + eps
        if shifted:
            enlarge(side, [e for _, e in parts], variance)
        return variance.rsqrt()

    inverse = Coefficient(shape, second)
    shifted = centered and not all(e.centered for _, e in a.pieces)

    value = a.map(lambda e: multiple(total(e, scale(average, -1)) if shifted else e, inverse))
    return read.write("Norm", f"{text}({read.name(a)})", value)


def affine(read: Reading, a: Wide, weight: Affine, bias: Affine, dim: int | None) -> Wide:
    """Return gamma h + beta, parameters with one entry for each channel (of dimension ``dim``)."""
    after = 0 if dim is None else len(a.dims) - dim - 1
    if weight is not None:
        gamma = weight if dim is None else per_channel(weight, after)
        a = combine(read, [a, gamma], lambda h, g: times(read, h, g))
        read.write("LinComb", f"{weight.name} * ...", a)
    if bias is not None:
        a = combine(read, [a, bias if dim is None else per_channel(bias, after)], total)
        read.write("LinComb", f"... + {bias.name}", a)
    return a


def _wide(read: Reading, a: Operand, what: str) -> Wide:
    """Return what is normalized, refused where it is data."""
    if not isinstance(a, Wide):
        raise read.refuse(f"{what} of data with trained parameters; normalize the data beforehand.")
    return a


def _over(read: Reading, a: Wide, count: int, what: str) -> list[int]:
    """Return the axes of positions in the last ``count`` dimensions, which hold all channels."""
    last = [x for d in a.dims[-count:] for x in d]
    if not of_heads(a, last):
        raise read.refuse(f"{what} over positions, or over some of the channels: its statistics are random.")
    return [x for x in last if x >= 0]


def _at_each(read: Reading, a: Wide, count: int, weight: Affine, bias: Affine) -> Wide:
    """Return gamma h + beta, with entries for each position and channel of the last ``count`` dimensions."""
    if len(a.pieces) > 1 and not (weight is None and bias is None):
        raise read.refuse("a norm of concatenated vectors with parameters of their own at each position.")
    if weight is not None:
        gamma = _of_each(read, a, count, weight)
        a = read.write("LinComb", f"{weight.name} * ...", a.map(lambda e: times(read, e, gamma)))
    if bias is not None:
        beta = _of_each(read, a, count, bias)
        a = read.write("LinComb", f"... + {bias.name}", a.map(lambda e: total(e, beta)))
    return a


def _of_each(read: Reading, a: Wide, count: int, weight: Weight) -> Vector:
    axes = [x for d in a.dims[-count:] for x in d]
    order = [i for i, x in enumerate(axes) if x >= 0] + [i for i, x in enumerate(axes) if x < 0]
    t = weight.tensor.reshape([a.size(x) for x in axes]).permute(order)
    read.use(weight.name, "coordinate by coordinate")
    average, law = read.laws.vector(weight)
    shape = tuple(size if x in axes else 1 for x, size in enumerate(a.shape))
    return Vector(shape, weight.name, rows_of(t).reshape(-1, a.width)[0], average, law)


@rule(aten.layer_norm.default)
def layer_norm(
    read: Reading, a: Operand, sizes: Shape, weight: Affine = None, bias: Affine = None, *options: float
) -> Wide:
    """Layer norm over the channels."""
    a = _wide(read, a, "a layer norm")
    a = a.canonical()
    pooled = _over(read, a, len(sizes), "a layer norm")
    eps = options[0] if options else 1e-5
    h = normalized(read, a, pooled, True, eps, "layer_norm")
    return _at_each(read, h, len(sizes), weight, bias) if pooled else affine(read, h, weight, bias, None)


@rule(aten.rms_norm.default)
def rms_norm(
    read: Reading, a: Operand, sizes: Shape, weight: Affine = None, eps: float | None = None
) -> Wide:
    """RMS norm over the channels: no mean is subtracted."""
    a = _wide(read, a, "an RMS norm").canonical()
    pooled = _over(read, a, len(sizes), "an RMS norm")
    eps = torch.finfo(read.dtype).eps if eps is None else eps
    h = normalized(read, a, pooled, False, eps, "rms_norm")
    return _at_each(read, h, len(sizes), weight, None) if pooled else affine(read, h, weight, None, None)


@rule(aten.group_norm.default)
def group_norm(
    read: Reading, a: Operand, groups: int, weight: Affine = None, bias: Affine = None, *options: float
) -> Wide:
    """Group norm: moments over the channels of a group and over all positions; groups are alike."""
    a = _wide(read, a, "a group norm")
    if a.dims[1] != (-1,) or a.width // groups < 2:
        raise read.refuse(
            "a group norm with one channel per group has random statistics (it is an instance norm)."
        )
    if len(a.pieces) > 1 and groups > 1:
        raise read.refuse("a group norm of concatenated vectors: its groups are not alike.")
    eps = options[0] if options else 1e-5
    return affine(read, normalized(read, a, range(len(a.shape)), True, eps, "group_norm"), weight, bias, 1)


@rule(aten.instance_norm.default)
def instance_norm(read: Reading, a: Operand, *_: object) -> Wide:
    """Instance norm has no limit."""
    raise read.refuse(
        "the statistics of an instance norm are those of one channel: they stay random at any width."
    )


@rule(aten.batch_norm.default)
def batch_norm(
    read: Reading,
    a: Operand,
    weight: Affine,
    bias: Affine,
    mean: Tensor | None,
    var: Tensor | None,
    *options: float,
) -> Wide:
    """Batch norm in eval mode: an affine map with the running statistics."""
    a = _wide(read, a, "a batch norm")
    _, _, eps, _ = options  # training, momentum, eps, cudnn
    if mean is None or var is None or not bool((mean == mean[0]).all() and (var == var[0]).all()):
        raise read.refuse(
            "the running statistics of a batch norm differ from channel to channel, as after training; the "
            "limit is that of the network at its start: call reset_running_stats() first."
        )
    factor, shift = float((var[0] + eps).rsqrt()), float(mean[0])
    value = a.map(lambda e: multiple(total(e, -shift), factor))
    value = read.write("Norm", f"batch_norm({read.name(a)})   (running statistics)", value)
    return affine(read, value, weight, bias, 1)
