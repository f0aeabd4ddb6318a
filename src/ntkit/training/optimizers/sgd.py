"""Stochastic gradient descent with momentum, Nesterov's too, dampening and L2."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer, usual


@register_optimizer(torch.optim.SGD, buffer="momentum_buffer")
def sgd(made: Made) -> Coefficients:
    """Write m = mu m + (1 - dampening) g, but m = g at a parameter's first gradient; w -= rate * (g or m)."""
    group = made.group
    rate, momentum = float(group["lr"]), float(group["momentum"])
    if momentum == 0:  # PyTorch leaves a buffer that is there untouched
        return Coefficients(a=rate, **usual(group))
    mu, nu = (0.0, 1.0) if made.fresh else (momentum, 1.0 - float(group["dampening"]))
    a, b = (rate, rate * momentum) if group["nesterov"] else (0.0, rate)
    return Coefficients(mu=mu, nu=nu, a=a, b=b, **usual(group))
