"""When to stop training: times to try, and their errors on samples that were not trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import BadValueError, real
from ntkit.machine.solving.losses import loss_of
from ntkit.machine.solving.trajectory import Trajectory

COUNT = 60  # times that are tried
Training = tuple[Tensor, Tensor, Tensor]  # the kernel matrix, the targets, the function at the start
PATIENCE = 10  # times without a better one after which an integration ends


def times(rates: Tensor, limit: float, learning_rate: float | None) -> np.ndarray:
    """Return times from a hundredth of the fastest part's to ten times the slowest's, and the limit."""
    positive = rates[rates > 0].cpu().numpy()
    if not len(positive):
        return np.array([0.0])
    end = min(10 / positive.min(), 1e8 / positive.max(), limit)
    found = np.geomspace(min(0.01 / positive.max(), end / 2), end, COUNT) if end > 0 else np.array([0.0])
    if learning_rate is not None:
        found = learning_rate * np.unique(np.round(found / learning_rate))
        limit = limit if limit == np.inf else learning_rate * round(limit / learning_rate)
    return np.unique([*found[found <= limit], limit])


def validation(
    trajectory: Trajectory, training: Training, times: np.ndarray, fraction: float, random_state: int | None
) -> np.ndarray:
    """Return the mean loss of a fraction of the samples, held out, at each time."""
    n = len(training[1])
    held = round(real("validation_fraction", fraction, "a number between 0 and 1") * n)
    if not 0 < held < n:
        raise BadValueError(
            f"validation_fraction={fraction} of {n} samples holds out {held}; at least one must be held out "
            f"and one be left."
        )
    order = np.random.default_rng(random_state).permutation(n)
    return _errors(trajectory, training, order[held:], order[:held], times)


def leave_one_out(trajectory: Trajectory, training: Training, times: np.ndarray) -> np.ndarray:
    """Return the mean loss of each sample under training on all others, at each time; n trainings."""
    n = len(training[1])
    if n < 2:
        raise BadValueError("Leave-one-out needs at least two samples.")
    every = np.arange(n)
    errors = [_errors(trajectory, training, every[every != i], every[i : i + 1], times) for i in range(n)]
    return np.mean(errors, 0)


def _errors(
    trajectory: Trajectory, training: Training, train: np.ndarray, test: np.ndarray, times: np.ndarray
) -> np.ndarray:
    gram, y, f0 = training
    a, b = (torch.as_tensor(i, device=gram.device) for i in (train, test))
    loss, inner, cross = loss_of(trajectory.loss), gram[a][:, a], gram[b][:, a]
    if trajectory.loss == "squared":
        functions = f0[b] + cross @ trajectory.coefficients(inner, None, y[a], f0[a], times)
        return np.array([float(loss.value(f, y[b]).mean()) for f in functions])
    c, errors = torch.zeros_like(y[a]), np.full(len(times), np.inf)
    for i, t in enumerate(times):  # from one time to the next, for as long as it helps
        step = np.array([t - (times[i - 1] if i else 0.0)])
        c = c + trajectory.coefficients(inner, None, y[a], f0[a] + inner @ c, step)[0]
        errors[i] = float(loss.value(f0[b] + cross @ c, y[b]).mean())
        if i - int(np.argmin(errors)) >= PATIENCE:
            break
    return errors
