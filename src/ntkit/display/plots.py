"""Plots of a training run and its kernels; each draws into ``ax`` or makes its own figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from ntkit.display.axes import BLUE, GREEN, INK, ORANGE, new_axes, plain_axes

_LINES = (BLUE, ORANGE, GREEN)


def learning_curve(curves: Iterable[Any], ax: Sequence[Axes] | None = None) -> Axes:
    """Draw curves (``name``, ``panel``, ``values`` per epoch), one panel per kind of value."""
    curves = list(curves)
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    if ax is None:
        ax = new_axes(8.4, 3.0, len(panels))
    for axis, panel in zip(ax, panels, strict=True):
        for color, marker, curve in zip(_LINES, "osD", (c for c in curves if c.panel == panel), strict=False):
            epochs = np.arange(len(curve.values))
            size = 3.5 if len(epochs) <= 40 else 0
            axis.plot(epochs, curve.values, color=color, marker=marker, ms=size, lw=1.8, label=curve.name)
        axis.set(title=panel, xlabel="epoch (0: before training)")
        if all(value > 0 for c in curves if c.panel == panel for value in c.values) and "loss" in panel:
            axis.set_yscale("log")
        plain_axes(axis)
        axis.legend(frameon=False, labelcolor=INK)
    return ax[0]


def kernel_matrix(
    matrix: np.ndarray,
    labels: Sequence[str],
    ax: Axes | None = None,
    *,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Any:
    """Draw a kernel matrix of samples ordered by label, lines between the labels; return the image."""
    if ax is None:
        (ax,) = new_axes(4.2, 4.0)
    low, high = limits or (float(matrix.min()), float(matrix.max()))
    drawn = ax.imshow(matrix, cmap="cividis", vmin=low, vmax=high, interpolation="nearest")
    groups = [(label, len(list(run))) for label, run in groupby(labels)]
    ends = np.cumsum([size for _, size in groups])
    for end in ends[:-1]:
        ax.axhline(end - 0.5, color="white", lw=0.5, alpha=0.7)
        ax.axvline(end - 0.5, color="white", lw=0.5, alpha=0.7)
    centers = ends - np.array([size for _, size in groups]) / 2 - 0.5
    names = [label for label, _ in groups]
    ax.set_xticks(centers, names)
    ax.set_yticks(centers, names)
    ax.tick_params(length=0, colors=INK)
    ax.set_title(title, color=INK, fontsize=11)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return drawn


def kernel_pair(
    before: np.ndarray,
    after: np.ndarray,
    labels: Sequence[str],
    ax: Sequence[Axes] | None = None,
    *,
    unit: str = "",
) -> Axes:
    """Draw a kernel before and after training on one color scale."""
    if ax is None:
        ax = new_axes(8.4, 4.1, 2)
    limits = (min(before.min(), after.min()), max(before.max(), after.max()))
    kernel_matrix(before, labels, ax[0], limits=limits, title="before training")
    drawn = kernel_matrix(after, labels, ax[1], limits=limits, title="after training")
    bar = ax[1].figure.colorbar(drawn, ax=list(ax), shrink=0.85, pad=0.015, aspect=28)
    bar.set_label(unit, color=INK)
    bar.ax.tick_params(colors=INK)
    bar.outline.set_visible(False)
    return ax[0]


def spectra(eigenvalues: Mapping[str, np.ndarray], ax: Axes | None = None) -> Axes:
    """Draw eigenvalues, largest first, on logarithmic axes; those that are zero or less are left out."""
    if ax is None:
        (ax,) = new_axes(8.4, 3.0)
    for color, marker, (name, values) in zip(_LINES, "osD", eigenvalues.items(), strict=False):
        values = np.sort(np.asarray(values))[::-1]
        rank = np.arange(1, len(values) + 1)[values > 0]
        ax.plot(rank, values[values > 0], color=color, marker=marker, ms=3, lw=1, label=name)
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue")
    plain_axes(ax)
    ax.legend(frameon=False, labelcolor=INK)
    return ax
