"""The second peak: test error of NTK regression as the width passes two thresholds.

Regression without a ridge on the tangent kernel of a two-layer network, with noise on the labels. The test
error has peaks where the samples are as many as what can be fitted (Giancola, Section VI.1, Figure 11, after
Adlam and Pennington): the number of all weights, and, for the last layer alone, the width. Beyond, it falls
again.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, ORANGE
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, StudyConfig, option

WIDTHS = (2, 3, 4, 6, 8, 9, 10, 11, 13, 16, 25, 40, 70, 120, 160, 200, 240, 320, 600, 1500, 4000)
QUICK = {"samples": 60, "dimension": 6, "seeds": 10, "widths": (2, 4, 6, 8, 10, 15, 25, 40, 60, 90, 200, 500)}


class Config(StudyConfig):
    """Gaussian inputs, a linear target with noise."""

    samples: int = option(200, "Training points.", low=4, high=5000)
    dimension: int = option(20, "Dimension of the inputs.", low=1, high=1000)
    noise: float = option(0.5, "Standard deviation of the labels' noise; the target's is one.", low=0.0)
    widths: tuple[int, ...] = option(WIDTHS, "Widths.", low=1)
    ridge: float = option(1e-7, "Ridge, relative to the mean diagonal.", low=0.0)
    seeds: int = option(10, "Networks and draws of the data of each width.", low=1, high=1000)


def run(config: Config) -> Result:
    """Measure the test error against the width, for the whole tangent kernel and for the last layer's."""
    d, n = config.dimension, config.samples
    errors = {"all weights": np.zeros((len(config.widths), config.seeds))}
    errors["last layer"] = errors["all weights"].copy()
    with progress("fitting (networks)", len(config.widths) * config.seeds) as done:
        for s in range(config.seeds):
            draw = torch.Generator().manual_seed(config.seed + s)
            x, test = (torch.randn(m, d, generator=draw, dtype=torch.float64) for m in (n, 1000))
            w = torch.randn(d, generator=draw, dtype=torch.float64) / d**0.5
            y = x @ w + config.noise * torch.randn(n, generator=draw, dtype=torch.float64)
            x_here, test_here = x.to(config.device), test.to(config.device)
            for i, width in enumerate(config.widths):
                layers = nn.Linear(d, width, bias=False), nn.ReLU(), nn.Linear(width, 1, bias=False)
                plain = nn.Sequential(*layers).double()
                model = ntkit.ntk_parametrize(plain, 2**0.5, 0.0, seed=config.seed + s).to(config.device)
                for name, params in (("all weights", None), ("last layer", "last")):
                    kernel = ntkit.EmpiricalNTK(model, params=params)
                    gram, cross = (kernel(*t).cpu() for t in ((x_here,), (test_here, x_here)))
                    errors[name][i, s] = _error(gram, cross, y, test @ w, config.ridge)
                done(1)
    curves = {name: np.median(e, axis=1) for name, e in errors.items()}
    widths = np.array(config.widths)
    thresholds = {"all weights": n / (d + 1), "last layer": float(n)}
    claims = []
    for name, curve in curves.items():
        peak = int(np.argmax(np.where(widths >= 0.3 * thresholds[name], curve, -np.inf)))
        place, height = widths[peak] / thresholds[name], curve[peak] / curve[-1]
        claims += [
            Claim(f"{name}: width at the peak over the threshold", place, "1", low=0.5, high=2.0),
            Claim(f"{name}: error at the peak over that of the widest", height, "> 1", low=1.5),
        ]
    return Result(config, claims, {"widths": widths, **errors}, {"thresholds": thresholds})


def figure(result: Result) -> Figures:
    """Draw the test error against the width."""
    a = result.arrays
    drawn, ax = panels(7, 4.2)
    for name, color in (("all weights", BLUE), ("last layer", ORANGE)):
        ax.loglog(a["widths"], np.median(a[name], axis=1), "o-", color=color, ms=4, label=f"kernel of {name}")
        low, high = np.quantile(a[name], [0.25, 0.75], axis=1)
        ax.fill_between(a["widths"], low, high, color=color, alpha=0.2, lw=0)
        ax.axvline(result.numbers["thresholds"][name], color=color, ls=":", lw=1.2)
    xlabel, ylabel = "width (dotted: as many weights as samples)", "test error (mean square), median of draws"
    finish(ax, xlabel=xlabel, ylabel=ylabel, grid="both")
    return {"Test error against the width": drawn}


def _error(gram: Tensor, cross: Tensor, y: Tensor, truth: Tensor, ridge: float) -> float:
    alpha = max(ridge * float(gram.diagonal().mean()), 1e-14)
    values, vectors = torch.linalg.eigh(gram)
    weights = vectors @ ((vectors.T @ y) / (values.clamp_min(0) + alpha))
    return float(((cross @ weights - truth) ** 2).mean())
