"""What a run says of each training sample: its loss, and the square of its gradient, over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ntkit.compute.plan import chunks
from ntkit.errors import NtkitError, whole
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.inputs import Batch, Bundle, batch_size, take
from ntkit.network import network, selected
from ntkit.training.functional.losses import BatchLoss, checked_loss

_ROWS = 1024  # samples that pass through the network together


class SampleScores:
    """The loss of each sample, and its squared gradient norm |J^T c|^2, at the network's present weights.

    c is the derivative of the sample's loss by the outputs, so that the norm is the tangent kernel's diagonal
    of the network c . f(x), which has one output: by its structure, where it has one.
    """

    def __init__(self, model: nn.Module, loss: BatchLoss, select: str | int | None = None) -> None:
        self.model, self.loss = model, loss
        self.net = network(model, select=select)
        self.kernel = EmpiricalNTK(_Contracted(model, select))

    def at(self, x: Batch, y: Batch) -> tuple[Tensor, Tensor]:
        """Return losses and squared gradient norms, ``[n]`` each."""
        losses, slopes = [], []
        for s in chunks(batch_size(x), _ROWS):
            with torch.no_grad():
                raw = self.net.selected(self.net.call(self.net.weights, take(x, s)))
            with torch.enable_grad():
                leaf = raw.detach().requires_grad_()
                each = _each(self.loss, leaf, take(y, s))
                (slope,) = torch.autograd.grad(each.sum(), leaf)
            losses.append(each.detach().double().cpu())
            slopes.append(slope.reshape(len(slope), -1))
        norms = self.kernel.diag((x, torch.cat(slopes)))
        return torch.cat(losses), norms.double().cpu()


class _Contracted(nn.Module):
    """c . f(x) of pairs (x, c): one output."""

    def __init__(self, model: nn.Module, select: str | int | None) -> None:
        super().__init__()
        self.model, self.select = model, select

    def forward(self, x: Batch, c: Tensor) -> Tensor:
        args, named = _arguments(x)
        return (_rows(self.model(*args, **named), self.select) * c).sum(1, keepdim=True)


class Combined(nn.Module):
    """Some orthonormal combinations of the outputs, drawn: ``[n, directions]``; all outputs, if None.

    The trace of their tangent kernel, times o / directions, is on average that of all o outputs.
    """

    combinations: Tensor | None

    def __init__(
        self, model: nn.Module, select: str | int | None, example: Batch, directions: int | None, seed: int
    ) -> None:
        super().__init__()
        self.model, self.select = model, select
        args, named = _arguments(example)
        with torch.no_grad():
            found = _rows(model(*args, **named), select)
        o = found.shape[1]
        count = o if directions is None else min(o, whole("directions", directions))
        generator = torch.Generator().manual_seed(whole("seed", seed, None))
        drawn = torch.linalg.qr(torch.randn(o, count, generator=generator, dtype=torch.float64)).Q
        self.register_buffer("combinations", None if count == o else drawn.to(found))
        self.train(model.training)

    def forward(self, *args: object, **named: object) -> Tensor:
        """Return them."""
        outputs = _rows(self.model(*args, **named), self.select)
        return outputs if self.combinations is None else outputs @ self.combinations


def _arguments(x: Batch) -> tuple[Sequence[object], Mapping[str, object]]:
    """Return how a network is called with a batch."""
    value: object = x.value if isinstance(x, Bundle) else x
    if isinstance(value, dict):
        return (), value
    return (value if type(value) is tuple else (value,)), {}


def _rows(outputs: object, select: str | int | None) -> Tensor:
    """Return the outputs of each sample, ``[n, o]``."""
    found = selected(outputs, select)
    return found.reshape(len(found), -1)


def _each(loss: BatchLoss, outputs: Tensor, y: Batch) -> Tensor:
    """Return loss(f_n, y_n) of each sample: batched where the loss allows it, else one by one."""

    def one(f: Tensor, target: Batch) -> Tensor:
        return loss(f[None], pytree.tree_map(lambda t: t[None], target)).reshape(())

    try:
        return torch.vmap(one)(outputs, y)
    except NtkitError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError):
        rows = [slice(i, i + 1) for i in range(len(outputs))]
        return torch.stack([checked_loss(loss, outputs[r], take(y, r)) for r in rows])
