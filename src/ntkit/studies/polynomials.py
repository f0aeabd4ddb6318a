"""What random features, tangent features and a trained network make of polynomials on the sphere.

Inputs uniform on the sphere of radius sqrt(d), targets the Hermite polynomials of degree l of one direction,
N neurons with d < N < d^2. Random features fit degree 1 only, the tangent features of the same neurons degree
2 (Ravikumar, Section 6, after Ghorbani et al.); for a single neuron as target, the network itself can be
trained to nothing left. The whole kernel has no error of approximation; with n samples, d^l < n < d^(l+1), it
learns polynomials of degree l and leaves the others: a staircase in n.
"""

from __future__ import annotations

from math import floor, log

import numpy as np
import torch
from torch import Tensor

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.machine.kernels import ReLUKernel
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, step

QUICK = {"dimension": 15, "neurons": 40, "samples": 3000, "steps": 1500, "sizes": (60, 400), "draws": 3}
# What the whole kernel leaves of degrees 1 and 2 for d = 20, by samples; a bar lets it be off by 0.1. Of what
# is not learned all is left, and the variance of the fit beside it.
STAIRS = {60: (0.05, 1.0), 400: (0.0, 0.16), 2500: (0.0, 0.001)}


class Config(StudyConfig):
    """N neurons between d and d^2, and many samples, so that the error is that of approximation."""

    optimizer: str = optimizer_option("Adam")
    loss: str = loss_option("mse_loss")
    dimension: int = option(30, "Dimension d.", low=4, high=200)
    neurons: int = option(120, "Neurons N.", low=4, high=10_000)
    samples: int = option(12_000, "Training inputs.", low=100, high=10**6)
    steps: int = option(4000, "Steps of Adam for the network.", low=1, high=10**6)
    batch: int = option(256, "Inputs in a step.", low=1)
    kernel_dimension: int = option(20, "Dimension d of the inputs of the whole kernel.", low=4, high=200)
    sizes: tuple[int, ...] = option((60, 400, 2500), "Samples n of the whole kernel.", low=4, high=20_000)
    draws: int = option(9, "Draws of samples and direction, of which the median is taken.", low=1, high=1000)


TARGETS = {
    "degree 1": lambda u: u,
    "degree 2": lambda u: (u**2 - 1) / 2**0.5,
    "degree 3": lambda u: (u**3 - 3 * u) / 6**0.5,
    "one neuron": torch.relu,
}


def run(config: Config) -> Result:
    """Fit each target with each model, and measure what is left on new inputs."""
    draw = torch.Generator().manual_seed(config.seed)
    d = config.dimension

    def sphere(n: int) -> Tensor:
        x = torch.randn(n, d, generator=draw, dtype=torch.float64)
        return x / x.norm(dim=1, keepdim=True)

    x, test = (d**0.5 * sphere(n).to(config.device) for n in (config.samples, 4000))
    direction, neurons = sphere(1)[0].to(config.device), sphere(config.neurons).to(config.device)
    maps = {"random features": _random, "tangent features": _tangent}
    left: dict[str, dict[str, float]] = {}
    for name, f in TARGETS.items():
        y, truth = f(x @ direction), f(test @ direction)
        mean = y.mean()
        size = float(((truth - mean) ** 2).mean())
        left[name] = {
            kind: _fit(map_(x, neurons), y, map_(test, neurons), truth) / size for kind, map_ in maps.items()
        }
        trained = part(f"network, {name}", lambda y=y, t=truth: _train(config, neurons, x, y, test, t))
        left[name]["network"] = trained / size
    table = np.array([[left[t][k] for t in TARGETS] for k in (*maps, "network")])
    stairs = np.zeros((config.draws, len(config.sizes), 3))
    with progress("fitting the kernel (draws)", config.draws) as done:
        for i in range(config.draws):
            stairs[i] = part(f"kernel, draw {i}", lambda i=i: _kernel(config, config.seed + i))
            done(1)
    return Result(config, _claims(config, table, stairs), {"left": table, "stairs": stairs})


