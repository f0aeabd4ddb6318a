"""Small recorded runs, for the questions asked of runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import ntkit
from ntkit.diagnose import RecordedRun


def recorded(
    folder: Path,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    loss: str | Callable = "cross_entropy",
    *,
    steps: int = 40,
    batch: int = 16,
    rate: float = 0.2,
    seed: int = 0,
    every: int = 1,
) -> RecordedRun:
    x, y = data
    function = getattr(nn.functional, loss) if isinstance(loss, str) else loss
    optimizer, draw = torch.optim.SGD(model.parameters(), lr=rate), torch.Generator().manual_seed(seed)
    with ntkit.record(folder, model, optimizer, train=data, every=every) as run:
        for _ in range(steps):
            index = torch.randperm(len(x), generator=draw)[:batch]
            run.batch(index)
            optimizer.zero_grad()
            function(model(x[index]), y[index]).backward()
            optimizer.step()
    return RecordedRun(folder, model, loss, train=data)


def classes(n: int = 48, d: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around three means, and which of them."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    means = 2 * torch.randn(3, d, generator=draw, dtype=torch.float64)
    return means[y] + torch.randn(n, d, generator=draw, dtype=torch.float64), y


def mlp(d: int = 5, width: int = 8, outputs: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, outputs)).double()
