"""Rprop: the sign of the gradient times a step size of each weight's own."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer


@register_optimizer(torch.optim.Rprop)
def rprop(made: Made) -> Coefficients:
    """Write w -= size sign(g) as size / abs(g) g; a gradient that turned round moves nothing."""
    used = made.state["prev"].detach().double().abs()
    size = made.state["step_size"].detach().double()
    scale = -1.0 if made.group["maximize"] else 1.0
    return Coefficients(a=torch.where(used > 0, size / used, 0.0), scale=scale)
