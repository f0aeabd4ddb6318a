"""What random features, tangent features and a trained network make of polynomials on the sphere.

Inputs uniform on the sphere of radius sqrt(d), targets the Hermite polynomials of degree l of one direction,
N neurons with d < N < d^2. Random features fit degree 1 only, the tangent features of the same neurons degree
2 (Ravikumar, Section 6, after Ghorbani et al.); for a single neuron as target, training the network itself
beats both.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.studies.figures import Figures, panels
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import step

QUICK = {"dimension": 15, "neurons": 40, "samples": 3000, "steps": 1500}


class Config(StudyConfig):
    """N neurons between d and d^2, and many samples, so that the error is that of approximation."""

    dimension: int = option(30, "Dimension d.", low=4, high=200)
    neurons: int = option(120, "Neurons N.", low=4, high=10_000)
    samples: int = option(12_000, "Training inputs.", low=100, high=10**6)
    steps: int = option(4000, "Steps of Adam for the network.", low=1, high=10**6)
    batch: int = option(256, "Inputs in a step.", low=1)


def run(config: Config) -> Result:
    """Fit each target with each model, and measure what is left on new inputs."""
    draw = torch.Generator().manual_seed(config.seed)
    d = config.dimension

    def sphere(n: int) -> Tensor:
        x = torch.randn(n, d, generator=draw, dtype=torch.float64)
        return x / x.norm(dim=1, keepdim=True)

    x, test = (d**0.5 * sphere(n).to(config.device) for n in (config.samples, 4000))
    direction, neurons = sphere(1)[0].to(config.device), sphere(config.neurons).to(config.device)
    targets = {
        "degree 1": lambda u: u,
        "degree 2": lambda u: (u**2 - 1) / 2**0.5,
        "degree 3": lambda u: (u**3 - 3 * u) / 6**0.5,
        "one neuron": torch.relu,
    }
    maps = {"random features": _random, "tangent features": _tangent}
    left: dict[str, dict[str, float]] = {}
    for name, f in targets.items():
        y, truth = f(x @ direction), f(test @ direction)
        mean = y.mean()
        size = float(((truth - mean) ** 2).mean())
        left[name] = {
            kind: _fit(map_(x, neurons), y, map_(test, neurons), truth) / size for kind, map_ in maps.items()
        }
        left[name]["network"] = _train(config, neurons, x, y, test, truth) / size
    random, tangent, network = ([left[t][k] for t in targets] for k in (*maps, "network"))
    over = network[3] / tangent[3]
    claims = (
        Claim("random features, degree 1: error left", random[0], "0", high=0.15),
        Claim("random features, degree 2", random[1], "1", low=0.5),
        Claim("tangent features, degree 1", tangent[0], "0", high=0.15),
        Claim("tangent features, degree 2", tangent[1], "0", high=0.35),
        Claim("tangent features, degree 3", tangent[2], "1", low=0.6),
        Claim("one neuron: trained network over tangent features", over, "< 1", high=1.0),
        Claim("one neuron: random features", random[3]),
        Claim("one neuron: tangent features", tangent[3]),
        Claim("one neuron: network", network[3], "0"),
    )
    return Result(config, claims, {"left": [random, tangent, network]}, {"targets": list(targets)})


def figure(result: Result) -> Figures:
    """Draw what each model leaves of each target."""
    drawn, ax = panels(7, 3.8)
    names = result.numbers["targets"]
    places, colors = np.arange(len(names)), (ORANGE, GREEN, BLUE)
    for i, kind in enumerate(("random features", "tangent features", "trained network")):
        ax.bar(places + 0.27 * (i - 1), result.arrays["left"][i], 0.25, color=colors[i], label=kind)
    ax.set_xticks(places, names)
    ax.set(ylabel="error left / variance of the target")
    ax.axhline(1, color="0.5", lw=1)
    ax.grid(alpha=0.3, axis="y")
    ax.legend(frameon=False)
    return {"What each model leaves of each target": drawn}


def _random(x: Tensor, neurons: Tensor) -> Tensor:
    return torch.cat([torch.relu(x @ neurons.T), torch.ones_like(x[:, :1])], dim=1)


def _tangent(x: Tensor, neurons: Tensor) -> Tensor:
    """Return the gradients of the two-layer network by its second and by its first layer."""
    active = (x @ neurons.T > 0).to(x)
    return torch.cat([_random(x, neurons), (active[:, :, None] * x[:, None]).flatten(1)], dim=1)


def _fit(z: Tensor, y: Tensor, test: Tensor, truth: Tensor) -> float:
    """Return the test error of least squares with a small ridge."""
    gram = z.T @ z
    gram.diagonal().add_(1e-6 * gram.diagonal().mean())
    w = torch.linalg.solve(gram, z.T @ y)
    return float(((test @ w - truth) ** 2).mean())


def _train(config: Config, neurons: Tensor, x: Tensor, y: Tensor, test: Tensor, truth: Tensor) -> float:
    first = neurons.float().clone().requires_grad_()
    second = torch.zeros(len(neurons), device=x.device).requires_grad_()
    bias = torch.zeros((), device=x.device).requires_grad_()
    optimizer = torch.optim.Adam([first, second, bias], 1e-2)
    order = torch.Generator().manual_seed(config.seed)
    x32, y32 = x.float(), y.float()
    for i in range(config.steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / config.steps)
        index = torch.randint(len(x), (config.batch,), generator=order).to(x.device)
        step(optimizer, nn.functional.mse_loss(torch.relu(x32[index] @ first.T) @ second + bias, y32[index]))
    with torch.no_grad():
        out = torch.relu(test.float() @ first.T) @ second + bias
    return float(np.mean((array(out) - array(truth)) ** 2))
