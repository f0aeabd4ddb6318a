"""Convex losses of one sample: value, gradient and Hessian in the function's value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ntkit.errors import BadTypeError, BadValueError, nearest

Function = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Loss:
    """A loss l(f, y) ``[n]`` of predictions and targets ``[n, o]``, with its derivatives in f.

    ``curvature`` is the largest eigenvalue that its Hessian can have; None where it is not known.
    """

    value: Function
    gradient: Function
    hessian: Function
    curvature: float | None = None


def loss_of(loss: str | Function) -> Loss:
    """Return a loss by name, or from a function of tensors ``(f, y) -> [n]``, differentiated by autograd.

    ``"squared"``: |f - y|^2 / 2. ``"cross_entropy"``: -sum_o y_o log softmax(f)_o for rows of y that sum to
    one; with one output the logistic loss for y in [0, 1]. ``"huber"``: quadratic within 1, then linear.

    >>> import torch
    >>> loss_of("huber").gradient(torch.tensor([[3.0]]), torch.tensor([[0.0]]))
    tensor([[1.]])
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            near = nearest(loss, LOSSES)
            raise BadValueError(
                f"loss={loss!r}; expected {', '.join(LOSSES)}, or a function (f, y) -> [n].{near}"
            )
        return LOSSES[loss]
    if not callable(loss):
        raise BadTypeError(f"loss={loss!r}; expected a name or a function (f, y) -> [n] of tensors.")

    def value(f: Tensor, y: Tensor) -> Tensor:
        out = loss(f, y)
        if out.shape != f.shape[:1]:
            raise BadValueError(
                f"The loss returned shape {tuple(out.shape)} for predictions {tuple(f.shape)}; it must "
                f"return one number for each sample, [{len(f)}]."
            )
        return out

    def gradient(f: Tensor, y: Tensor) -> Tensor:
        with torch.enable_grad():
            f = f.detach().requires_grad_()
            return torch.autograd.grad(value(f, y).sum(), f)[0]

    hessian = torch.func.hessian(lambda f, y: loss(f[None], y[None]).sum())
    return Loss(value, gradient, torch.func.vmap(hessian))


def _cross_entropy(f: Tensor, y: Tensor) -> Tensor:
    if f.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(f, y, reduction="none")[:, 0]
    return -(y * torch.log_softmax(f, 1)).sum(1)


def probabilities(f: Tensor) -> Tensor:
    """Return softmax(f), or the logistic function for one output; ``[n, o]``."""
    return torch.sigmoid(f) if f.shape[1] == 1 else torch.softmax(f, 1)


def refuse_no_probabilities(y: Tensor) -> None:
    """Refuse targets of cross entropy that are not probabilities."""
    one = y.shape[1] == 1
    if not (y >= 0).all() or not (y <= 1).all() or (not one and not ((y.sum(1) - 1).abs() <= 1e-6).all()):
        what = "numbers in [0, 1]" if one else f"rows of {y.shape[1]} probabilities that sum to one"
        raise BadValueError(
            f"The targets of cross entropy must be {what}, got values from {float(y.min()):.3g} to "
            f"{float(y.max()):.3g}. Give classes to KernelClassifier, or one-hot rows."
        )


def _cross_entropy_hessian(f: Tensor, y: Tensor) -> Tensor:
    p = probabilities(f)
    if f.shape[1] == 1:
        return (p * (1 - p))[..., None]
    return torch.diag_embed(p) - p[:, :, None] * p[:, None, :]


LOSSES = {
    "squared": Loss(
        lambda f, y: (f - y).square().sum(1) / 2,
        lambda f, y: f - y,
        lambda f, y: torch.eye(f.shape[1], dtype=f.dtype, device=f.device).expand(len(f), -1, -1),
        1.0,
    ),
    "cross_entropy": Loss(_cross_entropy, lambda f, y: probabilities(f) - y, _cross_entropy_hessian, 0.5),
    "huber": Loss(
        lambda f, y: F.huber_loss(f, y, reduction="none").sum(1),
        lambda f, y: (f - y).clamp(-1, 1),
        lambda f, y: torch.diag_embed(((f - y).abs() <= 1).to(f)),
        1.0,
    ),
}
