"""A product of two coordinates: what a kernel needs many samples for, and a network few.

Inputs of +-1 in d dimensions, y = x1 x2 (Giancola, Example VI.0.1, Theorem VI.0.2). Four ReLUs are exact:
x1 x2 = (|x1 + x2| - |x1 - x2|) / 2. The NTK has fixed features and needs of the order of d^2 samples; a
network trained with weight decay, of the order of d.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, ORANGE
from ntkit.machine.kernels import ReLUKernel
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, seeded, slope, step

QUICK = {"dimensions": (6, 12), "steps": 1500, "width": 100, "grid": 1.7}


class Config(StudyConfig):
    """The least number of samples for a test error below the threshold, as the dimension grows."""

    optimizer: str = optimizer_option("Adam")
    loss: str = loss_option("mse_loss")
    dimensions: tuple[int, ...] = option((8, 12, 16, 24, 32), "Dimensions.", low=3, high=200, least=2)
    threshold: float = option(
        0.3, "Test error (mean square; 1 is chance) that counts as learned.", above=0.0, high=1.0
    )
    grid: float = option(1.35, "Factor between the numbers of samples that are tried.", low=1.01, high=10.0)
    width: int = option(200, "Width of the network.", low=8, high=10_000)
    steps: int = option(3000, "Steps of Adam.", low=1, high=10**6)
    decay: float = option(3e-3, "Weight decay of the network (L2, on the loss).", low=0.0)


def run(config: Config) -> Result:
    """Check the construction, and count samples."""
    draw = torch.Generator().manual_seed(config.seed)
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 2)
    exact = float((_four_relus(every) - every.prod(1)).abs().max())
    needed: dict[str, list[int]] = {"NTK": [], "network": []}
    with progress("counting samples (dimensions)", len(config.dimensions)) as done:
        for d in config.dimensions:
            x = torch.where(torch.rand(4000 + 40 * d * d, d, generator=draw) < 0.5, -1.0, 1.0)
            test, x = x[:2000], x[2000:]
            kernel = ReLUKernel(depth=1, sigma_b=0.0)
            needed["NTK"].append(_needed(config, d, x, test, lambda a, b, k=kernel: _kernel(k, a, b)))
            needed["network"].append(_needed(config, d, x, test, lambda a, b: _network(config, a, b)))
            done(1)
    fast, slow = (slope(config.dimensions, needed[name]) for name in ("NTK", "network"))
    ratio = needed["NTK"][-1] / needed["network"][-1]
    over = f"samples of the NTK over those of the network, d = {config.dimensions[-1]}"
    bar = 1.5 if len(config.dimensions) > 3 else None
    claims = (
        Claim("four ReLUs, largest |f - x1 x2|", exact, "0", high=0.0),
        Claim("samples of the NTK: growth d^p, p", fast, "2", low=bar),
        Claim("samples of the network: growth d^p, p", slow, "1", high=bar),
        Claim(over, ratio, "> 1", low=1.0),
    )
    note = "The network is trained by Adam with weight decay, which stands for the norm of the theorem."
    return Result(config, claims, {"dimensions": config.dimensions, **needed}, notes=(note,))


def figure(result: Result) -> Figures:
    """Draw the samples needed against the dimension."""
    a = result.arrays
    drawn, ax = panels(5.5, 4)
    for name, color in (("NTK", ORANGE), ("network", BLUE)):
        ax.loglog(a["dimensions"], a[name], "o-", color=color, label=name)
    for power, start in ((2, a["NTK"][0]), (1, a["network"][0])):
        line = start * (a["dimensions"] / a["dimensions"][0]) ** float(power)
        ax.loglog(a["dimensions"], line, ":", color="0.5", label=f"∝ d{'²' if power == 2 else ''}")
    finish(ax, xlabel="dimension d", ylabel="samples for the test error", grid="both")
    return {"Samples needed for a product of two coordinates": drawn}


def _four_relus(x: Tensor) -> Tensor:
    a, b = x[:, 0], x[:, 1]
    return (torch.relu(a + b) + torch.relu(-a - b) - torch.relu(a - b) - torch.relu(b - a)) / 2


def _needed(config: Config, d: int, x: Tensor, test: Tensor, error: Callable[[Tensor, Tensor], float]) -> int:
    """Return the least number of samples of a geometric grid whose test error is below the threshold."""
    n = float(d)
    while n < len(x):
        if error(x[: int(n)], test) < config.threshold:
            return int(n)
        n *= config.grid
    return len(x)


def _kernel(kernel: ReLUKernel, x: Tensor, test: Tensor) -> float:
    ridge = ntkit.KernelRidge(kernel, alpha=1e-8, normalize_y=False)
    ridge.fit(x.double().numpy(), x[:, :2].prod(1).double().numpy())
    predicted = torch.as_tensor(ridge.predict(test.double().numpy()))
    return float(((predicted - test[:, :2].prod(1)) ** 2).mean())


def _network(config: Config, x: Tensor, test: Tensor) -> float:
    with seeded(config.seed):
        first = nn.Linear(x.shape[1], config.width, bias=False)
        model = nn.Sequential(first, nn.ReLU(), nn.Linear(config.width, 1))
    x, test = x.to(config.device), test.to(config.device)
    model.to(config.device)
    y = x[:, :2].prod(1)[:, None]
    optimizer = optimizer_of(config.optimizer, model.parameters(), 1e-2)
    for i in range(config.steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - i / config.steps)
        norm = sum(p.square().sum() for p in model.parameters())
        step(optimizer, loss_of(config.loss)(model(x), y) + config.decay * norm)
    with torch.no_grad():
        return float(((model(test)[:, 0] - test[:, :2].prod(1)) ** 2).mean())