def _claims(config: Config, table: np.ndarray, stairs: np.ndarray) -> list[Claim]:
    random, tangent, network = table.tolist()
    over = network[3] / tangent[3]
    claims = [
        Claim("random features, degree 1: error left", random[0], "0", high=0.15),
        Claim("random features, degree 2", random[1], "1", low=0.5),
        Claim("tangent features, degree 1", tangent[0], "0", high=0.15),
        Claim("tangent features, degree 2", tangent[1], "0", high=0.35),
        Claim("tangent features, degree 3", tangent[2], "1", low=0.6),
        *(Claim(f"network, {name}", value) for name, value in zip(TARGETS, network[:3], strict=False)),
        Claim("one neuron: trained network over tangent features", over, high=0.1),
        Claim("one neuron: random features", random[3]),
        Claim("one neuron: tangent features", tangent[3]),
        Claim("one neuron: network", network[3], "0"),
    ]
    d = config.kernel_dimension
    for n, left in zip(config.sizes, np.median(stairs, axis=0).tolist(), strict=True):
        for degree, value in enumerate(left, 1):
            paper = "0" if degree <= floor(log(n) / log(d)) else "1"
            low, high = _bar(d, n, degree)
            claims.append(Claim(f"whole kernel, d = {d}, n = {n}, degree {degree}", value, paper, low, high))
    return claims


def _bar(d: int, n: int, degree: int) -> tuple[float | None, float | None]:
    """Return the bar of a step of the staircase: within 0.1, from below where nothing is learned."""
    if d != 20 or n not in STAIRS:
        return None, None
    stair = (*STAIRS[n], 1.0)[degree - 1]
    return (None if stair < 0.1 else stair - 0.1), (None if stair == 1 else stair + 0.1)


def figure(result: Result) -> Figures:
    """Draw what each model leaves of each target, and the staircase of the whole kernel."""
    drawn, ax = panels(7, 3.8)
    names = list(TARGETS)
    places, colors = np.arange(len(names)), (ORANGE, GREEN, BLUE)
    for i, kind in enumerate(("random features", "tangent features", "trained network")):
        ax.bar(places + 0.27 * (i - 1), result.arrays["left"][i], 0.25, color=colors[i], label=kind)
    ax.set_xticks(places, names)
    ax.set(ylabel="error left / variance of the target")
    ax.axhline(1, color="0.5", lw=1)
    ax.grid(alpha=0.3, axis="y")
    drawn.legend(loc="outside upper center", ncols=3, frameon=False)
    stairs, ax = panels(6.5, 4)
    sizes, found = np.array(result.config.sizes), result.arrays["stairs"]
    order = sizes.argsort()
    for i, color in enumerate((BLUE, GREEN, ORANGE)):
        ax.semilogx(sizes[order], np.median(found, 0)[order, i], "o-", color=color, label=f"degree {i + 1}")
        low, high = np.quantile(found, [0.25, 0.75], axis=0)[:, order, i]
        ax.fill_between(sizes[order], low, high, color=color, alpha=0.2, lw=0)
    d = result.config.kernel_dimension
    for power, text in ((1, "d"), (2, "d²")):
        ax.axvline(d**power, color="0.5", ls=":", lw=1)
        ax.text(d**power * 1.05, 0.03, text, color="0.4")
    finish(ax, xlabel="samples n (dotted: d, d²)", ylabel="error left / variance of the target")
    return {"What each model leaves of each target": drawn, "What the whole kernel leaves": stairs}


def _kernel(config: Config, seed: int) -> np.ndarray:
    """Return what ridge regression on the whole tangent kernel leaves of degrees 1 to 3, for each n."""
    draw, d = torch.Generator().manual_seed(seed), config.kernel_dimension

    def sphere(n: int) -> Tensor:
        x = torch.randn(n, d, generator=draw, dtype=torch.float64)
        return d**0.5 * x / x.norm(dim=1, keepdim=True)

    test, direction = sphere(2000), sphere(1)[0] / d**0.5
    rows = []
    for n in config.sizes:
        x = sphere(n)
        y, truth = (torch.stack([f(t @ direction) for f in [*TARGETS.values()][:3]], 1) for t in (x, test))
        machine = ntkit.KernelRidge(ReLUKernel(depth=1, sigma_b=0.0), alpha=1e-8, normalize_y=False)
        machine.fit(array(x), array(y))
        left = ((machine.predict(array(test)) - array(truth)) ** 2).mean(0)
        rows.append(left / array(truth).var(0))
    return np.array(rows)


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
    optimizer = optimizer_of(config.optimizer, [first, second, bias], 1e-2)
    order = torch.Generator().manual_seed(config.seed)
    x32, y32 = x.float(), y.float()
    for i in range(config.steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / config.steps)
        index = torch.randint(len(x), (config.batch,), generator=order).to(x.device)
        step(optimizer, loss_of(config.loss)(torch.relu(x32[index] @ first.T) @ second + bias, y32[index]))
    with torch.no_grad():
        out = torch.relu(test.float() @ first.T) @ second + bias
    return float(np.mean((array(out) - array(truth)) ** 2))
