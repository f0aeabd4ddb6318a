"""Random features: how fast they tend to their kernel, and ridge regression on them.

The error of m features is of the order of m^(-1/2) for every kernel (Ravikumar, Section 2; Rahimi and
Recht); orthogonal and quasi-random draws make it smaller. Ridge regression on the features tends to that on
the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE
from ntkit.studies.study import Claim, Result, StudyConfig, option

QUICK = {"sizes": (64, 256, 1024), "repeats": 2}
KINDS = ("gaussian", "laplacian", "cauchy", "matern", "arccos0", "arccos1", "ntk")


@dataclass(frozen=True, kw_only=True)
class Config(StudyConfig):
    """Gaussian inputs in a few dimensions."""

    samples: int = option(100, "Inputs.", low=4, high=256)
    dimension: int = option(5, "Dimension of the inputs.", low=1, high=1000)
    sizes: tuple[int, ...] = option((64, 256, 1024, 4096, 16384), "Numbers m of features.", low=4)
    repeats: int = option(5, "Draws of each.", low=1, high=1000)


def run(config: Config) -> Result:
    """Measure the error of each kind against m, and the distance of two regressions."""
    draw = np.random.default_rng(config.seed)
    x = draw.normal(size=(config.samples, config.dimension))
    test = draw.normal(size=(500, config.dimension))
    settings = [(kind, "iid") for kind in KINDS] + [("gaussian", "orthogonal"), ("gaussian", "sobol")]
    table = np.zeros((len(settings), len(config.sizes)))
    with progress("drawing features (settings)", len(settings)) as done:
        for i, (kind, how) in enumerate(settings):
            for j, m in enumerate(config.sizes):
                rows = [
                    ntkit.RandomFeatures(kind, m, config.seed + s, draw=how, lengthscale=2.0)
                    .fit(x)
                    .error_.relative
                    for s in range(config.repeats)
                ]
                table[i, j] = np.sqrt(np.mean(np.square(rows)))
            done(1)
    slopes = {
        f"{kind}, {how}": float(np.polyfit(np.log(config.sizes), np.log(row), 1)[0])
        for (kind, how), row in zip(settings, table, strict=True)
    }
    y = np.sin(x.sum(1)) + 0.1 * draw.normal(size=config.samples)
    exact = ntkit.KernelRidge(_gaussian, alpha=0.1).fit(x, y).predict(test)
    apart = []
    for m in config.sizes:
        features = ntkit.RandomFeatures("gaussian", m, config.seed, lengthscale=2.0).fit(x)
        ridge = Ridge(alpha=0.1, fit_intercept=False).fit(features.transform(x), y)
        apart.append(
            float(
                np.sqrt(np.mean((ridge.predict(features.transform(test)) - exact) ** 2) / np.mean(exact**2))
            )
        )
    claims = [
        Claim(f"{name}: slope of the error in m", value, "-1/2", low=-0.65, high=-0.35)
        for name, value in slopes.items()
        if name.endswith("iid")
    ]
    gaussian = settings.index(("gaussian", "iid"))
    for how in ("orthogonal", "sobol"):
        row = table[settings.index(("gaussian", how)), -1] / table[gaussian, -1]
        claims.append(
            Claim(f"error of {how} over independent draws, m = {config.sizes[-1]}", row, "", high=1.0)
        )
    claims.append(
        Claim(
            f"ridge on {config.sizes[-1]} features against the kernel's, relative",
            apart[-1],
            "small",
            high=0.2,
        )
    )
    return Result(
        config,
        tuple(claims),
        arrays={"sizes": np.array(config.sizes), "errors": table, "apart": np.array(apart)},
        numbers={"settings": [f"{kind}, {how}" for kind, how in settings], "slopes": slopes},
    )


def figure(result: Result) -> Mapping[str, Figure]:
    """Draw the errors against the number of features."""
    a = result.arrays
    drawn = Figure(figsize=(10, 4), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for i, (name, row) in enumerate(zip(result.numbers["settings"], a["errors"], strict=True)):
        left.loglog(a["sizes"], row, "o-", ms=3, lw=1.2, color=f"C{i}", label=name)
    left.loglog(
        a["sizes"],
        a["errors"][0, 0] * (a["sizes"] / a["sizes"][0]) ** -0.5,
        ":",
        color="0.4",
        label="∝ m^-1/2",
    )
    left.set(xlabel="features m", ylabel="error of the kernel (Frobenius, relative)")
    left.legend(frameon=False, fontsize=7)
    right.loglog(a["sizes"], a["apart"], "o-", color=BLUE)
    right.set(xlabel="features m", ylabel="ridge on features against the kernel's (relative rms)")
    for ax in (left, right):
        ax.grid(alpha=0.3, which="both")
    return {"Error against the number of features": drawn}


def _gaussian(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Return the Gaussian kernel of lengthscale two."""
    return np.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1) / 8)
