"""Two peaks in one curve: test error of NTK regression as the width passes two thresholds.

Regression without a ridge on the tangent kernel of a two-layer network, with noise on the labels. The test
error has peaks where the samples are as many as what can be fitted: the number of all weights, and, for the
last layer alone, the width. With a kernel that is mostly that of the last layer, and a little that of the
first, one curve has both: the test error falls three times (Giancola, Section VI.1, Figure 11, after Adlam
and Pennington).
"""

from __future__ import annotations

from collections.abc import Callable
from math import floor
from typing import cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.errors import BadValueError
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import Elementwise

WIDTHS = (2, 3, 4, 6, 8, 9, 10, 11, 13, 16, 25, 40, 70, 120, 160, 200, 240, 320, 600, 1500, 4000)
TRIPLE = (2, 3, 5, 8, 13, 20, 30, 45, 60, 75, 90, 100, 120, 160, 250, 500, 1000, 3000)
QUICK = {
    "samples": 60,
    "dimension": 6,
    "seeds": 7,
    "widths": (2, 5, 7, 8, 10, 25, 50, 60, 75, 500),
    "triple_widths": (2, 5, 20, 60, 90, 120, 1000),
    "triple_seeds": 5,
}


class Config(StudyConfig):
    """Gaussian inputs, a linear target with noise; more dimensions for the curve with both peaks."""

    samples: int = option(200, "Training points.", low=4, high=5000)
    dimension: int = option(20, "Dimension of the inputs.", low=1, high=1000)
    noise: float = option(0.5, "Standard deviation of the labels' noise; the target's is one.", low=0.0)
    widths: tuple[int, ...] = option(WIDTHS, "Widths.", low=1)
    ridge: float = option(1e-7, "Ridge, relative to the mean diagonal.", low=0.0)
    seeds: int = option(10, "Networks and draws of the data of each width.", low=1, high=1000)
    triple_samples: int = option(100, "Training points of the curve with both peaks.", low=4, high=5000)
    triple_dimension: int = option(50, "Dimension of its inputs.", low=1, high=1000)
    triple_widths: tuple[int, ...] = option(TRIPLE, "Its widths.", low=1)
    first: float = option(0.01, "Weight of the first layer's kernel there; the last's is one.", low=0.0)
    triple_seeds: int = option(15, "Its networks and draws of the data.", low=1, high=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "widths", tuple(sorted(self.widths)))
        object.__setattr__(self, "triple_widths", tuple(sorted(self.triple_widths)))
        for name, least, most in (
            ("widths", self.samples / (self.dimension + 1), self.samples),
            ("triple_widths", self.triple_samples / (self.triple_dimension + 1), self.triple_samples),
        ):
            widths = getattr(self, name)
            if min(widths) > 2 * least or max(widths) < 2 * most:
                raise BadValueError(
                    f"{name} are {widths}; expected some on both sides of the thresholds: one of at most "
                    f"{floor(2 * least)}, and one of at least {2 * most}."
                )


def run(config: Config) -> Result:
    """Measure the test error against the width: all weights, the last layer, a mixture of the layers."""
    errors = {name: np.zeros((len(config.widths), config.seeds)) for name in ("all weights", "last layer")}
    triple = np.zeros((len(config.triple_widths), config.triple_seeds))
    with progress("fitting (draws)", config.seeds + config.triple_seeds) as done:
        for s in range(config.seeds):
            found = part(f"draw {s}", lambda s=s: _two(config, config.seed + s))
            for name, column in zip(errors, found, strict=True):
                errors[name][:, s] = column
            done(1)
        for s in range(config.triple_seeds):
            triple[:, s] = part(f"mixture, draw {s}", lambda s=s: _triple(config, config.seed + s))
            done(1)
    n = config.samples
    thresholds = {"all weights": n / (config.dimension + 1), "last layer": float(n)}
    claims = _claims(config, errors, triple, thresholds)
    arrays = {"widths": config.widths, **errors, "triple widths": config.triple_widths, "triple": triple}
    return Result(config, claims, arrays, {"thresholds": thresholds})


