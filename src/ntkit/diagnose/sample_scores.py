"""What a run says of each training sample: its loss, and the square of its gradient, over time."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ntkit.compute.plan import chunks
from ntkit.errors import NtkitError
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.inputs import Batch, batch_size, take
from ntkit.network import network
from ntkit.training.functional.losses import BatchLoss, checked_loss

_ROWS = 1024  # samples that pass through the network together


def losses_and_slopes(
    model: nn.Module, loss: BatchLoss, x: Batch, y: Batch, select: str | int | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss of each sample by itself ``[n]``, and its derivative by the outputs ``[n, o]``."""
    net = network(model, select=select)
    losses, slopes = [], []
    for s in chunks(batch_size(x), _ROWS):
        with torch.no_grad():
            raw = net.selected(net.call(net.weights, take(x, s)))
        with torch.enable_grad():
            leaf = raw.detach().requires_grad_()
            each = _each(loss, leaf, take(y, s))
            (slope,) = torch.autograd.grad(each.sum(), leaf)
        losses.append(each.detach().double().cpu())
        slopes.append(slope.reshape(len(slope), -1))
    return torch.cat(losses), torch.cat(slopes)


def _each(loss: BatchLoss, outputs: Tensor, y: Batch) -> Tensor:
    """Return loss(f_n, y_n) of each sample: batched where the loss allows it, else one by one."""

    def one(f: Tensor, target: Batch) -> Tensor:
        return loss(f[None], take(target, (None,))).reshape(())

    try:
        return torch.vmap(one)(outputs, y)
    except NtkitError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError):
        rows = [slice(i, i + 1) for i in range(len(outputs))]
        return torch.stack([checked_loss(loss, outputs[r], take(y, r)) for r in rows])


def squared_gradients(model: nn.Module, x: Batch, slopes: Tensor, select: str | int | None = None) -> Tensor:
    """Return |J(x_n)^T c_n|^2 ``[n]`` for derivatives c ``[n, o]``, by the structure of the network.

    It is the tangent kernel's diagonal of the network c . f(x), which has one output.
    """
    net = network(model, select=select)
    buffers = dict(net.buffers)

    def contracted(weights: Mapping[str, Tensor], both: tuple[Batch, Tensor]) -> Tensor:
        x, c = both
        return (net.outputs(weights, x, buffers) * c).sum(1, keepdim=True)

    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    kernel = EmpiricalNTK(contracted, net.weights, params=[n for n in net.weights if n in trained])
    return kernel.diag((x, slopes)).double().cpu()
