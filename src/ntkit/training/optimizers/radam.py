"""RAdam: Adam whose divisor waits until its variance is known well enough."""

import torch

from ntkit.training.optimizers.adam import momentum_and_decay
from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer


@register_optimizer(torch.optim.RAdam, buffer="exp_avg")
def radam(made: Made) -> Coefficients:
    """Write m = beta1 m + (1 - beta1) g; w -= rate / bc1 m, by (sqrt(v / bc2) + eps) / r if rho_t > 5."""
    group, state = made.group, made.state
    rate, (beta1, beta2) = group["lr"], group["betas"]
    step = state["step"] if group["capturable"] else float(state["step"])
    corrected = 1 - beta2**step
    most = 2 / (1 - beta2) - 1
    length = most - 2 * step * beta2**step / corrected
    b = float(float(rate) / (1 - beta1**step))
    if length > 5:
        rectified = ((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)) ** 0.5
        root = state["exp_avg_sq"].detach().double().sqrt()
        b = b * float(rectified * corrected**0.5) / (root + group["eps"])
    return Coefficients(b=b, **momentum_and_decay(made, beta1, rate, group["decoupled_weight_decay"]))