def _claims(
    config: Config, errors: dict[str, np.ndarray], triple: np.ndarray, thresholds: dict[str, float]
) -> list[Claim]:
    widths, claims = np.array(config.widths), []
    for name, found in errors.items():
        curve = np.median(found, axis=1)
        peak = int(np.argmax(np.where(widths >= 0.3 * thresholds[name], curve, -np.inf)))
        place, height = widths[peak] / thresholds[name], curve[peak] / curve[-1]
        claims += [
            Claim(f"{name}: width at the peak over the threshold", float(place), low=0.5, high=2.0),
            Claim(f"{name}: error at the peak over that of the widest", float(height), low=10.0),
        ]
    widths, curve = np.array(config.triple_widths), np.median(triple, axis=1)
    n, d = config.triple_samples, config.triple_dimension
    early, late = widths <= 2 * n / (d + 1), (widths >= n / 2) & (widths <= 2 * n)
    first = int(np.argmax(np.where(early, curve, -np.inf)))
    second = int(np.argmax(np.where(late, curve, -np.inf)))
    valley = first + int(np.argmin(curve[first : second + 1]))
    turns = ((first, valley, "falls behind the first peak"), (second, valley, "rises to the second peak"))
    for above, below, what in (*turns, (second, len(curve) - 1, "falls behind the second peak")):
        between = f"from width {widths[min(above, below)]} to {widths[max(above, below)]}"
        factor = float(curve[above] / curve[below])
        claims.append(Claim(f"one curve {what}, {between}: factor", factor, "triple descent", low=1.5))
    return claims


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
    return {"Test error against the width": drawn, "Three descents in one curve": _draw_triple(result)}


def _draw_triple(result: Result) -> Figure:
    drawn, ax = panels(7, 4.2)
    widths, errors = result.arrays["triple widths"], result.arrays["triple"]
    ax.loglog(widths, np.median(errors, axis=1), "o-", color=GREEN, ms=4, label="median of the draws")
    low, high = np.quantile(errors, [0.25, 0.75], axis=1)
    ax.fill_between(widths, low, high, color=GREEN, alpha=0.2, lw=0, label="25 to 75 %")
    c = result.config
    for place, text in (
        (c.triple_samples / (c.triple_dimension + 1), "weights = samples"),
        (c.triple_samples, "units = samples"),
    ):
        ax.axvline(place, color="0.5", ls=":", lw=1.2)
        ax.text(
            place * 1.06,
            0.02,
            text,
            rotation=90,
            va="bottom",
            fontsize=8,
            color="0.4",
            transform=ax.get_xaxis_transform(),
        )
    ylabel = "test error (mean square)"
    finish(
        ax,
        xlabel=f"width; kernel of the last layer + {c.first:g} × that of the first",
        ylabel=ylabel,
        grid="both",
    )
    return drawn


def _data(n: int, d: int, noise: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs, noisy labels, test inputs and their target."""
    draw = torch.Generator().manual_seed(seed)
    x, test = (torch.randn(m, d, generator=draw, dtype=torch.float64) for m in (n, 1000))
    w = torch.randn(d, generator=draw, dtype=torch.float64) / d**0.5
    return x, x @ w + noise * torch.randn(n, generator=draw, dtype=torch.float64), test, test @ w


def _network(
    config: Config, d: int, width: int, activation: nn.Module, sigma: float, seed: int
) -> nn.Sequential:
    layers = nn.Linear(d, width, bias=False), activation, nn.Linear(width, 1, bias=False)
    model = ntkit.ntk_parametrize(nn.Sequential(*layers).double(), sigma, 0.0, seed=seed)
    return cast(nn.Sequential, model.to(config.device))


def _two(config: Config, seed: int) -> np.ndarray:
    """Return the test errors ``[2, widths]`` of one draw: kernel of all weights, of the last layer."""
    x, y, test, truth = _data(config.samples, config.dimension, config.noise, seed)
    here = x.to(config.device), test.to(config.device)
    errors = np.zeros((2, len(config.widths)))
    for i, width in enumerate(config.widths):
        model = _network(config, config.dimension, width, nn.ReLU(), 2**0.5, seed)
        for row, params in enumerate((None, "last")):
            kernel = ntkit.EmpiricalNTK(model, params=params)
            errors[row, i] = _error(*_blocks(kernel, *here), y, truth, config.ridge)
    return errors


def _triple(config: Config, seed: int) -> np.ndarray:
    """Return the test errors of one draw for the mixture of the layers' kernels."""
    d = config.triple_dimension
    x, y, test, truth = _data(config.triple_samples, d, config.noise, seed)
    here = x.to(config.device), test.to(config.device)
    errors = np.zeros(len(config.triple_widths))
    for i, width in enumerate(config.triple_widths):
        model = _network(config, d, width, Elementwise(torch.erf), 1.0, seed)
        first, last = (ntkit.EmpiricalNTK(model, params=model[k]) for k in (0, 2))
        errors[i] = _error(*_blocks(last + config.first * first, *here), y, truth, config.ridge)
    return errors


def _blocks(kernel: Callable[..., Tensor], x: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    return kernel(x).cpu(), kernel(test, x).cpu()


def _error(gram: Tensor, cross: Tensor, y: Tensor, truth: Tensor, ridge: float) -> float:
    alpha = max(ridge * float(gram.diagonal().mean()), 1e-14)
    values, vectors = torch.linalg.eigh(gram)
    weights = vectors @ ((vectors.T @ y) / (values.clamp_min(0) + alpha))
    return float(((cross @ weights - truth) ** 2).mean())
