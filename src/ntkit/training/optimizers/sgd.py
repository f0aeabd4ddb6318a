"""Stochastic gradient descent with momentum, Nesterov's too, dampening and L2."""

from typing import Any

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer


@register_optimizer(torch.optim.SGD, buffer="momentum_buffer")
def sgd(made: Made) -> Coefficients:
    """Write m = mu m + (1 - dampening) g, but m = g at a parameter's first gradient; w -= rate * (g or m)."""
    group = made.group
    rate, momentum = float(group["lr"]), float(group["momentum"])
    shared: dict[str, Any] = {
        "decay": float(group["weight_decay"]),
        "scale": -1.0 if group["maximize"] else 1.0,
    }
    if momentum == 0:  # PyTorch leaves a buffer that is there untouched
        return Coefficients(a=rate, **shared)
    return Coefficients(
        mu=0.0 if made.fresh else momentum,
        nu=1.0 if made.fresh else 1.0 - float(group["dampening"]),
        a=rate if group["nesterov"] else 0.0,
        b=rate * momentum if group["nesterov"] else rate,
        **shared,
    )
