"""Plots of what was diagnosed; each draws into ``ax`` or makes its own figure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from ntkit.display.axes import BLUE, GREEN, INK, ORANGE, new_axes, plain_axes

if TYPE_CHECKING:
    from ntkit.diagnose.alignments import Alignment
    from ntkit.diagnose.audit import LabelAudit
    from ntkit.diagnose.comparison import Comparison
    from ntkit.diagnose.extrapolation import Novelty
    from ntkit.diagnose.lazy_training import Drift
    from ntkit.diagnose.out_of_domain import OodReport, ShiftReport
    from ntkit.diagnose.spectra import KernelSpectrum

_SIZE = 5.0, 3.2  # inches: to be read on a telephone, too


def drift_over_time(
    drift: Drift, ax: Axes | None = None, *, thresholds: tuple[float, float] | None = None
) -> Axes:
    """Draw the change of kernel, predictions and layers' weights over the steps."""
    if ax is None:
        (ax,) = new_axes(*_SIZE)
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
        ax.annotate(text, (drift.steps[-1], value), fontsize=7, va="bottom", ha="right", color=INK)
    ax.set(xlabel="step", ylabel="relative change", title="Distance from the start of training")
    ax.set_yscale("symlog", linthresh=0.1)
    ax.set_ylim(0, 2 * max(1.0, float(np.nanmax(drift.kernel_high)), float(drift.weights.max())))
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    return ax


def alignments(found: Alignment, ax: Axes | None = None) -> Axes:
    """Draw alignments with their intervals, a group for each class, and a mark where chance is."""
    if ax is None:
        (ax,) = new_axes(*_SIZE)
    at, several = np.arange(len(found.names)), len(found.when) > 1
    for i, (name, color) in enumerate(zip(found.when, (ORANGE, BLUE) if several else (BLUE,), strict=True)):
        place, values = at + (0.4 * i - 0.2 if several else 0), found.values[i]
        sizes = np.abs(np.stack([values - found.low[i], found.high[i] - values]))
        ax.bar(place, values, 0.38 if several else 0.7, color=color, label=name or None)
        ax.errorbar(place, values, sizes, fmt="none", ecolor=INK, lw=0.9, capsize=2)
        ax.plot(place, found.chance[i], "_", color=INK, ms=9, label="chance" if i == 0 else None)
    ax.set_xticks(at, found.names)
    ax.set(ylabel="centered alignment", title="Kernel and targets", xlabel="target")
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    return ax


def eigenvalues(found: KernelSpectrum, ax: Axes | None = None) -> Axes:
    """Draw eigenvalues against rank with the power law that was fitted, and the share of the targets."""
    if ax is None:
        (ax,) = new_axes(*_SIZE)
    rank = np.arange(1, len(found.eigenvalues) + 1)
    there = found.eigenvalues > found.floor
    ax.loglog(rank[there], found.eigenvalues[there], ".", ms=3, color=BLUE, label="eigenvalue")
    first, last = found.ranks
    if np.isfinite(found.decay.value):
        i = np.arange(first, last + 1)
        middle = np.exp(
            np.log(found.eigenvalues[first - 1 : last]).mean() + found.decay.value * np.log(i).mean()
        )
        ax.loglog(i, middle * i**-found.decay.value, color=ORANGE, label=f"rank^-{found.decay.value:.2f}")
    ax.set(xlabel="rank", ylabel="eigenvalue", title="Spectrum of the kernel")
    plain_axes(ax)
    lines = ax.get_legend_handles_labels()
    if found.target is not None:
        right = ax.twinx()
        right.plot(rank, found.target.cumsum(), color=GREEN, lw=1.4, label="targets, summed")
        right.set_ylim(0, 1.05)
        right.set_ylabel("share of the targets", color=INK)
        right.tick_params(colors=INK)
        right.spines[["top", "left"]].set_visible(False)
        lines = tuple(a + b for a, b in zip(lines, right.get_legend_handles_labels(), strict=True))
    ax.legend(*lines, frameon=False, labelcolor=INK, fontsize=8, loc="center left")
    return ax


def p_values(found: Novelty, ax: Axes | None = None) -> Axes:
    """Draw how many queries have a p-value up to each level, and what queries like the data have."""
    if ax is None:
        (ax,) = new_axes(*_SIZE)
    ax.plot([0, 1], [0, 1], ":", color=INK, lw=1, label="queries like the data")
    for (name, p), color in zip(found.p_values.items(), (BLUE, ORANGE, GREEN), strict=True):
        ax.step(np.sort(p), np.arange(1, len(p) + 1) / len(p), where="post", color=color, label=name)
    ax.set(xlabel="p-value", ylabel="share of the queries up to it", title="How new the queries are")
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    return ax


