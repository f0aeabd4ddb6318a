"""RMSprop: the gradient divided by its root mean square or standard deviation, then momentum."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer, usual


@register_optimizer(torch.optim.RMSprop, buffer="momentum_buffer")
def rmsprop(made: Made) -> Coefficients:
    """Write m = mu m + g / (sqrt(v) + eps); w -= rate m, v less the squared mean gradient if centered."""
    group, state = made.group, made.state
    square = state["square_avg"].detach()
    if group["centered"]:  # a difference of nearly equal numbers: rounded as the optimizer rounds it
        square = square.addcmul(state["grad_avg"], state["grad_avg"], value=-1)
    inverse = 1 / (square.sqrt().double() + group["eps"])
    rate, momentum = float(group["lr"]), float(group["momentum"])
    if momentum == 0:
        return Coefficients(a=rate * inverse, **usual(group))
    return Coefficients(mu=0.0 if made.fresh else momentum, nu=inverse, b=rate, **usual(group))
