"""Adam and AdamW: momentum divided by the root of the mean square gradient that the step used."""

from collections.abc import Mapping
from typing import Any

import torch

from ntkit.training.optimizers.registry import Coefficients, describes


@describes(torch.optim.Adam, torch.optim.AdamW, buffer="exp_avg")
def adam(group: Mapping[str, Any], state: Mapping[str, Any], fresh: bool) -> Coefficients:
    """Write m = beta1 m + (1 - beta1) g; w -= rate / (bc1 (sqrt(v / bc2) + eps)) m, v as recorded."""
    rate, decay, step = float(group["lr"]), float(group["weight_decay"]), float(state["step"])
    beta1, beta2 = (float(beta) for beta in group["betas"])
    square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"].detach().double()
    root = (square / (1 - beta2**step)).sqrt()
    decoupled = bool(group.get("decoupled_weight_decay", False))
    return Coefficients(
        mu=0.0 if fresh else beta1,
        nu=1 - beta1,
        b=rate / (1 - beta1**step) / (root + float(group["eps"])),
        d=rate * decay if decoupled else 0.0,
        decay=0.0 if decoupled else decay,
        scale=-1.0 if group["maximize"] else 1.0,
    )
