"""Plots of what was diagnosed; each draws into ``ax`` or makes its own figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from matplotlib.axes import Axes

from ntkit.display.axes import BLUE, GREEN, INK, ORANGE, new_axes, plain_axes

if TYPE_CHECKING:
    from ntkit.diagnose.lazy_training import Drift


def drift_over_time(
    drift: Drift, ax: Axes | None = None, *, thresholds: tuple[float, float] | None = None
) -> Axes:
    """Draw the change of kernel, predictions and layers' weights over the steps."""
    if ax is None:
        (ax,) = new_axes(6.4, 3.4)
    for name, text, color in (
        ("kernel", "kernel", BLUE),
        ("linear", "missed by the linearization", ORANGE),
    ):
        ax.plot(drift.steps, getattr(drift, name), "o-", ms=3.5, color=color, label=text)
        low, high = (getattr(drift, f"{name}_{end}") for end in ("low", "high"))
        ax.fill_between(drift.steps, low, high, color=color, alpha=0.18, lw=0)
    for i, track in enumerate(drift.weights.T):
        ax.plot(drift.steps, track, color=GREEN, lw=0.9, alpha=0.8, label=None if i else "weights, per layer")
    for value, text in zip(thresholds or (), ("lazy below", "rich above"), strict=False):
        ax.axhline(value, color=INK, ls=":", lw=0.9)
        ax.annotate(text, (drift.steps[0], value), fontsize=8, va="bottom", color=INK)
    ax.set(xlabel="step", ylabel="relative change", title="Distance from the start of training")
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    return ax
