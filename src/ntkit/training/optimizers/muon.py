"""Muon: momentum of a matrix made nearly orthogonal, by a matrix polynomial of itself on one side."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ntkit.training.optimizers.registry import Coefficients, Made, of_torch, register_optimizer


@register_optimizer(*of_torch("Muon"), buffer="momentum_buffer")  # since torch 2.9
def muon(made: Made) -> Coefficients:
    """Write m = mu m + (1 - mu) g, u = m or (1 - mu) g + mu m; w -= rate P u + rate decay w, P as it was.

    PyTorch makes P u in bfloat16; what that changed belongs to no sample, and goes to the rounding.
    """
    group, momentum, nesterov = made.group, float(made.group["momentum"]), bool(made.group["nesterov"])
    rate = group["lr"]  # a tensor keeps its precision
    rows, columns = made.weight.shape
    match = group["adjust_lr_fn"] == "match_rms_adamw"
    ratio = 0.2 * math.sqrt(max(rows, columns)) if match else math.sqrt(max(1, rows / columns))
    buffer = made.state["momentum_buffer"]
    update = made.gradient.lerp(buffer, momentum) if nesterov else buffer
    tall = rows > columns
    adjusted = float(rate * ratio)
    matrix, off = _orthogonalized(update.T if tall else update, group)
    return Coefficients(
        mu=0.0 if made.fresh else momentum,
        nu=1 - momentum,
        a=adjusted * (1 - momentum) if nesterov else 0.0,
        b=adjusted * (momentum if nesterov else 1.0),
        d=1 - float(1 - rate * float(group["weight_decay"])),
        left=None if tall else matrix,
        right=matrix.T if tall else None,
        rounding=1.01 * adjusted * (off.T if tall else off),
    )


def _orthogonalized(update: Tensor, group: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return P, the product of the factors of PyTorch's iteration, and abs(its result - P u)."""
    a, b, c = group["ns_coefficients"]
    x = update.bfloat16()
    size = x.norm().clamp(min=group["eps"])
    x = x / size
    one = torch.eye(len(x), dtype=torch.float64, device=x.device)
    product = one / size.double()
    for _ in range(group["ns_steps"]):
        gram = x @ x.T
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.addmm(x, factor, x, beta=a)
        product = (a * one + factor.double()) @ product
    return product, (x.double() - product @ update.double()).abs()
