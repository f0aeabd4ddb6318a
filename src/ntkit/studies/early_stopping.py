"""Why stopping early helps: along which components of the kernel labels are learned, and when.

Gradient flow learns the part of the labels along the i-th eigenvector of the kernel as 1 - exp(-lambda_i t)
(Giancola, Observation IV.2.9). With noise on the labels the leading components carry the function and the
trailing ones mostly noise: the test error falls, has a minimum, and rises again.
"""

from __future__ import annotations

import numpy as np

import ntkit
from ntkit.display.axes import BLUE, GREEN, INK, ORANGE
from ntkit.machine.kernels import ReLUKernel
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, StudyConfig, array, option

QUICK = {"samples": 100, "repeats": 4}


class Config(StudyConfig):
    """A smooth function on the sphere with noise on its labels."""

    samples: int = option(200, "Training points.", low=20, high=5000)
    dimension: int = option(3, "Dimension of the space that the sphere is in.", low=2, high=100)
    noise: float = option(1.0, "Standard deviation of the labels' noise; the function's is one.", above=0.0)
    repeats: int = option(10, "Draws of points and noise.", low=1, high=1000)


def run(config: Config) -> Result:
    """Follow the test error over time, with and without noise, and the parts of function and noise."""
    draw = np.random.default_rng(config.seed)
    times = np.logspace(-1, 5, 61)
    errors: dict[str, list[np.ndarray]] = {"noise": [], "none": []}
    stopped, parts, left, rates = [], [], [], np.empty(0)
    for _ in range(config.repeats):
        x, test = (_sphere(draw, n, config.dimension) for n in (config.samples, 1000))
        direction = draw.normal(size=config.dimension)
        f, truth = (_function(points, direction) for points in (x, test))
        noise = config.noise * draw.normal(size=config.samples)
        for name, labels in (("noise", f + noise), ("none", f)):
            flow = ntkit.GradientFlow(ReLUKernel(), t=[*times, np.inf]).fit(x, labels)
            errors[name].append(((flow.predict(test) - truth) ** 2).mean(-1))
        stopping = ntkit.GradientFlow(ReLUKernel(), early_stopping="validation", random_state=config.seed)
        stopping.fit(x, f + noise)
        stopped.append(float(((stopping.predict(test) - truth) ** 2).mean()))
        rates, vectors = np.linalg.eigh(array(ReLUKernel()(x)) / config.samples)
        rates, vectors = rates[::-1], vectors[:, ::-1]
        parts.append(np.stack([(vectors.T @ f) ** 2, (vectors.T @ noise) ** 2]))
        left.append(np.exp(-np.outer(times, rates)))
    curves = {name: np.mean(e, 0) for name, e in errors.items()}
    noisy, best = curves["noise"], int(np.argmin(curves["noise"][:-1]))
    energy = np.cumsum(np.mean(parts, 0), axis=1)
    energy /= energy[:, -1:]
    function, noise = energy[:, config.samples // 10 - 1]
    by_validation, least = np.mean(stopped) / noisy[-1], min(curves["none"]) / curves["none"][-1]
    claims = (
        Claim("test error at the best time over that at the end", noisy[best] / noisy[-1], "< 1", high=0.9),
        Claim("best time", float(times[best])),
        Claim("stopped by validation: test error over that at the end", by_validation, "< 1", high=0.9),
        Claim("without noise: least test error over that at the end", least),
        Claim("part of the function in the leading tenth of components", function, "most", low=0.5),
        Claim("part of the noise there", noise, high=0.2),
    )
    arrays = {"times": times, "with noise": noisy, "without noise": curves["none"]}
    return Result(config, claims, {**arrays, "energy": energy, "rates": rates})


def figure(result: Result) -> Figures:
    """Draw the test error over time, and where function and noise are."""
    a = result.arrays
    drawn, (left, right) = panels(9, 3.8, columns=2)
    for name, color in (("with noise", ORANGE), ("without noise", BLUE)):
        left.loglog(a["times"], a[name][:-1], color=color, label=name)
        left.axhline(a[name][-1], color=color, ls=":", lw=1)
    left.plot([], [], ":", color=INK, label="at the end")
    finish(left, xlabel="training time", ylabel="test error (mean square)")
    for row, (name, color) in enumerate((("function", BLUE), ("noise", ORANGE))):
        right.semilogx(np.arange(1, a["energy"].shape[1] + 1), a["energy"][row], color=color, label=name)
    twin = right.twinx()
    twin.loglog(np.arange(1, len(a["rates"]) + 1), 1 / a["rates"], color=GREEN, lw=1)
    twin.set_ylabel("time to learn the component, 1 / λ", color=GREEN)
    finish(right, xlabel="leading components", ylabel="part of the labels in them")
    return {"Test error over time, and what is learned when": drawn}


def _sphere(draw: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = draw.normal(size=(n, d))
    return x / np.linalg.norm(x, axis=1, keepdims=True) * d**0.5


def _function(x: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Return a smooth function of one direction, of standard deviation about one."""
    along = x @ direction / np.linalg.norm(direction)
    return np.sin(2 * along) + 0.5 * along
