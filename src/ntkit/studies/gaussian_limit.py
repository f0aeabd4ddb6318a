"""Trained networks as draws from a Gaussian process.

Four points on the unit circle with labels x1 x2, ten networks of each width trained for 1,000 steps at rate 1
(Giancola, Section V.2, Figure 6). In the limit the trained function is Gaussian, with mean and covariance
from two kernels (Section IV.3): its 10, 50 and 90 % quantiles are drawn beside those of the networks.
"""

from __future__ import annotations

import warnings

import numpy as np
import torch
from scipy.stats import norm

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, INK, ORANGE
from ntkit.machine.conformal import SpreadWarning
from ntkit.studies import regression
from ntkit.studies.figures import Figures, above, panels
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, array, option

QUICK = {"widths": (50, 300), "networks": 6, "steps": 300}


class Config(regression.DescentConfig):
    """Widths 50, 500 and 1,000 (the paper: 50 and 1,000)."""

    widths: tuple[int, ...] = option((50, 500, 1000), "Widths of the networks.", low=2)
    networks: int = option(10, "Networks of each width.", low=2, high=1000)
    steps: int = option(1000, "Steps of gradient descent.", low=1, high=10**5)
    rate: float = option(1.0, "Learning rate.", low=1e-6, high=10.0)
    angles: int = option(100, "Points on the circle where the functions are compared.", low=2, high=10_000)


def run(config: Config) -> Result:
    """Train the networks and compare them with the limit's quantiles."""
    x = regression.circle(torch.tensor([0.3, 1.2, 2.6, 4.4]))
    y = (x[:, 0] * x[:, 1])[:, None]
    angles = torch.linspace(-torch.pi, torch.pi, config.angles)
    points = regression.circle(angles)
    flow = ntkit.GradientFlow(regression.limit(2, 3), t=config.steps * config.rate)
    flow.fit(x.double().numpy(), y[:, 0].double().numpy())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SpreadWarning)  # the spread by the start is what is asked for
        mean, std = map(np.ravel, flow.predict(points.double().numpy(), return_std=True))
    low, high = mean + norm.ppf(0.1) * std, mean + norm.ppf(0.9) * std
    x, y, points = (t.to(config.device) for t in (x, y, points))
    functions, inside, off = {}, {}, {}
    with progress("training (networks)", len(config.widths) * config.networks) as done:
        for width in config.widths:
            drawn = []
            for s in range(config.networks):

                def trained(width=width, s=s) -> np.ndarray:
                    model = regression.network(2, width, 3, config.seed + s, config.device)
                    regression.descend(config, model, x, y, config.steps, config.rate)
                    with torch.no_grad():
                        return array(model(points)[:, 0])

                drawn.append(part(f"width {width}, seed {s}", trained))
                done(1)
            functions[width] = np.stack(drawn)
            inside[width] = float(((functions[width] >= low) & (functions[width] <= high)).mean())
            off[width] = float(np.abs(np.median(functions[width], 0) - mean).mean() / std.mean())
    claims = []
    for width in config.widths:
        paper, least, most = ("", 0.65, 0.95) if width >= 300 else ("good", None, None)
        share = f"share inside the limit's 10-90 % band (0.80 there), width {width}"
        claims += [
            Claim(share, inside[width], paper, low=least, high=most),
            Claim(f"mean distance of the medians in standard deviations, width {width}", off[width]),
        ]
    arrays = {"angles": angles, "mean": mean, "low": low, "high": high}
    arrays |= {"x": torch.atan2(x[:, 1], x[:, 0]), "y": y[:, 0]}
    return Result(config, claims, arrays | {f"width {w}": f for w, f in functions.items()})


def figure(result: Result) -> Figures:
    """Draw the quantiles of the networks beside those of the limit."""
    a = result.arrays
    widths = [f"width {w}" for w in result.config.widths]
    drawn, axes = panels(3.0 * len(widths), 3.6, columns=len(widths), sharey=True, squeeze=False)
    angles, band = a["angles"], {"color": BLUE, "alpha": 0.25, "lw": 0}
    for ax, name in zip(axes[0], widths, strict=True):
        ax.fill_between(angles, a["low"], a["high"], label="limit, 10-90 %", **band)
        ax.plot(angles, a["mean"], color=BLUE, label="limit, median")
        for q, style in ((0.1, ":"), (0.5, "-"), (0.9, ":")):
            label = "networks, 10, 50, 90 %" if q == 0.5 else None
            ax.plot(angles, np.quantile(a[name], q, axis=0), style, color=ORANGE, lw=1.3, label=label)
        ax.plot(a["x"], a["y"], "o", color=INK, ms=5, label="training points")
        ax.set(title=name, xlabel="angle")
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("trained function f(x)")
    above(drawn, ax, 2)
    return {"Trained networks and the limiting Gaussian process": drawn}
