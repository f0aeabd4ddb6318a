"""A trained network against kernel regression, as it widens.

ReLU networks in the NTK parameterization, trained by gradient descent to a fixed time. The kernel at the
start is off its limit by width^(-1/2); it moves, and the trained network is off the kernel machine of its own
tangent kernel, by width^(-1/2) at most (Lee et al.) and width^(-1) in expansions in the width (Cappelletti,
Theorem 2.4; Ravikumar, Section 5.1). The slopes are fitted to means over seeds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

import ntkit
from ntkit.compute.progress import progress
from ntkit.data.digits import digits
from ntkit.display.axes import BLUE, GREEN, INK, ORANGE
from ntkit.studies import regression
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, array, option
from ntkit.studies.training import slope

QUICK = {"widths": (32, 128, 512), "seeds": 3, "steps": 50, "samples": 40}


class Config(regression.DescentConfig):
    """Even against odd digits, as a regression."""

    widths: tuple[int, ...] = option(
        (32, 64, 128, 256, 512, 1024), "Widths of the two hidden layers.", low=2, least=2
    )
    seeds: int = option(5, "Networks of each width.", low=1, high=100)
    samples: int = option(100, "Training digits.", low=10, high=1347)
    steps: int = option(200, "Steps of gradient descent.", low=1, high=10**5)
    rate: float = option(1.0, "Learning rate.", low=1e-6, high=10.0)


def run(config: Config) -> Result:
    """Train, and measure four distances for each width."""
    data = digits(config.samples, seed=config.seed)
    x, q = (t.to(config.device) for t in (data.train_x, data.held_out_x[:100]))
    y = (data.train_y % 2 * 2.0 - 1.0).to(config.device)[:, None].to(x)
    limit = regression.limit(64, 2).ntk
    exact, cross = limit(x.cpu()), limit(q.cpu(), x.cpu())
    found: dict[str, list[list[float]]] = {name: [] for name in ("start", "drift", "own", "limit")}
    with progress("training (networks)", len(config.widths) * config.seeds) as done:
        for width in config.widths:
            for values in found.values():
                values.append([])
            for s in range(config.seeds):
                model = regression.network(64, width, 2, config.seed + s, config.device, torch.float64)
                kernel = ntkit.EmpiricalNTK(model)
                before, before_q = kernel(x), kernel(q, x)
                with torch.no_grad():
                    f0, f0_q = model(x)[:, 0], model(q)[:, 0]
                regression.descend(config, model, x, y, config.steps, config.rate)
                with torch.no_grad():
                    trained = model(q)[:, 0]
                expected = f0_q + _flow(before, before_q, y[:, 0] - f0, config.rate, config.steps)
                analytic = f0_q.cpu() + _flow(exact, cross, (y[:, 0] - f0).cpu(), config.rate, config.steps)
                found["start"][-1].append(regression.relative(before.cpu() - exact, exact))
                found["drift"][-1].append(regression.relative(kernel(x) - before, before))
                found["own"][-1].append(regression.relative(trained - expected, expected))
                found["limit"][-1].append(regression.relative(trained.cpu() - analytic, analytic))
                done(1)
    means = {name: np.array(values).mean(1) for name, values in found.items()}
    slopes = {name: slope(config.widths, v) for name, v in means.items()}
    start, drift, own, of_limit = slopes.values()
    widest = f"network against its own kernel machine, width {config.widths[-1]}"
    claims = (
        Claim("kernel at the start against the limit: slope in width", start, "→ 0", low=-0.7, high=-0.35),
        Claim("change of the kernel in training: slope", drift, "→ 0", low=-1.2, high=-0.4),
        Claim("network against its own kernel machine: slope", own, low=-1.3, high=-0.4),
        Claim("network against the limit's kernel machine: slope", of_limit, "→ 0", low=-0.8, high=-0.3),
        Claim(widest, float(means["own"][-1])),
    )
    numbers = {"slopes": slopes, "time": config.steps * config.rate}
    return Result(config, claims, {"widths": config.widths, **found}, numbers)


def figure(result: Result) -> Figures:
    """Draw the four distances against the width."""
    a = result.arrays
    drawn, ax = panels(6.5, 4.4)
    for name, text, color in (
        ("start", "kernel at the start against the limit", BLUE),
        ("drift", "change of the kernel in training", ORANGE),
        ("limit", "network against the limit's kernel machine", GREEN),
        ("own", "network against its own kernel machine", INK),
    ):
        ax.loglog(a["widths"], a[name].mean(1), "o-", color=color, label=text)
        ax.loglog(a["widths"], a[name], ".", ms=3, color=color, alpha=0.5)
    finish(ax, xlabel="width", ylabel="relative distance", grid="both")
    ax.legend(frameon=False, fontsize=8)
    return {"Distances against the width": drawn}


def _flow(kernel: Tensor, cross: Tensor, gap: Tensor, rate: float, steps: int) -> Tensor:
    """Return what so many steps at this rate make of the gap at other inputs, by the kernel machine."""
    flow = ntkit.GradientFlow("precomputed", t=rate * steps, learning_rate=rate)
    return torch.as_tensor(flow.fit(array(kernel), array(gap)).predict(array(cross)))
