"""Random features: how fast they tend to their kernel, and ridge regression on them.

The error of m features is of the order of m^(-1/2) for every kernel (Ravikumar, Section 2; Rahimi and
Recht); orthogonal and quasi-random draws make it smaller. Ridge regression on the features tends to that on
the kernel. With bounded coefficients, the risk above the least possible falls with m and with n, the number
of samples (Section 2.2); neither makes up for the other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from sklearn.linear_model import Ridge

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE
from ntkit.errors import BadValueError
from ntkit.studies import feature_risk
from ntkit.studies.figures import Figures, finish, panels, ticks
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import slope

QUICK = {
    "sizes": (64, 256, 1024),
    "repeats": 2,
    "risk_sizes": (8, 32, 128),
    "risk_samples": (50, 200, 800),
    "risk_repeats": 3,
}
KINDS = ("gaussian", "laplacian", "cauchy", "matern", "arccos0", "arccos1", "ntk")


class Config(StudyConfig):
    """Gaussian inputs in a few dimensions."""

    samples: int = option(100, "Inputs.", low=4, high=256)
    dimension: int = option(5, "Dimension of the inputs.", low=1, high=1000)
    sizes: tuple[int, ...] = option((64, 256, 1024, 4096, 16384), "Numbers m of features.", low=4, least=2)
    repeats: int = option(5, "Draws of each.", low=1, high=1000)
    largest_ntk: int = option(4096, "Most features of the NTK: its map has about 3 m^2 weights.", low=4)
    risk_sizes: tuple[int, ...] = option(
        (8, 32, 128, 512), "Numbers m of features for the risk.", low=2, high=10**4, least=2
    )
    risk_samples: tuple[int, ...] = option(
        (50, 200, 800, 3200), "Numbers n of samples for the risk.", low=2, high=10**6, least=2
    )
    risk_repeats: int = option(5, "Draws of features and samples for the risk.", low=1, high=1000)
    noise: float = option(
        0.3, "Standard deviation of the labels' noise, for the risk.", above=0.0, high=100.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sizes", "risk_sizes", "risk_samples"):
            object.__setattr__(self, name, tuple(sorted(getattr(self, name))))
        few = [m for m in self.sizes if m <= self.largest_ntk]
        if len(few) < 2:
            raise BadValueError(
                f"sizes holds {few} up to largest_ntk = {self.largest_ntk}; expected at least two, for "
                "the slope of the NTK's error."
            )


def run(config: Config) -> Result:
    """Measure the error of each kind against m, and the distance of two regressions."""
    draw = np.random.default_rng(config.seed)
    x = draw.normal(size=(config.samples, config.dimension))
    test = draw.normal(size=(500, config.dimension))
    settings = [(kind, "iid") for kind in KINDS] + [("gaussian", "orthogonal"), ("gaussian", "sobol")]
    table = np.full((len(settings), len(config.sizes)), np.nan)
    with progress("drawing features (settings)", len(settings)) as done:
        for i, (kind, how) in enumerate(settings):
            for j, m in enumerate(config.sizes):
                if kind == "ntk" and m > config.largest_ntk:
                    continue

                def error(kind=kind, how=how, m=m) -> float:
                    found = [
                        ntkit.RandomFeatures(kind, m, s, draw=how, lengthscale=2.0).fit(x).error_.relative
                        for s in range(config.seed, config.seed + config.repeats)
                    ]
                    return float(np.sqrt(np.mean(np.square(found))))

                table[i, j] = part(f"{kind}, {how}, {m}", error)
            done(1)
    slopes = {
        f"{kind}, {how}": slope(np.array(config.sizes)[np.isfinite(row)], row[np.isfinite(row)])
        for (kind, how), row in zip(settings, table, strict=True)
    }
    y = np.sin(x.sum(1)) + 0.1 * draw.normal(size=config.samples)
    exact = ntkit.KernelRidge(_gaussian, alpha=0.1, normalize_y=False).fit(x, y).predict(test)
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
    excess, left = part("risk", lambda: _risks(config))
    claims += _of_risk(config, excess, left)
    arrays = {"sizes": config.sizes, "errors": table, "apart": apart, "excess": excess, "left": left}
    arrays |= {"risk sizes": config.risk_sizes, "risk samples": config.risk_samples}
    notes = ()
    if config.sizes[-1] > config.largest_ntk:
        notes = (
            f"The NTK's features are drawn up to m = {config.largest_ntk}: their map has about 3 m² weights.",
        )
    return Result(config, claims, arrays, {"settings": list(slopes), "slopes": slopes}, notes)


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
    return {"Error against the number of features": drawn, "Risk against features and samples": _draw_risk(a)}


def _risks(config: Config) -> tuple[np.ndarray, np.ndarray]:
    goal = feature_risk.target(config.dimension, config.seed, config.noise)
    return feature_risk.risks(goal, config.risk_sizes, config.risk_samples, config.risk_repeats, config.seed)


def _of_risk(config: Config, excess: np.ndarray, left: np.ndarray) -> list[Claim]:
    """Return the claims about the risk, from the means over draws."""
    mean = excess.mean(0)
    m, n = np.array(config.risk_sizes, dtype=float), np.array(config.risk_samples, dtype=float)
    rate = m[:, None] ** -0.5 + n[None] ** -0.5
    low, high = (float(f(mean / rate)) for f in (np.min, np.max))
    most = f"n = {config.risk_samples[-1]}", f"m = {config.risk_sizes[-1]}"
    return [
        Claim(f"risk above the least, {most[1]}: slope in n", slope(n, mean[-1]), "-1/2 at most", high=-0.5),
        Claim(
            f"risk above the least, {most[0]}: slope in m", slope(m, mean[:, -1]), "-1/2 at most", high=-0.5
        ),
        Claim("what the features leave of it: slope in m", slope(m, left.mean(0)), "-1 at most", high=-0.8),
        Claim("risk above the least / (m^(-1/2) + n^(-1/2)), largest", high, "bounded"),
        Claim("risk above the least / (m^(-1/2) + n^(-1/2)), smallest", low),
    ]


def _draw_risk(a: Mapping[str, np.ndarray]) -> Figure:
    """Draw the risk against n for each m, and against m for each n, with what the features leave."""
    drawn, (left, right) = panels(9.5, 4, columns=2, sharey=True)
    mean, m, n = a["excess"].mean(0), a["risk sizes"], a["risk samples"]
    for i, size in enumerate(m):
        left.loglog(n, mean[i], "o-", ms=4, color=f"C{i}", label=f"m = {size}")
    for j, count in enumerate(n):
        right.loglog(m, mean[:, j], "o-", ms=4, color=f"C{j}", label=f"n = {count}")
    right.loglog(m, a["left"].mean(0), "s--", ms=4, color="0.3", label="n → ∞")
    for ax, values, text in ((left, n, "samples n"), (right, m, "features m")):
        ax.loglog(values, mean[0, 0] * (values / values[0]) ** -0.5, ":", color="0.4", label="slope −1/2")
        finish(ax, xlabel=text, ylabel="risk above the least possible", fontsize=8)
        ticks(ax.xaxis, values)
    right.set_ylabel("")
    return drawn


def _gaussian(x1: np.ndarray, x2: np.ndarray) -> np.ndarray:
    """Return the Gaussian kernel of lengthscale two."""
    return np.exp(-((x1[:, None] - x2[None]) ** 2).sum(-1) / 8)
