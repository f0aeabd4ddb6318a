"""Lazy training by scale: the output is multiplied by alpha, the loss divided by its square.

    R_alpha(w) = R(alpha f_w) / alpha^2,  gradient flow up to a fixed time

The weights move by O(1 / alpha), and stay within O(1 / alpha^2) of those of the linearized network
(Ravikumar, Section 5.3, after Chizat et al.), whatever the width: the function starts at zero, the one at the
start being taken off. The distances are those of a smooth network; the test error is that of ReLU networks
which learn one neuron: the rich one, alpha small, finds it, and the lazy one does not.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import slope, step

QUICK = {"alphas": (8.0, 16.0, 32.0), "steps": 300, "rich_steps": 1500, "width": 40}


class Config(StudyConfig):
    """A two-layer network that learns one neuron."""

    alphas: tuple[float, ...] = option((4.0, 8.0, 16.0, 32.0, 64.0), "Scales.", low=1e-3)
    width: int = option(100, "Width of the network.", low=2, high=10_000)
    dimension: int = option(10, "Dimension of the inputs, on the sphere.", low=2, high=1000)
    samples: int = option(100, "Training inputs.", low=2, high=10_000)
    steps: int = option(1000, "Steps of the flow.", low=10, high=10**6)
    time: float = option(5.0, "Time of the flow.", low=1e-3)
    rich_alphas: tuple[float, ...] = option((0.02, 0.1, 0.5, 64.0), "Scales of the test error.", low=1e-3)
    rich_steps: int = option(6000, "Steps until the test error is measured.", low=10, high=10**6)


def run(config: Config) -> Result:
    """Follow the flow at each scale, with the linearized network beside it; then train to the end."""
    draw = torch.Generator().manual_seed(config.seed)

    def sphere(n: int) -> Tensor:
        x = torch.randn(n, config.dimension, generator=draw, dtype=torch.float64)
        return (x / x.norm(dim=1, keepdim=True) * config.dimension**0.5).to(config.device)

    x, test = sphere(config.samples), sphere(2000)
    neuron = torch.randn(config.dimension, generator=draw, dtype=torch.float64).to(config.device)
    neuron /= neuron.norm()
    y, truth = (torch.relu(t @ neuron)[:, None] for t in (x, test))
    rate = config.time / config.steps
    moved, apart, functions = [], [], []
    with progress("training (networks)", 2 * len(config.alphas) + len(config.rich_alphas)) as done:
        for alpha in config.alphas:
            tracks = []
            for linear in (False, True):
                model = _model(config)
                trained = ntkit.linearize(model) if linear else model
                tracks.append(_flow(trained, x, y, alpha, rate, config.steps, test[:200]))
                done(1)
            (w, f), (v, g) = tracks
            moved.append(float((w - w[0]).norm(dim=1).max()))
            apart.append(float((w - v).norm(dim=1).max()))
            functions.append(float((f - g).pow(2).mean(1).sqrt().max()))
        errors = []
        for alpha in config.rich_alphas:
            _, outputs = _flow(_model(config, nn.ReLU), x, y, alpha, 0.05, config.rich_steps, test)
            errors.append(float(((outputs[-1] - truth[:, 0]) ** 2).mean() / (truth**2).mean()))
            done(1)
    by_start, by_weights, by_functions = (slope(config.alphas, v) for v in (moved, apart, functions))
    claims = (
        Claim("distance of the weights from the start: slope in alpha", by_start, "-1", low=-1.2, high=-0.8),
        Claim("distance from the linearized weights: slope", by_weights, "-2", low=-2.4, high=-1.6),
        Claim("distance of the functions: slope", by_functions, "-1", low=-1.3, high=-0.7),
        Claim("test error, lazy over rich", errors[-1] / min(errors[:-1]), "> 1", low=2.0),
    )
    arrays = {"alphas": config.alphas, "moved": moved, "apart": apart, "functions": functions}
    return Result(config, claims, {**arrays, "rich alphas": config.rich_alphas, "errors": errors})


def figure(result: Result) -> Figures:
    """Draw the distances against alpha, and the test error."""
    a = result.arrays
    drawn, (left, right) = panels(9, 3.8, columns=2)
    for name, text, color in (
        ("moved", "weights from their start", BLUE),
        ("functions", "functions from the linearized", GREEN),
        ("apart", "weights from the linearized", ORANGE),
    ):
        left.loglog(a["alphas"], a[name], "o-", color=color, label=text)
    right.semilogx(a["rich alphas"], a["errors"], "o-", color=BLUE)
    finish(left, xlabel="scale α", ylabel="largest distance until the end", grid="both")
    finish(right, xlabel="scale α", ylabel="test error / mean square of the target", grid="both")
    return {"Distances and test error against the scale": drawn}


def _model(config: Config, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    d, width = config.dimension, config.width
    plain = nn.Sequential(nn.Linear(d, width, bias=False), activation(), nn.Linear(width, 1, bias=False))
    return ntkit.ntk_parametrize(plain.double(), 1.0, 0.0, seed=config.seed).to(config.device)


def _flow(
    model: nn.Module, x: Tensor, y: Tensor, alpha: float, rate: float, steps: int, q: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weights ``[k, P]`` and functions alpha (f_w - f_w0) ``[k, q]`` along the flow."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, rate)
    with torch.no_grad():
        start, start_q = model(x), model(q)
    weights, outputs = [], []
    for i in range(steps + 1):
        if i % (steps // 20) == 0 or i == steps:
            weights.append(torch.cat([p.detach().reshape(-1) for p in parameters]))
            with torch.no_grad():
                outputs.append(alpha * (model(q) - start_q)[:, 0])
        step(optimizer, nn.functional.mse_loss(alpha * (model(x) - start), y) / (2 * alpha**2))
    return torch.stack(weights), torch.stack(outputs)
