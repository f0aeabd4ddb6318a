"""NAdam: Adam with Nesterov's look ahead, by a momentum that grows with the steps."""

import torch

from ntkit.training.optimizers.adam import momentum_and_decay
from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer


@register_optimizer(torch.optim.NAdam, buffer="exp_avg")
def nadam(made: Made) -> Coefficients:
    r"""Write, with mu_t = beta1 (1 - 0.96^(t psi) / 2), p_t = mu_1 ... mu_t and den = sqrt(v / bc2) + eps.

    w -= rate ((1 - mu_t) / (1 - p_t) g + mu_{t+1} / (1 - p_t mu_{t+1}) m) / den
    """
    group, state = made.group, made.state
    rate, (beta1, beta2) = group["lr"], group["betas"]
    step, product = state["step"], state["mu_product"]
    if not group["capturable"]:  # else all in the precision of these tensors
        step, product = float(step), float(product)
    now, ahead = (beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"])) for t in (step, step + 1))
    divisor = state["exp_avg_sq"].detach().double().div(float(1 - beta2**step)).sqrt() + group["eps"]
    a = float(rate * (1 - now) / (1 - product)) / divisor
    b = float(rate * ahead / (1 - product * ahead)) / divisor
    return Coefficients(a=a, b=b, **momentum_and_decay(made, beta1, rate, group["decoupled_weight_decay"]))
