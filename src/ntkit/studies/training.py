"""How the studies train: networks drawn from a seed, steps, and steps that are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.errors import BadValueError


class Elementwise(nn.Module):
    """A function of one number as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Apply the function to each number."""
        return self.function(x)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave torch's own stream of random numbers as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a network whose layers have so many units, from its inputs to its outputs."""
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1])


def step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Make one step down a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def train_recorded(
    folder: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor],
    train: tuple[Tensor, Tensor],
    batches: Iterable[Tensor],
) -> None:
    """Make a step for each batch of samples, recorded into a folder."""
    x, y = train
    with ntkit.record(folder, model, optimizer, train=train) as run:
        for index in batches:
            run.batch(index)
            step(optimizer, loss(model(x[index]), y[index]))


def slope(x: Iterable[float], y: Iterable[float]) -> float:
    """Return the slope of log y against log x, of at least two points.

    Raises
    ------
    BadValueError
        When a value is not positive, so that it has no logarithm.
    """
    x, y = np.array([*x], dtype=float), np.array([*y], dtype=float)
    if not (np.isfinite(y).all() and (y > 0).all()):
        raise BadValueError(
            f"What was measured is {y.tolist()} at {x.tolist()}; expected positive numbers, of which a slope "
            "on logarithmic scales can be taken. Take other values of this option."
        )
    log_x, log_y = np.log(x), np.log(y)
    return float(np.polyfit(log_x, log_y, 1)[0])
