"""Adadelta: the gradient in units of its own size, times the size of the steps so far."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer, usual


@register_optimizer(torch.optim.Adadelta, before=("acc_delta",))
def adadelta(made: Made) -> Coefficients:
    """Write w -= rate sqrt(u + eps) / sqrt(v + eps) g, u the mean square step before this one."""
    group, eps = made.group, float(made.group["eps"])
    square = made.state["square_avg"].detach().double()
    steps = torch.zeros_like(square) if made.fresh else made.before["acc_delta"].double()
    return Coefficients(a=float(group["lr"]) * ((steps + eps) / (square + eps)).sqrt(), **usual(group))
