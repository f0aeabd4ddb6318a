"""Adamax: momentum divided by the largest gradient of late."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer, usual


@register_optimizer(torch.optim.Adamax, buffer="exp_avg")
def adamax(made: Made) -> Coefficients:
    """Write m = beta1 m + (1 - beta1) g; w -= rate / (1 - beta1^t) m / u, with the norm u as recorded."""
    group, state = made.group, made.state
    beta1 = float(group["betas"][0])
    step = state["step"] if group["capturable"] else float(state["step"])
    b = float(group["lr"] / (1 - beta1**step)) / state["exp_inf"].detach().double()
    return Coefficients(mu=0.0 if made.fresh else beta1, nu=1 - beta1, b=b, **usual(group))
