"""Probabilities from scores: one temperature, by what leave-one-out predicts."""

from __future__ import annotations

import numpy as np
from scipy.special import expit, log_expit, log_softmax, softmax

from ntkit.machine.solving.minimum import minimum
from ntkit.network import Floats

RANGE = (-4.0, 7.0)  # of the logarithm of the slope


def probabilities(f: np.ndarray, single: bool) -> Floats:
    """Return softmax(f) ``[n, o]``; ``single``: the logistic function of each column."""
    return expit(f) if single else softmax(f, 1)


def slope_of(f: np.ndarray, y: np.ndarray, single: bool, weights: np.ndarray | None = None) -> float:
    """Return s > 0 for which the probabilities of s f lose least on held-out scores.

        min_s -sum_n w_n log p(y_n | s f(x_n))

    1 / s is the temperature. Targets are drawn a little towards each other, as one more sample of each class
    would: scores that are all right would have an infinite slope (Platt, "Probabilistic outputs for support
    vector machines", 1999).

    Parameters
    ----------
    f : array [n, o]
        Scores of samples that had no part in them.
    y : array [n, o]
        One-hot rows, or truth values of each column for ``single``.
    single : bool
        Whether each column is a question of its own.
    weights : array [n] or None
        Of the samples.

    Returns
    -------
    float
        The slope s.
    """
    n, o = y.shape
    classes = 2 if single else o
    soft = (y * n + 1) / (n + classes)
    w = np.ones(n) if weights is None else weights

    def loss(log: float) -> float:
        g = float(np.exp(log)) * f
        if single:
            each = -(soft * log_expit(g) + (1 - soft) * log_expit(-g)).sum(1)
        else:
            each = -(soft * log_softmax(g, 1)).sum(1)
        return float(w @ each)

    return float(np.exp(minimum(loss, RANGE[0], RANGE[1], 1e-4)[0]))
