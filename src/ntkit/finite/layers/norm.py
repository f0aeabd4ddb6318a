"""Scales and shifts of norms: layer, RMS, group, instance, and batch norm in eval mode.

With y = x^ * scale + shift, position by position, the Jacobian of the shift is the sum over
positions of g and that of the scale the sum of g * x^: summed **before** any product is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.finite.factors import Factor
from ntkit.finite.rules import Use, reduce_to, rule

aten = torch.ops.aten


def _affine(use: Use, normalized: Tensor, shift: str = "bias") -> Factor:
    """Return the factor of a scale or a shift over the last axes of g."""
    g = use.g if use.slot[0] == shift else use.g * normalized.unsqueeze(1)
    return Factor.vector(reduce_to(g, use.weight.shape))


def _channels(use: Use, normalized: Tensor) -> Factor:
    """Return the factor of a scale or a shift over the channels, axis 1 of a sample."""
    g = use.g if use.slot[0] == "bias" else use.g * normalized.unsqueeze(1)
    return Factor.vector(g.transpose(2, 3).flatten(3).sum(3))


@rule(aten.layer_norm.default, "weight", "bias")
def layer_norm(use: Use) -> Factor | None:
    """Layer norm over the last axes."""
    x = use.tensor("input")
    return _affine(use, torch.layer_norm(x, use.args["normalized_shape"], None, None, use.args["eps"]))


@rule(aten.rms_norm.default, "weight")
def rms_norm(use: Use) -> Factor | None:
    """RMS norm over the last axes."""
    x = use.tensor("input")
    return _affine(use, torch.rms_norm(x, use.args["normalized_shape"], None, use.args["eps"]))


@rule(aten.group_norm.default, "weight", "bias")
def group_norm(use: Use) -> Factor | None:
    """Group norm; each sample's batch axis of one is folded into the samples."""
    x = use.tensor("input")
    normalized = torch.group_norm(x.flatten(0, 1), use.args["num_groups"], None, None, use.args["eps"])
    return _channels(use, normalized.reshape(x.shape))


@rule(aten.instance_norm.default, "weight", "bias")
def instance_norm(use: Use) -> Factor | None:
    """Instance norm by the sample's own statistics."""
    if not use.args["use_input_stats"]:
        return None
    x = use.tensor("input")
    normalized = torch.group_norm(x.flatten(0, 1), x.shape[2], None, None, use.args["eps"])
    return _channels(use, normalized.reshape(x.shape))


@rule(aten.batch_norm.default, "weight", "bias")
def batch_norm(use: Use) -> Factor | None:
    """Batch norm by running statistics: a fixed affine map of each channel."""
    mean, var = use.args["running_mean"], use.args["running_var"]
    if use.args["training"] or mean is None:
        return None
    x = use.tensor("input")
    shape = (-1, *(1,) * (x.ndim - 3))
    normalized = (x - mean.reshape(shape)) / (var + use.args["eps"]).sqrt().reshape(shape)
    return _channels(use, normalized)