def precision_at_the_top(found: LabelAudit, ax: Axes | None = None) -> Axes:
    """Draw the expected share of wrong labels among the k most suspect, and at some k its interval."""
    if ax is None:
        (ax,) = new_axes(*_SIZE)
    p = found.model.wrong[found.order]
    k = np.arange(1, len(p) + 1)
    ax.plot(k, p.cumsum() / k, color=BLUE, label="expected share of wrong labels")
    expected = max(1, min(len(p), round(float(p.sum()))))
    marks = sorted({max(1, expected // 2), expected, min(len(p), 2 * expected)})
    rows = [found.precision(m) for m in marks]
    sizes = np.array([[r.value - r.low for r in rows], [r.high - r.value for r in rows]])
    sizes = np.nan_to_num(sizes)
    ax.errorbar(marks, [r.value for r in rows], sizes, fmt="o", ms=4, color=ORANGE, capsize=3, label="95 %")
    ax.axvline(expected, color=INK, ls=":", lw=0.9)
    ax.set(xlabel="most suspect labels looked at", ylabel="share that is wrong", ylim=(0, 1.03))
    ax.set(title="Wrong labels among the suspects", xlim=(0, min(len(p), 4 * expected + 10)))
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    return ax


def detection(found: OodReport, ax: Axes | None = None) -> Axes:
    """Draw the AUROC of each score with its interval, a mark for each set from elsewhere."""
    order = np.argsort(found.auroc.mean(1))
    if ax is None:
        (ax,) = new_axes(6.4, 0.26 * len(order) + 1.1)
    for i, (name, mark) in enumerate(zip(found.outside, "osD^vP*X" * len(found.outside), strict=False)):
        for at, m in enumerate(order.tolist()):
            color = BLUE if found.of_kernels[m] else ORANGE
            ends = [found.low[m, i], found.high[m, i]]
            ax.plot(ends, [at, at], color=color, lw=1.2, alpha=0.6)
            ax.plot(found.auroc[m, i], at, mark, color=color, ms=4, label=None if at else name)
    ax.set_yticks(np.arange(len(order)), [found.methods[m] for m in order])
    ax.set(xlabel="AUROC (blue: kernels, orange: the usual scores)", title="Telling queries from elsewhere")
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    return ax


def shifted(found: ShiftReport, ax: Axes | None = None) -> Axes:
    """Draw the error and the best scores' mean ranks over the degrees of the first shift."""
    if ax is None:
        (ax,) = new_axes(*_SIZE)
    degrees = np.arange(len(found.error[0]))
    ax.plot(degrees, found.error[0], "o-", color=INK, label="error")
    for kernels, color in ((True, BLUE), (False, ORANGE)):
        rows = np.flatnonzero(found.of_kernels == kernels)
        if len(rows):
            top = rows[np.nanargmax(found.correlation[rows, 0])]
            ax.plot(degrees, found.mean[0][top], "o-", color=color, label=f"{found.methods[top]}, mean rank")
    ax.set(xlabel="degree of the shift", title=f"Error and scores: {found.shifts[0]}")
    ax.set_xticks(degrees)
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK, fontsize=8)
    return ax


def compared(found: Comparison, ax: Axes | None = None) -> Axes:
    """Draw the alignment of what the layers of two networks see, with the numbers where there is room."""
    values = found.input_layers
    if ax is None:
        (ax,) = new_axes(1.6 + 0.62 * max(3, values.shape[1]), 1.2 + 0.5 * max(3, values.shape[0]))
    drawn = ax.imshow(values, cmap="cividis", vmin=0, vmax=1)
    if values.size <= 64:
        for (i, j), value in np.ndenumerate(values):
            ax.text(
                j, i, f"{value:.2f}", ha="center", va="center", fontsize=8, color="w" if value < 0.6 else "k"
            )
    ax.set_xticks(np.arange(values.shape[1]), [name or "whole" for name in found.layers_b], rotation=90)
    ax.set_yticks(np.arange(values.shape[0]), [name or "whole" for name in found.layers_a])
    ax.tick_params(colors=INK)
    ax.set_xlabel("layer of b", color=INK)
    ax.set_ylabel("layer of a", color=INK)
    ax.set_title("What the layers see: alignment", color=INK, fontsize=11)
    bar = ax.get_figure(root=True).colorbar(drawn, ax=ax)  # pyright: ignore[reportOptionalMemberAccess]
    bar.ax.tick_params(colors=INK)
    return ax
