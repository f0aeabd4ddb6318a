"""Adam and AdamW: momentum divided by the root of the mean square gradient that the step used."""

from dataclasses import replace
from typing import Any

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer, usual


def momentum_and_decay(made: Made, beta1: Any, rate: Any, decoupled: bool) -> dict[str, Any]:
    """Return what Adam and its relatives share: a running mean of gradients, and decay inside or outside."""
    shared = {"mu": 0.0 if made.fresh else float(beta1), "nu": 1 - float(beta1), **usual(made.group)}
    return shared | {"d": 1 - float(1 - rate * shared["decay"]), "decay": 0.0} if decoupled else shared


@register_optimizer(torch.optim.Adam, buffer="exp_avg")
def adam(made: Made) -> Coefficients:
    """Write m = beta1 m + (1 - beta1) g; w -= rate / (bc1 (sqrt(v / bc2) + eps)) m, v as recorded."""
    group, state = made.group, made.state
    rate, (beta1, beta2) = group["lr"], group["betas"]
    step = state["step"] if group["capturable"] else float(state["step"])
    if group["fused"]:  # all in double; elsewhere a rate or beta that is a tensor keeps its precision
        rate, beta1, beta2, step = float(rate), float(beta1), float(beta2), float(step)
    square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].detach().double()
    root = square.sqrt() / float((1 - beta2**step) ** 0.5)
    b = float(rate / (1 - beta1**step)) / (root + float(group["eps"]))
    decoupled = bool(group.get("decoupled_weight_decay", False))
    return Coefficients(b=b, **momentum_and_decay(made, beta1, rate, decoupled))


@register_optimizer(torch.optim.AdamW, buffer="exp_avg")
def adamw(made: Made) -> Coefficients:
    """Write the step of Adam, with the decay outside of it; torch 2.6 does not say so in the group."""
    return adam(replace(made, group={**made.group, "decoupled_weight_decay": True}))
