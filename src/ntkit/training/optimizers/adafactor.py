"""Adafactor: the gradient divided by a factored mean square, in units of the weights, clipped."""

import torch

from ntkit.training.optimizers.registry import Coefficients, Made, register_optimizer


@register_optimizer(torch.optim.Adafactor)
def adafactor(made: Made) -> Coefficients:
    """Write w -= alpha g / (sqrt(v) max(1, rms(g / sqrt(v)) / d)) + rate decay w, v as recorded."""
    group, state, gradient = made.group, made.state, made.gradient.double()
    eps1, eps2 = group["eps"]
    eps1 = torch.finfo(made.gradient.dtype).eps if eps1 is None else float(eps1)
    rate = group["lr"]  # a tensor keeps its precision
    if gradient.dim() > 1:
        rows, columns = state["row_var"].double(), state["col_var"].double()
        square = rows @ columns / rows.mean(-2, keepdim=True).clamp(min=eps1)
    else:
        square = state["variance"].double()
    inverse = square.clamp(min=eps1**2).rsqrt()

    def size(t: torch.Tensor) -> float:
        return float(t.double().norm()) / t.numel() ** 0.5

    alpha = max(eps2, size(made.weight)) * min(rate, 1 / float(state["step"]) ** 0.5)
    a = float(alpha / max(1.0, size(inverse * gradient) / group["d"])) * inverse
    d = 1 - float(1 - rate * float(group["weight_decay"]))
    return Coefficients(a=a, d=d, scale=-1.0 if group["maximize"] else 1.0)
