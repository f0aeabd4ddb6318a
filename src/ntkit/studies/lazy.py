"""Lazy training by scale: the output is multiplied by alpha, the loss divided by its square.

    R_alpha(w) = R(alpha f_w) / alpha^2,  gradient flow up to a fixed time

The weights move by O(1 / alpha), and stay within O(1 / alpha^2) of those of the linearized network
(Ravikumar, Section 5.3, after Chizat et al.), whatever the width: the function starts at zero, the one at the
start being taken off. The distances are those of a smooth network; the test error is that of ReLU networks
which learn one neuron, all trained by the same steps: the rich ones, alpha small, and the lazy one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.errors import NtkitError
from ntkit.studies.figures import Figures, finish, panels, ticks
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, slope, step

QUICK = {"alphas": (8.0, 16.0, 32.0), "steps": 300, "rich_steps": 4000, "width": 40}


class Config(StudyConfig):
    """A two-layer network that learns one neuron."""

    optimizer: str = optimizer_option("SGD")
    loss: str = loss_option("mse_loss")
    alphas: tuple[float, ...] = option((4.0, 8.0, 16.0, 32.0, 64.0), "Scales.", low=1e-3, least=2)
    width: int = option(100, "Width of the network.", low=2, high=10_000)
    dimension: int = option(10, "Dimension of the inputs, on the sphere.", low=2, high=1000)
    samples: int = option(100, "Training inputs.", low=2, high=10_000)
    steps: int = option(1000, "Steps of the flow.", low=10, high=10**6)
    time: float = option(5.0, "Time of the flow.", low=1e-3)
    rich_alphas: tuple[float, ...] = option(
        (0.02, 0.1, 0.5, 64.0), "Scales of the test error.", low=1e-3, least=2
    )
    rich_steps: int = option(8000, "Steps until the test error is measured.", low=10, high=10**6)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alphas", "rich_alphas"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))


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

            def distances(alpha=alpha) -> tuple[float, float, float]:
                tracks = []
                for linear in (False, True):
                    model = _model(config)
                    trained = ntkit.linearize(model) if linear else model
                    tracks.append(_flow(config, trained, x, y, alpha, rate, config.steps, test[:200]))
                    done(1)
                (w, f), (v, g) = tracks
                apart_by = float((f - g).pow(2).mean(1).sqrt().max())
                return float((w - w[0]).norm(dim=1).max()), float((w - v).norm(dim=1).max()), apart_by

            for values, value in zip(
                (moved, apart, functions), part(f"distances, {alpha}", distances), strict=True
            ):
                values.append(value)
        errors, left = [], []
        for alpha in config.rich_alphas:

            def remaining(alpha=alpha) -> tuple[float, float]:
                both = torch.cat([test, x]), torch.cat([truth, y])
                _, outputs = _flow(
                    config, _model(config, nn.ReLU), x, y, alpha, 0.2, config.rich_steps, both[0]
                )
                square = (outputs[-1] - both[1][:, 0]) ** 2
                if not bool(square.isfinite().all()):
                    raise NtkitError(
                        f"The network of scale {alpha:g} diverged. Expected a scale at which rate 0.2 is "
                        "small enough: take a larger one for rich_alphas."
                    )
                means = square[: len(test)].mean(), square[len(test) :].mean()
                return float(means[0] / (truth**2).mean()), float(means[1] / (y**2).mean())

            error, rest = part(f"error, {alpha}", remaining)
            errors.append(error)
            left.append(rest)
            done(1)
    by_start, by_weights, by_functions = (slope(config.alphas, v) for v in (moved, apart, functions))
    claims = (
        Claim("distance of the weights from the start: slope in alpha", by_start, "-1", low=-1.2, high=-0.8),
        Claim("distance from the linearized weights: slope", by_weights, "-2", low=-2.4, high=-1.6),
        Claim("distance of the functions: slope", by_functions, low=-1.3, high=-0.7),
        Claim("test error, lazy over rich", errors[-1] / min(errors[:-1]), "> 1", low=10.0),
        Claim(
            "training error of the lazy network at its end", left[-1], high=2e-2 if config.changed else 1e-3
        ),
    )
    arrays = {"alphas": config.alphas, "moved": moved, "apart": apart, "functions": functions}
    return Result(
        config, claims, {**arrays, "rich alphas": config.rich_alphas, "errors": errors, "left": left}
    )


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
    right.loglog(a["rich alphas"], a["errors"], "o-", color=BLUE, label="test")
    right.loglog(a["rich alphas"], a["left"], "o:", color=ORANGE, label="training")
    finish(left, xlabel="scale α", ylabel="largest distance until the end", fontsize=9)
    finish(right, xlabel="scale α", ylabel="error / mean square of the target", fontsize=9)
    ticks(left.xaxis, a["alphas"])
    ticks(right.xaxis, a["rich alphas"])
    return {"Distances and test error against the scale": drawn}


def _model(config: Config, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    d, width = config.dimension, config.width
    plain = nn.Sequential(nn.Linear(d, width, bias=False), activation(), nn.Linear(width, 1, bias=False))
    return ntkit.ntk_parametrize(plain.double(), 1.0, 0.0, seed=config.seed).to(config.device)


def _flow(
    config: Config, model: nn.Module, x: Tensor, y: Tensor, alpha: float, rate: float, steps: int, q: Tensor
) -> tuple[Tensor, Tensor]:
    """Return weights ``[k, P]`` and functions alpha (f_w - f_w0) ``[k, q]`` along the flow."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = optimizer_of(config.optimizer, parameters, rate)
    with torch.no_grad():
        start, start_q = model(x), model(q)
    weights, outputs = [], []
    for i in range(steps + 1):
        if i % max(1, steps // 20) == 0 or i == steps:
            weights.append(torch.cat([p.detach().reshape(-1) for p in parameters]))
            with torch.no_grad():
                outputs.append(alpha * (model(q) - start_q)[:, 0])
        step(optimizer, loss_of(config.loss)(alpha * (model(x) - start), y) / (2 * alpha**2))
    return torch.stack(weights), torch.stack(outputs)
