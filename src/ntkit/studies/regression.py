"""What the studies of wide networks share: ReLU networks in the NTK parameterization, least squares."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import ntkit

SIGMA_W, SIGMA_B = 1.0, 0.1  # as Jacot et al. have it


def template(inputs: int, width: int, hidden: int) -> nn.Sequential:
    """Return a ReLU network with so many hidden layers and one output, as a plain module."""
    sizes = [inputs, *[width] * hidden]
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def network(
    inputs: int,
    width: int,
    hidden: int,
    seed: int,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    sigma_w: float = SIGMA_W,
    sigma_b: float = SIGMA_B,
) -> nn.Module:
    """Return such a network in the NTK parameterization, drawn from the seed."""
    plain = template(inputs, width, hidden).to(device, dtype)
    return ntkit.ntk_parametrize(plain, sigma_w=sigma_w, sigma_b=sigma_b, seed=seed)


def limit(inputs: int, hidden: int, *, sigma_w: float = SIGMA_W, sigma_b: float = SIGMA_B):
    """Return the infinite-width limit of such networks."""
    example = torch.zeros(1, inputs, dtype=torch.float64)
    return ntkit.infinite_width(template(inputs, 1, hidden).double(), example, sigma_w, sigma_b)


def descend(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    rate: float,
    look: Callable[[int], None] = lambda step: None,
) -> None:
    """Train by full-batch gradient descent on (1/2N) sum (f - y)^2, so that time is steps x rate.

    ``look`` is called with the number of steps made, from 0 on.
    """
    optimizer = torch.optim.SGD(model.parameters(), rate)
    look(0)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(x), y) / 2).backward()
        optimizer.step()
        look(step)


def relative(difference: Tensor, whole: Tensor) -> float:
    """Return the Frobenius norm of a difference over that of the whole."""
    return float(difference.norm() / whole.norm())


def circle(angles: Tensor) -> Tensor:
    """Return points of the unit circle, ``[n, 2]``."""
    return torch.stack([angles.cos(), angles.sin()], dim=-1)
