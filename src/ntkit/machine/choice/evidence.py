"""The evidence of a Gaussian process: noise, amplitude and the kernel's scale that maximize it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ntkit.compute.eigen import Spectrum, spectrum
from ntkit.machine.choice.candidates import Candidate
from ntkit.machine.choice.search import MARGIN, Search, Tried, grams, shown
from ntkit.machine.distances import as_vectors
from ntkit.machine.inputs.scaling import Scaling
from ntkit.machine.solving.minimum import minimum

RANGE = (1e-10, 1e6)  # of noise to amplitude, over the mean eigenvalue: where the noise is looked for
SIGMA_B, LENGTH = (1e-2, 10.0), (0.05, 20.0)  # where a kernel's scale is looked for
LEAST = 1e-5  # of the mean square of the targets: equal samples with equal targets would have none
STEP = 1e-3  # of the logarithm of a kernel's scale, over which the kernel is differentiated
RESTARTS = 2  # of the best candidates, those from which the evidence is climbed


@dataclass(frozen=True)
class Found:
    """Noise and amplitude ``[o]``, their evidence, and whether they lie at the upper end of the range."""

    noise: Tensor
    amplitude: Tensor
    evidence: float
    ends: bool = False


@dataclass(frozen=True)
class Scales:
    """Noise and amplitude that are given, or to be found (None), for outputs of variances ``units [o]``."""

    noise: float | None
    amplitude: float | None
    units: Tensor

    def given(self) -> Found:
        """Return what is given, its evidence unknown."""
        ones = torch.ones_like(self.units)
        return Found((self.noise or 0.0) * ones, (self.amplitude or 1.0) * ones, float("nan"))

    def best(self, whole: Spectrum, y: Tensor) -> Found:
        """Return those of largest evidence for centered targets ``[n, o]``."""
        squares = (whole.vectors.T @ y).square()
        units = self.units.to(squares)
        mean = float(whole.values.mean()) or 1.0
        low = max(RANGE[0], whole.floor / mean)
        ones = torch.ones_like(units)
        if self.noise is not None and self.amplitude is not None:
            return _found(whole, squares, self.noise * ones, self.amplitude * ones)
        if self.noise is None:
            least = LEAST * y.square().mean(0).to(squares)

            def at(log: float) -> Found:
                ratio = mean * float(np.exp(log))
                amplitude = self._profile(whole, squares / units, ratio) * units
                amplitude = amplitude if self.amplitude is None else self.amplitude * ones
                return _found(whole, squares, torch.maximum(ratio * amplitude, least), amplitude)

            found, ends = _maximum(at, np.log(low), np.log(max(RANGE[1], 10 * low)))
            return replace(found, ends=ends)
        noise = self.noise
        size = float((squares.sum(0) / units).mean()) / len(y) or 1.0  # near 1 where y is normalized

        def of(log: float) -> Found:
            return _found(whole, squares, noise * ones, size / mean * float(np.exp(log)) * units)

        return _maximum(of, np.log(1e-8), np.log(1e8))[0]

    @staticmethod
    def _profile(whole: Spectrum, squares: Tensor, ratio: float) -> float:
        """Return the amplitude of largest evidence at a ratio of noise to amplitude, in closed form."""
        values = whole.values + ratio
        if bool((values <= 0).any()):
            return 1.0
        return float((squares / values[:, None]).mean()) or 1.0


def _found(whole: Spectrum, squares: Tensor, noise: Tensor, amplitude: Tensor) -> Found:
    """Return the evidence of noise and amplitude, summed over outputs; minus infinity where y has none."""
    values = amplitude * whole.values[:, None] + noise
    if bool((values <= 0).any()):
        return Found(noise, amplitude, -float("inf"))
    total = squares / values + values.log() + np.log(2 * np.pi)
    return Found(noise, amplitude, -0.5 * float(total.sum()))


def _maximum(at: Callable[[float], Found], low: float, high: float) -> tuple[Found, bool]:
    """Return the best of a grid, refined, and whether it is the last."""
    grid = np.linspace(low, high, 65)
    found = [at(log) for log in grid]
    i = max(range(len(grid)), key=lambda j: found[j].evidence)
    bounds = (grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)])
    refined, _ = minimum(lambda log: -at(log).evidence, bounds[0], bounds[1], 1e-5)
    best = max(found[i], at(refined), key=lambda one: one.evidence)
    return best, i == len(grid) - 1


@dataclass(frozen=True)
class Climbed:
    """The candidate of largest evidence, its scaling, what was compared, whether its scale is a border."""

    candidate: Candidate
    scaling: Scaling
    search: Search
    border: bool


def climb(
    x: np.ndarray,
    y: Tensor,
    scales: Scales,
    compared: Sequence[Candidate],
    binary: np.ndarray | None,
    n: int,
    verbose: bool = False,
) -> Climbed:
    """Return the kernel of largest evidence: the best candidates, their scales moved uphill by the gradient.

    Parameters
    ----------
    x, y : array [m, d], Tensor [m, o]
        Samples, and their targets centered.
    scales : Scales
        Noise and amplitude, given or to be found along.
    compared : sequence of Candidate
        From where to start.
    binary : array [d] or None
        Which columns are one-hot.
    n : int
        How many samples there are in all.
    verbose : bool
        Whether a progress bar is shown.
    """
    scalings = {c.scale: Scaling.of(c.scale, x, binary=binary) for c in compared}
    tried = [
        Tried(c, float("nan"), -scales.best(spectrum(gram), y).evidence / len(x))
        for c, gram in shown(grams(x, compared, scalings), len(compared), verbose)
    ]
    # a family has one start, its best: their scales are moved anyway
    best: dict[tuple[object, ...], Tried] = {}
    for one in tried:
        key = one.candidate.scale, one.candidate.kernel, one.candidate.depth
        best[key] = min(best.get(key, one), one, key=lambda t: t.error)
    order = sorted(best.values(), key=lambda t: t.error + MARGIN * (t.candidate.scale == "unit"))
    ends = [_uphill(one.candidate, scalings[one.candidate.scale](x), y, scales) for one in order[:RESTARTS]]
    end, border = min(ends, key=lambda e: e[0].error)
    search = Search((*tried, *(e[0] for e in ends)), end, len(x), n, "negative evidence in nats a sample")
    return Climbed(end.candidate, scalings[end.candidate.scale], search, border)


def _uphill(start: Candidate, x: np.ndarray, y: Tensor, scales: Scales) -> tuple[Tried, bool]:
    """Climb from a candidate by L-BFGS over the logarithm of its scale.

        d log p / d s = tr((c c^T - (a K + s^2)^-1) a dK/ds) / 2,    c = (a K + s^2)^-1 y

    at the best noise and amplitude there, whose own derivatives vanish.
    """
    vectors = as_vectors(x)
    low, high = np.log(LENGTH if start.length is not None else SIGMA_B)

    def gram(log: float) -> Tensor:
        return start.at(float(np.exp(log))).made(x)(vectors)

    def loss(logs: np.ndarray) -> tuple[float, np.ndarray]:
        log = float(logs[0])
        whole = spectrum(gram(log))
        found = scales.best(whole, y)
        moved = (gram(log + STEP) - gram(log - STEP)) / (2 * STEP)
        values = found.amplitude * whole.values[:, None] + found.noise
        parts = (whole.vectors.T @ y) / values
        turned = whole.vectors.T @ moved @ whole.vectors
        slope = found.amplitude * (
            (parts * (turned @ parts)).sum(0) - (turned.diagonal()[:, None] / values).sum(0)
        )
        return -found.evidence / len(y), np.array([-float(slope.sum()) / 2 / len(y)])

    options = {"maxiter": 8, "ftol": 1e-5, "gtol": 1e-4}
    first = np.array([np.log(start.value)])
    end = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=[(low, high)], options=options)
    at = float(end.x[0])
    border = min(at - low, high - at) < 1e-6
    return Tried(start.at(float(np.exp(at))), float("nan"), float(end.fun)), border
