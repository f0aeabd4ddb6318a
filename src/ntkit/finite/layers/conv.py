"""Convolutions: the right slot is the unfolded input, one patch for each position of the output."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ntkit.finite.factors import Factor
from ntkit.finite.rules import Use, rule

aten = torch.ops.aten


Padding = list[tuple[int, int]]  # zeros before and after, on each spatial axis


def patches(x: Tensor, kernel: list[int], stride: list[int], padding: Padding, dilation: list[int]) -> Tensor:
    """Return ``[n, channels, *kernel, *positions]``: what each position of a convolution sees."""
    d = len(kernel)
    x = F.pad(x, [p for pair in reversed(padding) for p in pair]) if any(map(any, padding)) else x
    for i in range(d):
        x = x.unfold(2 + i, dilation[i] * (kernel[i] - 1) + 1, stride[i])
    if any(step > 1 for step in dilation):
        x = x[(..., *(slice(None, None, step) for step in dilation))]
    return x.permute(0, 1, *range(2 + d, 2 + 2 * d), *range(2, 2 + d))


def _settings(use: Use, d: int) -> tuple[list[int], list[int], Padding, list[int]]:
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


def _input(use: Use, n: int, d: int) -> Tensor:
    """Return the input ``[n, b, channels, *positions]``; b: what a sample has as the axis of samples."""
    h = use.tensor("input")
    h = h.expand(n, *h.shape[1:])
    return h.reshape(n, -1, *h.shape[-d - 1 :])


def _slot(values: Tensor) -> Tensor:
    """Return ``[n, o, b, groups, c, positions]`` as a slot ``[n, o, groups, b positions, c]``."""
    return values.permute(0, 1, 3, 2, 5, 4).flatten(3, 4)


def _convolution(use: Use, d: int) -> Factor | None:
    """Y = conv(h, W) + b: the weight is sum_t g_t patch_t^T in each group."""
    if use.slot[0] == "bias":
        return _bias(use, d)
    groups, g = use.args["groups"], use.g
    n, o = g.shape[:2]
    h = _input(use, n, d)
    b, positions = h.shape[1], g.shape[-d:].numel()
    seen = patches(h.flatten(0, 1), *_settings(use, d))
    right = _slot(seen.reshape(n, 1, b, groups, -1, positions))
    left = _slot(g.reshape(n, o, b, groups, -1, positions))
    shape = (groups, -1, right.shape[-1])
    return Factor(left, right, lambda w: w.reshape(shape))


def _transposed(use: Use, d: int) -> Factor | None:
    """Y = conv_transpose(h, W) + b: the weight is sum_t h_t patch_t(g)^T in each group."""
    if use.slot[0] == "bias":
        return _bias(use, d)
    groups, g = use.args["groups"], use.g
    n, o = g.shape[:2]
    h = _input(use, n, d)
    b, positions = h.shape[1], h.shape[-d:].numel()
    seen = patches(g.reshape(n * o * b, -1, *g.shape[-d:]), *_settings(use, d))
    corner = tuple(slice(0, s) for s in h.shape[-d:])  # output_padding may leave room for more
    right = _slot(seen[(..., *corner)].reshape(n, o, b, groups, -1, positions))
    left = _slot(h.reshape(n, 1, b, groups, -1, positions))
    arranged = (groups, left.shape[-1], right.shape[-1])
    return Factor(left, right, lambda w: w.reshape(arranged))


_FORWARD = (aten.conv1d, aten.conv2d, aten.conv3d)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)
for _axes, (_forward, _back) in enumerate(zip(_FORWARD, _TRANSPOSED, strict=True), start=1):
    rule(_forward.default, "weight", "bias")(partial(_convolution, d=_axes))
    rule(_forward.padding, "weight", "bias")(partial(_convolution, d=_axes))
    rule(_back, "weight", "bias")(partial(_transposed, d=_axes))
