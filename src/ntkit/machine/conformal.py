"""Conformal intervals: what is left of each sample by a fit without it, around that fit's prediction."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import BadValueError, real
from ntkit.machine.choice.leave_one_out import Targets
from ntkit.network import Pair


class SpreadWarning(UserWarning):
    """A spread over networks by their start, which is no interval for new targets."""


def tell_of_spread() -> None:
    """Warn that a spread over networks is no interval."""
    warnings.warn(
        "The spread is that of trained networks by their start, in units of the prior: it is no interval "
        "for new targets, of whose noise it knows nothing. predict_interval gives one.",
        SpreadWarning,
        stacklevel=3,  # who called predict
    )


def jackknife_plus(left: np.ndarray, residuals: np.ndarray, coverage: float) -> Pair:
    """Return the bounds ``[m, o]`` of the jackknife+ interval.

        [q-_i (f_-i(x) - |r_i|), q+_i (f_-i(x) + |r_i|)],    r_i = y_i - f_-i(x_i)

    q+ is the ceil(coverage (n + 1))-th smallest of n numbers, q- the one as far from the other end; infinite
    where n is too small. For samples that can change places, a new target lies inside with a probability of
    at least 2 coverage - 1, whatever the fit, and of about ``coverage`` where it is stable.

    Parameters
    ----------
    left : array [m, n, o]
        Predictions f_-i(x) at queries by the fit without sample i.
    residuals : array [n, o]
        The residuals r_i.
    coverage : float
        The probability.

    Returns
    -------
    pair of arrays [m, o]
        The lower and the upper bounds.

    References
    ----------
    Barber, Candes, Ramdas, Tibshirani, "Predictive inference with the jackknife+" (2021), Eq. 1.5, Theorem 1.

    Examples
    --------
    >>> import numpy as np
    >>> low, high = jackknife_plus(np.zeros((1, 9, 1)), np.arange(9.0)[:, None], 0.8)
    >>> low.item(), high.item()
    (-7.0, 7.0)
    """
    n = len(residuals)
    place = int(np.ceil(coverage * (n + 1) - 1e-9))
    if place > n:
        infinite = np.full((len(left), residuals.shape[1]), np.inf)
        return -infinite, infinite
    r = np.abs(residuals)
    high = np.partition(left + r, place - 1, axis=1)[:, place - 1]
    low = np.partition(left - r, n - place, axis=1)[:, n - place]
    return low, high


def probability(coverage: object) -> float:
    """Return a coverage, checked."""
    return real("coverage", coverage, "a probability between 0 and 1", lambda v: 0 < v < 1)


def left_out_predictions(targets: Targets, prediction: Tensor, weights: Tensor, residuals: Tensor) -> Tensor:
    """Return f_-i(x) ``[m, n, o]`` of ridge at queries, in closed form.

        f_-i(x) = f(x) + (m_-i - m) (1 - k_x R G R 1) - (k_x R G)_i R_i r_i,    G = (R K R + alpha)^-1

    Parameters
    ----------
    targets : Targets
        What was learned, with m and R.
    prediction : Tensor [m, o]
        The values f(x).
    weights : Tensor [m, n]
        The products k_x R G.
    residuals : Tensor [n, o]
        The leave-one-out residuals r.

    Returns
    -------
    Tensor [m, n, o]
        The predictions.
    """
    root = torch.ones_like(weights[0]) if targets.root is None else targets.root.to(weights)
    moved = prediction[:, None] - weights[:, :, None] * (root[:, None] * residuals)
    if not targets.centered or len(targets.y) < 2:
        return moved
    w = targets.weights
    shift = w[:, None] * (targets.mean - targets.y) / (w.sum() - w)[:, None]
    return moved + (1 - weights @ root)[:, None, None] * shift


def folds(n: int, count: int, seed: int, same: np.ndarray | None = None) -> list[np.ndarray]:
    """Return groups of samples, each sample in one; of one sample each where there are no more than count.

    Copies of a record, of which ``same`` ``[n]`` says which each sample is, are in one group.
    """
    if n < 2:
        raise BadValueError(f"An interval needs at least two samples, fit had {n}.")
    if same is not None:
        return [np.flatnonzero(np.isin(same, some)) for some in folds(int(same.max()) + 1, count, seed)]
    return np.array_split(np.random.default_rng(seed).permutation(n), min(n, count))
