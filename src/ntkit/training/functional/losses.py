"""The losses of batches: by name, in a dtype, checked."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ntkit.errors import BadTypeError, BadValueError, one_of
from ntkit.inputs import Batch
from ntkit.network import copy_of
from ntkit.training.folder.step import BatchLoss

NAMED: dict[str, BatchLoss] = {
    "cross_entropy": F.cross_entropy,
    "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": F.smooth_l1_loss,
    "huber": F.huber_loss,
    "nll": F.nll_loss,
    "poisson": F.poisson_nll_loss,
}  # means over the batch, of the outputs as they are: logits
_AS_TORCH = {f"{name}_loss": name for name in ("mse", "l1", "smooth_l1", "huber", "nll")} | {
    "binary_cross_entropy_with_logits": "binary_cross_entropy",
    "poisson_nll_loss": "poisson",
}


def loss_of(loss: BatchLoss | str) -> BatchLoss:
    """Return a loss, by its name if it has one here or, of the same losses, in torch.nn.functional.

    >>> loss_of("mse")(torch.ones(2), torch.zeros(2))
    tensor(1.)
    >>> loss_of("mse_loss") is loss_of("mse")
    True
    >>> loss_of("cross entropy")
    Traceback (most recent call last):
    ntkit.errors.BadValueError: loss='cross entropy'; expected ... Did you mean 'cross_entropy'?
    """
    if isinstance(loss, str):
        return NAMED[one_of("loss", _AS_TORCH.get(loss, loss), NAMED)]
    if isinstance(loss, type) or not callable(loss):
        raise BadTypeError(f"loss={loss!r}; expected a function of (outputs, targets), or a name of one.")
    return loss


def checked_loss(loss: BatchLoss, outputs: object, targets: Batch) -> Tensor:
    """Return the batch loss, a single finite number."""
    try:
        value = loss(outputs, targets)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise BadValueError(
            f"loss(outputs, targets) failed on outputs of shape {tuple(getattr(outputs, 'shape', ()))}, "
            f"dtype {getattr(outputs, 'dtype', None)}: {error}. Accounts are made in float64: a loss that "
            f"holds tensors should be a torch.nn.Module, so that ntkit can cast a copy of it."
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise BadValueError(
            f"loss(outputs, targets) returned {shape}, expected one number for the batch, the one that "
            f"backward() was called on: reduce it as the training did (mean or sum)."
        )
    return value.reshape(()) if value.ndim else value


def cast_loss(loss: BatchLoss, dtype: torch.dtype) -> BatchLoss:
    """Return the loss with its own tensors, if it is a module that has some, in a dtype."""
    return copy_of(loss).to(dtype) if isinstance(loss, nn.Module) else loss
