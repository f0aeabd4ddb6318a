"""Adagrad: the gradient divided by the root of the sum of all its squares."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer, usual


@register_optimizer(torch.optim.Adagrad)
def adagrad(made: Made) -> Coefficients:
    """Write w -= rate / (1 + (t - 1) lr_decay) g / (sqrt(sum) + eps), with the sum as recorded."""
    group, state = made.group, made.state
    rate = float(group["lr"] / (1 + (float(state["step"]) - 1) * group["lr_decay"]))
    return Coefficients(a=rate / (state["sum"].detach().double().sqrt() + group["eps"]), **usual(group))
