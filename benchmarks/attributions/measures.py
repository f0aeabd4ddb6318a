"""How well scores predict: rank correlations and the area under the ROC curve, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score


class Measured(NamedTuple):
    """A figure and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the rank correlation along the last axis; 0 where one side is constant."""
    a, b = (rankdata(side, axis=-1) for side in (a, b))
    a, b = (side - side.mean(-1, keepdims=True) for side in (a, b))
    size = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    return np.divide((a * b).sum(-1), size, out=np.zeros_like(size), where=size > 0)


def mean_spearman(predicted: np.ndarray, actual: np.ndarray, draws: int = 400) -> Measured:
    """Return the mean over queries of the rank correlation over removals or subsets, both ``[q, m]``.

    The interval draws queries and removals (or subsets) with replacement, together.
    """
    q, m = actual.shape

    def drawn(generator: np.random.Generator) -> float:
        rows, columns = generator.integers(q, size=q), generator.integers(m, size=m)
        return float(spearman(predicted[:, columns], actual[:, columns])[rows].mean())

    return _interval(float(spearman(predicted, actual).mean()), drawn, draws)


def auroc(score: np.ndarray, wrong: np.ndarray, draws: int = 400) -> Measured:
    """Return the chance that a wrong label scores higher than a right one; the interval draws samples."""

    def drawn(generator: np.random.Generator) -> float:
        index = generator.integers(len(wrong), size=len(wrong))
        return float(roc_auc_score(wrong[index], score[index]))

    return _interval(float(roc_auc_score(wrong, score)), drawn, draws)


def _interval(value: float, drawn: Callable[[np.random.Generator], float], draws: int) -> Measured:
    generator = np.random.default_rng(0)
    low, high = np.quantile([drawn(generator) for _ in range(draws)], [0.025, 0.975])
    return Measured(value, float(low), float(high))
