"""How the studies train: networks drawn from a seed, steps, and steps that are recorded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.errors import BadValueError, nearest
from ntkit.studies.study import option

OTHERS = {  # optimizers of torch that a study cannot use
    "LBFGS": "evaluates the loss several times in a step",
    "Muon": "takes matrices only",
    "SparseAdam": "takes sparse gradients only",
}
NUMBERS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
LOSSES = {  # by what the targets are
    "numbers": NUMBERS,
    "classes": ("cross_entropy", "multi_margin_loss"),
    "pixels, 0 to 1": ("binary_cross_entropy_with_logits", *NUMBERS),
}


class Trained(Protocol):
    """A configuration that says how to train."""

    @property
    def optimizer(self) -> str:
        """A name in ``torch.optim``."""
        ...

    @property
    def loss(self) -> str:
        """A name in ``torch.nn.functional``."""
        ...


def optimizer_option(default: str) -> Any:
    """Return a field of a configuration for the optimizer that a study trains by."""
    return option(default, "Optimizer, a name in torch.optim.", check=_check_optimizer)


def loss_option(default: str, targets: str = "numbers") -> Any:
    """Return a field of a configuration for the loss that a study trains with, by the kind of its targets."""
    names = ", ".join(LOSSES[targets])
    return option(
        default,
        f"Loss, a name in torch.nn.functional ({names}).",
        check=partial(_check_loss, targets=targets),
    )


def optimizer_of(
    name: str, parameters: Iterable[nn.Parameter | Tensor], rate: float
) -> torch.optim.Optimizer:
    """Return the optimizer of a name in torch, with a learning rate, and its other defaults."""
    return getattr(torch.optim, name)(parameters, lr=rate)


def loss_of(name: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of a name in torch: a mean over samples."""
    return getattr(nn.functional, name)


def _check_optimizer(option: str, name: str) -> None:
    known = sorted(
        each
        for each, kind in vars(torch.optim).items()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    )
    usable = [each for each in known if each not in OTHERS]
    if name in usable:
        return
    why = f"it {OTHERS[name]}" if name in OTHERS else "torch.optim has no optimizer of that name"
    raise BadValueError(
        f"{option} is {name!r}, but {why}; expected one of {', '.join(usable)}.{nearest(name, usable)}"
    )


def _check_loss(option: str, name: str, targets: str) -> None:
    usable = LOSSES[targets]
    if name in usable:
        return
    there = name.isidentifier() and callable(getattr(nn.functional, name, None))
    why = f"it does not serve targets that are {targets}" if there else "torch.nn.functional has no such loss"
    raise BadValueError(
        f"{option} is {name!r}, but {why}; expected one of {', '.join(usable)}.{nearest(name, usable)}"
    )


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
