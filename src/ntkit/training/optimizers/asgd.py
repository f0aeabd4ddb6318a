"""ASGD: descent with a falling rate and decay; its running average of the weights moves nothing."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer, usual


@register_optimizer(torch.optim.ASGD, before=("eta",))
def asgd(made: Made) -> Coefficients:
    """Write w -= eta g + lambd eta w, with the eta that the step before this one left."""
    group, state = made.group, made.state
    first = torch.tensor(float(group["lr"]), dtype=state["eta"].dtype)
    eta = float(first if made.fresh else made.before["eta"])
    return Coefficients(a=eta, d=float(group["lambd"]) * eta, **usual(group))
