"""A network with a linear last layer lies in the span of its own tangent features.

For N(x; w) = W P(x) + b, the gradient by W is P(x) and by b is 1; so with a = (W, b, 0, ..., 0) the product
of the feature vector with a is the network itself (Courtois, Morel, Arias, Section 4.2). A network without
errors has linearly separable features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ntkit
from ntkit.display.axes import BLUE, ORANGE
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, seeded, step

QUICK = {"samples": 40, "steps": 200}


class Config(StudyConfig):
    """A convolutional network on small pictures with two labels."""

    optimizer: str = optimizer_option("Adam")
    loss: str = loss_option("mse_loss")
    samples: int = option(100, "Pictures.", low=4, high=10_000)
    steps: int = option(500, "Steps of Adam.", low=1, high=10**5)
    side: int = option(8, "Pixels along each side.", low=4, high=64)


def run(config: Config) -> Result:
    """Train a network, and write it as a product of its features."""
    draw = torch.Generator().manual_seed(config.seed)
    x = torch.randn(config.samples, 1, config.side, config.side, generator=draw, dtype=torch.float64)
    y = torch.where(x.mean((1, 2, 3)) > x[:, :, : config.side // 2].mean((1, 2, 3)), 1.0, -1.0)[:, None]
    x, y = x.to(config.device), y.to(config.device, torch.float64)
    with seeded(config.seed):
        body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.GELU(), nn.Flatten())
        head = nn.Linear(6 * config.side**2, 1)
    model = nn.Sequential(body, head).to(config.device, torch.float64)
    before = _off(model, head, x)
    start = torch.stack([model(x).detach(), _product(model, head, x)])[..., 0]
    optimizer = optimizer_of(config.optimizer, model.parameters(), 1e-2)
    for _ in range(config.steps):
        step(optimizer, loss_of(config.loss)(model(x), y))
    product, outputs = _product(model, head, x), model(x).detach()
    right = float(((outputs > 0) == (y > 0)).double().mean())
    separable = float(((product > 0) == (y > 0)).double().mean())
    claims = (
        Claim("largest |<phi(x), a> - N(x)|, at the start", before, "0", high=1e-12),
        Claim("largest |<phi(x), a> - N(x)|, trained", _off(model, head, x), "0", high=1e-12),
        Claim("accuracy of the trained network", right, low=1.0),
        Claim("accuracy of the plane <phi(x), a> = 0", separable, "100 %", low=1.0),
    )
    return Result(config, claims, {"start": start, "trained": torch.stack([outputs, product])[..., 0]})


def figure(result: Result) -> Figures:
    """Draw the product with the features against the network."""
    drawn, ax = panels(4.4, 4)
    ax.axline((0, 0), slope=1, color="0.7", lw=1)
    for name, text, color in (("start", "untrained", ORANGE), ("trained", "trained", BLUE)):
        ax.plot(*result.arrays[name], ".", color=color, label=text)
    finish(ax, xlabel="network N(x)", ylabel="⟨φ(x), a⟩", aspect="equal")
    return {"The network and the product with its features": drawn}


def _product(model: nn.Module, head: nn.Linear, x: Tensor) -> Tensor:
    """Return <phi(x), a> ``[n, 1]``, a being the last layer's weights in their places and zero elsewhere."""
    last = {id(p) for p in head.parameters()}
    parts = [p if id(p) in last else torch.zeros_like(p) for p in model.parameters()]
    a = torch.cat([p.detach().reshape(-1) for p in parts])
    return ntkit.EmpiricalNTK(model).features(x) @ a


def _off(model: nn.Module, head: nn.Linear, x: Tensor) -> float:
    return float((_product(model, head, x) - model(x)).detach().abs().max())
