"""RAdam: Adam whose divisor waits until its variance is known well enough."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer


@register_optimizer(torch.optim.RAdam, buffer="exp_avg")
def radam(made: Made) -> Coefficients:
    """Write m = beta1 m + (1 - beta1) g; w -= rate / bc1 m, by (sqrt(v / bc2) + eps) / r if rho_t > 5."""
    group, state = made.group, made.state
    rate, (beta1, beta2), decay = float(group["lr"]), group["betas"], float(group["weight_decay"])
    step = state["step"] if group["capturable"] else float(state["step"])
    corrected = 1 - beta2**step
    most = 2 / (1 - beta2) - 1
    length = most - 2 * step * beta2**step / corrected
    b = float(rate / (1 - beta1**step))
    if length > 5:
        rectified = ((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)) ** 0.5
        root = state["exp_avg_sq"].detach().double().sqrt()
        b = b * float(rectified * corrected**0.5) / (root + group["eps"])
    decoupled = bool(group["decoupled_weight_decay"])
    return Coefficients(
        mu=0.0 if made.fresh else float(beta1),
        nu=1 - float(beta1),
        b=b,
        d=1 - float(1 - group["lr"] * decay) if decoupled else 0.0,
        decay=0.0 if decoupled else decay,
        scale=-1.0 if group["maximize"] else 1.0,
    )
