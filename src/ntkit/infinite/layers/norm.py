"""Norms: statistics over channels become numbers in the limit, and pass no gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ntkit.infinite.layers.elementwise import combine, scale, times, total
from ntkit.infinite.moments.vectors import Coefficient, Expression
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Weight, Wide

aten = torch.ops.aten


def normalized(read: Reading, a: Wide, pooled: bool, centered: bool, eps: float, text: str) -> Wide:
    """Return (h - E[h]) / sqrt(Var[h] + eps), moments over the channels (``pooled``: and over the positions).

    Vectors that are concatenated share the moments, each by its width.
    """
    whole = sum(width for width, _ in a.pieces)
    shape = (1,) * len(a.shape) if pooled else a.shape
    parts = [(width / whole, e) for width, e in a.pieces]
    axes = list(range(1, len(a.shape) + 1))

    def first(side: Any) -> Tensor:
        mean = side.numerics.zeros(1, *(1 for _ in a.shape))
        for share, e in parts:
            value = side.mean(e) if centered else None
            mean = mean if value is None else mean + share * value
        return mean.expand(mean.shape[0], *a.shape).mean(axes, keepdim=True) if pooled and axes else mean

    average = Coefficient(shape, first)

    def second(side: Any) -> Tensor:
        square = side.numerics.zeros(1, *(1 for _ in a.shape))
        for share, e in parts:
            value = side.own.moment(e, e, "equal")
            square = square if value is None else square + share * value
        if pooled and axes:
            square = square.expand(square.shape[0], *a.shape).mean(axes, keepdim=True)
        return (square - average.value(side).square() + eps).rsqrt()

    inverse = Coefficient(shape, second)
    shifted = centered and not all(e.centered for _, e in a.pieces)

    def of(e: Expression) -> Expression:
        return scale(total(e, scale(average, -1)) if shifted else e, inverse)

    return read.write("Norm", f"{text}({read.name(a)})", a.map(of))


def affine(read: Reading, a: Wide, weight: Any, bias: Any, dim: int | None) -> Wide:
    """Return gamma h + beta, parameters with one entry for each channel (of dimension ``dim``)."""

    def shaped(w: Weight) -> Weight:
        if dim is None:
            return w
        return Weight(
            w.name, w.tensor.reshape(-1, *(1 for _ in range(len(a.dims) - dim - 1))), w.shape, w.factor
        )

    if weight is not None:
        a = combine(read, [a, shaped(weight)], lambda h, g: times(read, h, g))
        read.write("LinComb", f"{weight.name} * ...", a)
    if bias is not None:
        a = combine(read, [a, shaped(bias)], total)
        read.write("LinComb", f"... + {bias.name}", a)
    return a


def _over(read: Reading, a: Wide, count: int, what: str) -> bool:
    """Return whether a norm over the last ``count`` dimensions takes all positions in; check the channels."""
    if not isinstance(a, Wide):
        raise read.refuse(f"{what} of data with trained parameters; normalize the data beforehand.")
    last = [x for d in a.dims[-count:] for x in d]
    channels, positions = sum(x < 0 for x in last), sum(x >= 0 for x in last)
    if channels != len(a.channels):
        raise read.refuse(f"{what} over positions, or over some of the channels: its statistics are random.")
    if positions and positions != len(a.shape):
        raise read.refuse(f"{what} over channels and some of the positions.")
    return bool(positions)


@rule(aten.layer_norm.default)
def layer_norm(
    read: Reading,
    a: Wide,
    sizes: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Wide:
    """Layer norm over the channels."""
    pooled = _over(read, a, len(sizes), "a layer norm")
    if pooled and (weight is not None or bias is not None):
        raise read.refuse("a layer norm over positions with affine parameters of their own at each position.")
    return affine(read, normalized(read, a, pooled, True, eps, "layer_norm"), weight, bias, None)


@rule(aten.rms_norm.default)
def rms_norm(
    read: Reading, a: Wide, sizes: Sequence[int], weight: Any = None, eps: float | None = None
) -> Wide:
    """RMS norm over the channels: no mean is taken off."""
    pooled = _over(read, a, len(sizes), "an RMS norm")
    eps = torch.finfo(read.dtype).eps if eps is None else eps
    return affine(read, normalized(read, a, pooled, False, eps, "rms_norm"), weight, None, None)


@rule(aten.group_norm.default)
def group_norm(
    read: Reading,
    a: Wide,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    _: bool = True,
) -> Wide:
    """Group norm: moments over the channels of a group and over all positions; groups are alike."""
    if not isinstance(a, Wide):
        raise read.refuse("a group norm of data with trained parameters; normalize the data beforehand.")
    width = sum(w for w, _ in a.pieces)
    if a.dims[1] != (-1,) or width // groups < 2:
        raise read.refuse(
            "a group norm with one channel a group has random statistics (it is an instance norm)."
        )
    if len(a.pieces) > 1 and groups > 1:
        raise read.refuse("a group norm of concatenated vectors: its groups are not alike.")
    return affine(read, normalized(read, a, True, True, eps, "group_norm"), weight, bias, 1)


@rule(aten.instance_norm.default)
def instance_norm(read: Reading, a: Wide, *_: Any) -> Wide:
    """Instance norm has no limit."""
    raise read.refuse(
        "the statistics of an instance norm are those of one channel: they stay random at any width."
    )


@rule(aten.batch_norm.default)
def batch_norm(
    read: Reading,
    a: Wide,
    weight: Any,
    bias: Any,
    mean: Any,
    var: Any,
    training: bool,
    _: float,
    eps: float,
    __: bool,
) -> Wide:
    """Batch norm in eval mode: an affine map with the running statistics."""
    if not isinstance(a, Wide):
        raise read.refuse("a batch norm of data with trained parameters; normalize the data beforehand.")
    if mean is None or not bool((mean == mean[0]).all()) or not bool((var == var[0]).all()):
        raise read.refuse(
            "the running statistics of a batch norm differ from channel to channel, as after training; the "
            "limit is one of the network at its start: call reset_running_stats() first."
        )
    factor, shift = float((var[0] + eps).rsqrt()), float(mean[0])

    def of(e: Expression) -> Expression:
        return scale(total(e, -shift), factor)

    value = read.write("Norm", f"batch_norm({read.name(a)})   (running statistics)", a.map(of))
    return affine(read, value, weight, bias, 1)
