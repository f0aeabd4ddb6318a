"""Plots of what a kernel machine learns; each draws into ``ax`` or makes its own figure."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ntkit.display.axes import BLUE, GREEN, INK, ORANGE, new_axes, plain_axes

COLORS = "viridis"


def eigen_learning(curve: Any, ax: Axes | None = None, *, parts: int = 8) -> Axes:
    """Draw a `LearningCurve`: the share of the targets that is left along the leading eigenvectors.

    >>> import numpy as np, ntkit
    >>> X = np.linspace(-1, 1, 12)[:, None]
    >>> flow = ntkit.GradientFlow().fit(X, np.sin(3 * X[:, 0]))
    >>> eigen_learning(flow.learning_curve(np.logspace(-2, 3, 30))).get_xlabel()
    'time (steps x learning rate)'
    """
    from matplotlib import colormaps

    ax = new_axes(6.4, 3.4)[0] if ax is None else ax
    parts = min(parts, len(curve.rates))
    for i in range(parts):
        color = colormaps[COLORS](0.9 * i / max(1, parts - 1))
        ax.plot(curve.times, np.abs(curve.left[:, i]), color=color, lw=1.5, label=f"{i + 1}")
    start = (curve.parts**2).sum() / (2 * len(curve.rates))
    ax.plot(curve.times, curve.loss / (start or 1.0), color=INK, lw=2, ls="--", label="loss")
    ax.set(xscale="log", xlabel="time (steps x learning rate)", ylabel="share that is left")
    ax.set_title("learning along the kernel's eigenvectors")
    plain_axes(ax)
    ax.legend(title="eigenvector", fontsize=8, ncol=2, frameon=False, labelcolor=INK)
    return ax


def posterior_band(
    x: np.ndarray,
    mean: np.ndarray,
    std: np.ndarray,
    train: tuple[np.ndarray, np.ndarray] | None = None,
    ax: Axes | None = None,
    *,
    draws: np.ndarray | None = None,
    width: float = 2.0,
) -> Axes:
    """Draw a function of one input with a band of ``width`` standard deviations, and draws ``[m, draws]``."""
    ax = new_axes(6.4, 3.4)[0] if ax is None else ax
    x, order = np.ravel(x), np.argsort(np.ravel(x))
    low, high = mean - width * std, mean + width * std
    label = f"{width:g} standard deviations"
    ax.fill_between(x[order], low[order], high[order], color=BLUE, alpha=0.2, lw=0, label=label)
    for draw in () if draws is None else draws.T:
        ax.plot(x[order], draw[order], color=GREEN, lw=0.7, alpha=0.7)
    ax.plot(x[order], mean[order], color=BLUE, lw=2, label="mean")
    if train is not None:
        ax.plot(np.ravel(train[0]), train[1], "o", color=ORANGE, ms=4, label="training samples")
    ax.set(xlabel="x", ylabel="f(x)")
    plain_axes(ax)
    ax.legend(fontsize=8, frameon=False, labelcolor=INK)
    return ax


def leave_one_out_curve(path: Any, ax: Axes | None = None) -> Axes:
    """Draw the leave-one-out and generalized cross-validation errors of a `RidgePath` against alpha."""
    ax = new_axes(6.4, 3.4)[0] if ax is None else ax
    order = np.argsort(path.alphas)
    for name, values, color in (("leave-one-out", path.loo, BLUE), ("generalized", path.gcv, ORANGE)):
        ax.plot(path.alphas[order], values[order], color=color, lw=1.8, label=name)
        best = int(np.argmin(values))
        ax.plot(path.alphas[best], values[best], "o", color=color, ms=5)
    ax.set(xscale="log", yscale="log", xlabel="alpha", ylabel="mean squared error")
    ax.set_title("cross-validation in closed form")
    plain_axes(ax)
    ax.legend(fontsize=8, frameon=False, labelcolor=INK)
    return ax
