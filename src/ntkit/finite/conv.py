"""Convolutions: the right slot is the unfolded input, one patch for each position of the output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ntkit.finite.factors import Factor
from ntkit.finite.rules import Use, rule

aten = torch.ops.aten


Pairs = list[tuple[int, int]]  # zeros before and after, on each spatial axis


def patches(x: Tensor, kernel: list[int], stride: list[int], padding: Pairs, dilation: list[int]) -> Tensor:
    """Return ``[n, channels, *kernel, *positions]``: what each position of a convolution sees."""
    d = len(kernel)
    x = F.pad(x, [p for pair in reversed(padding) for p in pair]) if any(map(any, padding)) else x
    for i in range(d):
        x = x.unfold(2 + i, dilation[i] * (kernel[i] - 1) + 1, stride[i])
    if any(step > 1 for step in dilation):
        x = x[(..., *(slice(None, None, step) for step in dilation))]
    return x.permute(0, 1, *range(2 + d, 2 + 2 * d), *range(2, 2 + d))


def _settings(use: Use, d: int) -> tuple[list[int], list[int], Pairs, list[int]]:
    """Return kernel, stride, padding and dilation, one number for each spatial axis."""
    kernel = list(use.args["weight"].shape[2:])

    def each(value: list[int] | int) -> list[int]:
        values = [value] if isinstance(value, int) else list(value)
        return values * d if len(values) == 1 else values

    dilation = each(use.args["dilation"])
    if use.args["padding"] == "valid":
        padding = [(0, 0)] * d
    elif use.args["padding"] == "same":  # torch puts the odd zero behind
        total = [step * (k - 1) for step, k in zip(dilation, kernel, strict=True)]
        padding = [(p // 2, p - p // 2) for p in total]
    else:
        padding = [(p, p) for p in each(use.args["padding"])]
    return kernel, each(use.args["stride"]), padding, dilation


def _bias(use: Use, d: int) -> Factor:
    return Factor.vector(use.g.flatten(-d).sum(-1).flatten(2, -2).sum(2))


def _convolution(use: Use, d: int) -> Factor | None:
    """Y = conv(h, W) + b: the weight is sum_t g_t patch_t^T in each group."""
    if use.slot[0] == "bias":
        return _bias(use, d)
    kernel, stride, padding, dilation = _settings(use, d)
    groups, g = use.args["groups"], use.g
    n, o = g.shape[:2]
    h = use.tensor("input")
    h = h.expand(n, *h.shape[1:]).reshape(n, -1, *h.shape[-d:])
    seen = patches(h, kernel, stride, padding, dilation)
    positions = g.shape[-d:].numel()
    right = seen.reshape(n, groups, -1, positions).transpose(2, 3).unsqueeze(1)
    left = g.reshape(n, o, groups, -1, positions).transpose(3, 4)
    shape = (groups, -1, right.shape[-1])
    return Factor(left, right, lambda w: w.reshape(shape))


def _transposed(use: Use, d: int) -> Factor | None:
    """Y = conv_transpose(h, W) + b: the weight is sum_t h_t patch_t(g)^T in each group."""
    if use.slot[0] == "bias":
        return _bias(use, d)
    kernel, stride, padding, dilation = _settings(use, d)
    groups, g = use.args["groups"], use.g
    n, o = g.shape[:2]
    h = use.tensor("input")
    h = h.expand(n, *h.shape[1:]).reshape(n, -1, *h.shape[-d:])
    positions = h.shape[-d:].numel()
    seen = patches(g.reshape(n * o, -1, *g.shape[-d:]), kernel, stride, padding, dilation)
    corner = tuple(slice(0, s) for s in h.shape[-d:])  # output_padding may leave room for more
    seen = seen[(..., *corner)]
    right = seen.reshape(n, o, groups, -1, positions).transpose(3, 4)
    left = h.reshape(n, groups, -1, positions).transpose(2, 3).unsqueeze(1)
    arranged = (groups, left.shape[-1], right.shape[-1])
    return Factor(left, right, lambda w: w.reshape(arranged))


@rule(aten.conv1d.default, "weight", "bias")
@rule(aten.conv1d.padding, "weight", "bias")
def conv1d(use: Use) -> Factor | None:
    """One spatial axis."""
    return _convolution(use, 1)


@rule(aten.conv2d.default, "weight", "bias")
@rule(aten.conv2d.padding, "weight", "bias")
def conv2d(use: Use) -> Factor | None:
    """Two spatial axes."""
    return _convolution(use, 2)


@rule(aten.conv3d.default, "weight", "bias")
@rule(aten.conv3d.padding, "weight", "bias")
def conv3d(use: Use) -> Factor | None:
    """Three spatial axes."""
    return _convolution(use, 3)


@rule(aten.conv_transpose1d.default, "weight", "bias")
def conv_transpose1d(use: Use) -> Factor | None:
    """One spatial axis, transposed."""
    return _transposed(use, 1)


@rule(aten.conv_transpose2d.input, "weight", "bias")
def conv_transpose2d(use: Use) -> Factor | None:
    """Two spatial axes, transposed."""
    return _transposed(use, 2)


@rule(aten.conv_transpose3d.input, "weight", "bias")
def conv_transpose3d(use: Use) -> Factor | None:
    """Three spatial axes, transposed."""
    return _transposed(use, 3)
