"""What the studies of wide networks share: ReLU networks in the NTK parameterization, least squares."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ntkit
from ntkit.studies.study import StudyConfig
from ntkit.studies.training import Trained, loss_of, loss_option, mlp, optimizer_of, optimizer_option, step

SIGMAS = 1.0, 0.1  # of weights and biases, as Jacot et al. have it


class DescentConfig(StudyConfig):
    """How networks are trained for a regression."""

    optimizer: str = optimizer_option("SGD")
    loss: str = loss_option("mse_loss")


def network(
    inputs: int, width: int, hidden: int, seed: int, device: str, dtype: torch.dtype = torch.float32
) -> nn.Module:
    """Return such a network with so many hidden layers and one output, drawn from the seed."""
    return ntkit.ntk_parametrize(mlp(inputs, *[width] * hidden, 1).to(device, dtype), *SIGMAS, seed=seed)


def limit(inputs: int, hidden: int):
    """Return the infinite-width limit of such networks."""
    example = torch.zeros(1, inputs, dtype=torch.float64)
    return ntkit.infinite_width(mlp(inputs, *[1] * hidden, 1).double(), example, *SIGMAS)


def descend(
    how: Trained,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    rate: float,
    look: Callable[[int], None] | None = None,
) -> None:
    """Train on all samples by steps down half the loss: (1/2N) sum (f - y)^2, so that time is steps x rate.

    ``look`` is called with the number of steps made, from 0 on.
    """
    optimizer, loss = optimizer_of(how.optimizer, model.parameters(), rate), loss_of(how.loss)
    for made in range(steps + 1):
        if made > 0:
            step(optimizer, loss(model(x), y) / 2)
        if look is not None:
            look(made)


def relative(difference: Tensor, whole: Tensor) -> float:
    """Return the Frobenius norm of a difference over that of the whole."""
    return float(difference.norm() / whole.norm())


def circle(angles: Tensor) -> Tensor:
    """Return points of the unit circle, ``[n, 2]``."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)
