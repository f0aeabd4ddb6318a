"""Random features: how fast they tend to their kernel, and ridge regression on them.

The error of m features is of the order of m^(-1/2) for every kernel (Ravikumar, Section 2; Rahimi and
Recht); orthogonal and quasi-random draws make it smaller. Ridge regression on the features tends to that on
the kernel.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import Ridge

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE
from ntkit.studies.figures import Figures, finish, panels, ticks
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import slope

QUICK = {"sizes": (64, 256, 1024), "repeats": 2}
KINDS = ("gaussian", "laplacian", "cauchy", "matern", "arccos0", "arccos1", "ntk")


class Config(StudyConfig):
    """Gaussian inputs in a few dimensions."""

    samples: int = option(100, "Inputs.", low=4, high=256)
    dimension: int = option(5, "Dimension of the inputs.", low=1, high=1000)
    sizes: tuple[int, ...] = option((64, 256, 1024, 4096, 16384), "Numbers m of features.", low=4, least=2)
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

                def error(kind=kind, how=how, m=m) -> float:
                    seeds = range(config.seed, config.seed + config.repeats)
                    maps = [ntkit.RandomFeatures(kind, m, s, draw=how, lengthscale=2.0).fit(x) for s in seeds]
                    return float(np.sqrt(np.mean(np.square([each.error_.relative for each in maps]))))

                table[i, j] = part(f"{kind}, {how}, {m}", error)
            done(1)
    slopes = {
        f"{kind}, {how}": slope(config.sizes, row) for (kind, how), row in zip(settings, table, strict=True)
    }
    y = np.sin(x.sum(1)) + 0.1 * draw.normal(size=config.samples)
    exact = ntkit.KernelRidge(_gaussian, alpha=0.1).fit(x, y).predict(test)
    apart = []
    for m in config.sizes:
        features = ntkit.RandomFeatures("gaussian", m, config.seed, lengthscale=2.0).fit(x)
        predicted = Ridge(alpha=0.1, fit_intercept=False).fit(features.transform(x), y)
        predicted = predicted.predict(features.transform(test))
        apart.append(float(np.sqrt(np.mean((predicted - exact) ** 2) / np.mean(exact**2))))
    claims = [
        Claim(f"{name}: slope of the error in m", value, "-1/2", low=-0.65, high=-0.35)
        for name, value in slopes.items()
        if name.endswith("iid")
    ]
    last, most = dict(zip(settings, table[:, -1], strict=True)), config.sizes[-1]
    for how in ("orthogonal", "sobol"):
        ratio = last["gaussian", how] / last["gaussian", "iid"]
        claims.append(Claim(f"error of {how} over independent draws, m = {most}", ratio, high=1.0))
    off = f"ridge on {most} features against the kernel's, relative"
    claims.append(Claim(off, apart[-1], high=0.2))
    arrays = {"sizes": config.sizes, "errors": table, "apart": apart}
    return Result(config, claims, arrays, {"settings": list(slopes), "slopes": slopes})


def figure(result: Result) -> Figures:
    """Draw the errors against the number of features."""
    a = result.arrays
    drawn, (left, right) = panels(10.5, 4, columns=2)
    for i, (name, row) in enumerate(zip(result.numbers["settings"], a["errors"], strict=True)):
        left.loglog(a["sizes"], row, "o-", ms=3, lw=1.2, color=f"C{i}", label=name)
    line = a["errors"][0, 0] * (a["sizes"] / a["sizes"][0]) ** -0.5
    left.loglog(a["sizes"], line, ":", color="0.4", label="∝ m⁻¹ᐟ²")
    finish(left, xlabel="features m", ylabel="error of the kernel (relative)")
    handles, labels = left.get_legend_handles_labels()
    left.get_legend().remove()
    drawn.legend(handles, labels, loc="outside right center", frameon=False)
    right.loglog(a["sizes"], a["apart"], "o-", color=BLUE)
    finish(right, xlabel="features m", ylabel="distance of the ridge regressions (relative)")
    for ax in (left, right):
        ticks(ax.xaxis, a["sizes"])
        ax.tick_params(axis="x", labelsize=8)
    ticks(
        right.yaxis,
        [v for v in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if a["apart"].min() <= v <= a["apart"].max()],
    )
    return {"Error against the number of features": drawn}


def _gaussian(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Return the Gaussian kernel of lengthscale two."""
    return np.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1) / 8)
