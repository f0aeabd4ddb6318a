"""TracIn of captum and of dattri on the weights of a recorded run: sum_k rate grad f(x) . grad loss(x_n).

Both take all samples at each checkpoint, as the method says; ``rate`` is that of one step, times the steps
between checkpoints, over the number of samples: the mean step. Predictions are the largest logits.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Positional(nn.Module):
    """A network whose named inputs are given by position, as both libraries want it."""

    def __init__(self, net: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.net, self.names = net, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the network's outputs."""
        if not self.names:
            return self.net(*inputs)
        return self.net(**dict(zip(self.names, inputs, strict=True)))


def _network(net: nn.Module, x: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    if isinstance(x, dict):
        return Positional(net, tuple(x)), tuple(x.values())
    return Positional(net, ()), (x,)


def captum(
    net: nn.Module, x: Any, y: Tensor, queries: int, of: Tensor, checkpoints: list[dict], rate: float
) -> Tensor:
    """Return the influences ``[queries, n]`` of TracInCP, its fast way for layers where it has one."""
    from captum.influence import TracInCP

    wrapped, inputs = _network(net, x)
    known = all(isinstance(m, nn.Linear | nn.Conv2d) for m in net.modules() if [*m.parameters(recurse=False)])

    def load(model: Any, checkpoint: Any) -> float:
        model.net.load_state_dict(checkpoint)
        model.eval()
        return rate

    reduction = "sum" if known else "none"
    tracin = TracInCP(
        wrapped,
        TensorDataset(*inputs, y),
        checkpoints,  # pyright: ignore[reportArgumentType]
        checkpoints_load_func=load,
        loss_fn=nn.CrossEntropyLoss(reduction=reduction),
        batch_size=64,
        test_loss_fn=_Largest(reduction),
        sample_wise_grads_per_batch=known,
    )
    found = tracin.influence((*(t[:queries] for t in inputs), of))
    assert isinstance(found, Tensor)
    return found.detach()


class _Largest(nn.Module):
    """The negative of one output of each sample: what falls where the prediction rises."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, outputs: Tensor, of: Tensor) -> Tensor:
        values = -outputs.gather(1, of[:, None])[:, 0]
        return values.sum() if self.reduction == "sum" else values


def dattri(
    net: nn.Module, x: Any, y: Tensor, queries: int, of: Tensor, checkpoints: list[dict], rate: float
) -> Tensor:
    """Return the influences ``[queries, n]`` of TracInAttributor, without its random projection."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    wrapped, inputs = _network(net, x)
    wrapped.eval()

    def logits(params: Any, data: Any) -> Tensor:
        return torch.func.functional_call(wrapped, params, tuple(t[None] for t in data[:-1]))

    task = AttributionTask(
        lambda params, data: F.cross_entropy(logits(params, data), data[-1][None]),
        wrapped,
        [{f"net.{k}": v for k, v in c.items()} for c in checkpoints],
        target_func=lambda params, data: -logits(params, data)[0].gather(0, data[-1][None])[0],
    )
    attributor = TracInAttributor(task, torch.full((len(checkpoints),), rate), normalized_grad=False)
    attributor.projector_kwargs = None  # pyright: ignore[reportAttributeAccessIssue]
    train = DataLoader(TensorDataset(*inputs, y), batch_size=64)
    test = DataLoader(TensorDataset(*(t[:queries] for t in inputs), of), batch_size=queries)
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # its progress bars
        warnings.simplefilter("ignore")
        return attributor.attribute(train, test).T.detach()


PEERS = {"captum": captum, "dattri": dattri}
