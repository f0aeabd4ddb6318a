"""The risk of learning with random features, against their number m and the number n of samples.

With features phi(w, x) drawn from the spectral density of a kernel, and the estimator

    f = argmin of the empirical risk over { sum_j theta_j phi(w_j, x) / sqrt(m): |theta_j| <= C / sqrt(m) }

the risk above the least that functions with |theta(w)| <= C p(w) can have is at most of the order of
1 / sqrt(m) + 1 / sqrt(n); its part that the features alone are to blame for, at most of that of 1 / m
(Ravikumar, Section 2.2, after Rahimi and Recht, 2009). The target is a sum of kernels, which is among those
functions: the least risk is the variance of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

import ntkit

SCALE = 2.0  # length scale of the Gaussian kernel
TESTS = 4000  # inputs on which the risk is measured
STEPS = 3000  # most steps of the solver


@dataclass(frozen=True)
class Target:
    """f(x) = sum_i beta_i k(x, z_i), noisy labels of it, and the bound C that it obeys."""

    centers: np.ndarray
    weights: np.ndarray
    noise: float

    @property
    def bound(self) -> float:
        """A bound: k(x, z) = E[sqrt(2) cos(w z + b) phi(w, x)], so that C = sqrt(2) sum |beta_i|."""
        return float(2**0.5 * np.abs(self.weights).sum())

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Return the function at inputs ``[n, d]``."""
        square = ((x[:, None] - self.centers[None]) ** 2).sum(-1)
        return np.exp(-square / (2 * SCALE**2)) @ self.weights


def target(dimension: int, seed: int, noise: float) -> Target:
    """Draw a target with five centers."""
    draw = np.random.default_rng(seed)
    return Target(draw.normal(size=(5, dimension)), draw.choice([-1.0, 1.0], size=5), noise)


def risks(
    goal: Target, sizes: Sequence[int], samples: Sequence[int], repeats: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the risk above the least ``[repeats, m, n]``, and what infinitely many samples leave of it.

    The second, ``[repeats, m]``, is that of the best function of the class on the inputs of the test.
    """
    dimension = goal.centers.shape[1]
    excess = np.zeros((repeats, len(sizes), len(samples)))
    left = np.zeros((repeats, len(sizes)))
    for s in range(repeats):
        draw = np.random.default_rng([seed, s])
        x, test = draw.normal(size=(max(samples), dimension)), draw.normal(size=(TESTS, dimension))
        y, truth = goal(x) + goal.noise * draw.normal(size=len(x)), goal(test)
        for i, m in enumerate(sizes):
            features = ntkit.RandomFeatures("gaussian", m, seed + s, lengthscale=SCALE).fit(x)
            z, asked = features.transform(x), features.transform(test)
            for j, n in enumerate(samples):
                theta = bounded(z[:n], y[:n], goal.bound / z.shape[1] ** 0.5)
                excess[s, i, j] = np.mean((asked @ theta - truth) ** 2)
            best = bounded(asked, truth, goal.bound / z.shape[1] ** 0.5)
            left[s, i] = np.mean((asked @ best - truth) ** 2)
    return excess, left


def bounded(z: np.ndarray, y: np.ndarray, bound: float) -> np.ndarray:
    """Return argmin |z theta - y|^2 with |theta_j| <= bound, by accelerated projected gradient descent."""
    gram, cross = z.T @ z / len(z), z.T @ y / len(z)
    rate = 1 / float(np.linalg.eigvalsh(gram)[-1])
    theta = np.zeros(len(cross))
    ahead, momentum = theta, 1.0
    for _ in range(STEPS):
        new = np.clip(ahead - rate * (gram @ ahead - cross), -bound, bound)
        if np.abs(new - ahead).max() < 1e-9 * bound:
            return new
        if (ahead - new) @ (new - theta) > 0:  # it overshot
            momentum = 1.0
        after = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        ahead = new + (momentum - 1) / after * (new - theta)
        theta, momentum = new, after
    return theta
