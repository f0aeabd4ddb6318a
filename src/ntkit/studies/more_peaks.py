"""Sequences with more than two peaks: plain descent, Adam, and the account of Adam's run.

The label is the value of the middle after the shape is filled in, p / 2 counted from 1 (Courtois, Morel,
Arias, Section 6.3, last paragraph).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.data.parity import filled, peaks
from ntkit.errors import BadValueError
from ntkit.studies.parts import scratch
from ntkit.studies.study import array
from ntkit.studies.training import loss_of, mlp, optimizer_of, seeded, step, train_recorded

HELD_OUT = 4000  # sequences at most that are not learned from
Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A network p-width-width-1 with GELU, and how it is trained; ``batch`` zero: on all at once."""

    p: int
    count: int
    samples: int
    width: int
    steps: int
    rate: float
    batch: int
    adam: bool
    seed: int
    device: str
    loss: str = "mse_loss"


def sequences(task: Task) -> tuple[Pair, Pair]:
    """Return different sequences with their labels ``[n, 1]``: those to learn from, and others.

    Raises
    ------
    BadValueError
        When there are not that many.
    """
    drawn = peaks(4 * (task.samples + HELD_OUT), task.p, task.count, task.seed + 1).unique(dim=0)
    order = torch.randperm(len(drawn), generator=torch.Generator().manual_seed(task.seed))
    x = drawn[order].to(task.device, torch.float64)
    if len(x) < 1.1 * task.samples:
        raise BadValueError(
            f"There are hardly more than {len(x)} sequences of length {task.p} with {task.count} peaks; "
            f"expected some beside the {task.samples} to learn from. Learn from fewer, or take longer ones."
        )
    y = filled(x)[:, task.p // 2 - 1, None]
    cut = slice(task.samples), slice(task.samples, task.samples + HELD_OUT)
    return (x[cut[0]], y[cut[0]]), (x[cut[1]], y[cut[1]])


def accuracies(task: Task) -> tuple[float, float]:
    """Train, and return the accuracy on what was learned from, and on the others."""
    seen, others = sequences(task)
    model, optimizer, batches = _start(task, seen[0])
    for index in batches:
        step(optimizer, loss_of(task.loss)(model(seen[0][index]), seen[1][index]))
    return right(model, *seen), right(model, *others)


def accounted(task: Task, queries: int) -> dict[str, np.ndarray | float]:
    """Train and account for predictions on sequences that were not learned from.

    The result has the accuracies, the residual over the movement, the queries ``[q, p]`` with predictions
    ``[q]``, and for each query the sequences ``[q, 10, p]`` that moved it most, with how far ``[q, 10]``.
    """
    seen, others = sequences(task)
    model, optimizer, batches = _start(task, seen[0])
    asked = others[0][:queries]
    with scratch() as folder:
        train_recorded(f"{folder}/run", model, optimizer, loss_of(task.loss), seen, batches)
        a = ntkit.account(f"{folder}/run", model, loss_of(task.loss), train=seen, queries=asked)
    pushes = a.contributions[:, 0].cpu()
    top = pushes.abs().topk(min(10, pushes.shape[1]), dim=1).indices
    common = (seen[0].cpu()[top] * asked.cpu()[:, None]).sum(-1)
    by_chance = (seen[0].cpu() @ asked.cpu().T).mean()
    return {
        "seen": right(model, *seen),
        "others": right(model, *others),
        "residual": float(a.relative_residual),
        "queries": array(asked),
        "prediction": array(a.prediction[:, 0]),
        "top": array(seen[0].cpu()[top]),
        "pushes": array(pushes.gather(1, top)),
        "common": float(common.mean()),
        "by chance": float(by_chance),
    }


@torch.no_grad()
def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of sequences whose prediction is on the side of the label."""
    return float(((model(x) > 0.5) == (y > 0.5)).double().mean())


def _start(task: Task, x: Tensor):
    """Return an untrained network, its optimizer, and the batches that it learns from."""
    with seeded(task.seed):
        model = mlp(task.p, task.width, task.width, 1, activation=nn.GELU).to(task.device, torch.float64)
    optimizer = optimizer_of("Adam" if task.adam else "SGD", model.parameters(), task.rate)
    draw = torch.Generator().manual_seed(task.seed)
    size = min(task.batch, len(x)) or len(x)
    order = partial(torch.randperm, len(x), generator=draw)
    whole = torch.arange(len(x))
    batches = (whole if size == len(x) else order()[:size] for _ in range(task.steps))
    return model, optimizer, batches
