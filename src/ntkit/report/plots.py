"""Plots of a training run and its kernels; each draws into ``ax`` or makes its own figure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, BinaryIO

import numpy as np
from matplotlib import colormaps, image
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#010203"  # text and axes; the page replaces it by its own text color
BLUE, ORANGE, GREEN = "#2a83c4", "#d9730d", "#159a78"  # told apart by all eyes, on white and on black
_LINES = (BLUE, ORANGE, GREEN)


def learning_curve(curves: Iterable[Any], ax: Sequence[Axes] | None = None) -> Axes:
    """Draw curves (``name``, ``panel``, ``values`` per epoch), one panel per kind of value."""
    curves = list(curves)
    panels = list(dict.fromkeys(curve.panel for curve in curves))
    if ax is None:
        ax = _axes(8.4, 3.0, len(panels))
    for axis, panel in zip(ax, panels, strict=True):
        for color, marker, curve in zip(_LINES, "osD", (c for c in curves if c.panel == panel), strict=False):
            epochs = np.arange(len(curve.values))
            size = 3.5 if len(epochs) <= 40 else 0
            axis.plot(epochs, curve.values, color=color, marker=marker, ms=size, lw=1.8, label=curve.name)
        axis.set(title=panel, xlabel="epoch (0: before training)")
        if all(value > 0 for c in curves if c.panel == panel for value in c.values) and "loss" in panel:
            axis.set_yscale("log")
        _plain(axis)
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
        (ax,) = _axes(4.2, 4.0)
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
        ax = _axes(8.4, 4.1, 2)
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
        (ax,) = _axes(8.4, 3.0)
    for color, marker, (name, values) in zip(_LINES, "osD", eigenvalues.items(), strict=False):
        values = np.sort(np.asarray(values))[::-1]
        rank = np.arange(1, len(values) + 1)[values > 0]
        ax.plot(rank, values[values > 0], color=color, marker=marker, ms=3, lw=1, label=name)
    ax.set(xscale="log", yscale="log", xlabel="rank", ylabel="eigenvalue")
    _plain(ax)
    ax.legend(frameon=False, labelcolor=INK)
    return ax


def contributions(
    account: Any, query: int, ax: Axes | None = None, *, output: int | None = None, count: int = 20
) -> Axes:
    """Draw the training samples that contributed most to one output of a query, largest in size first."""
    if ax is None:
        (ax,) = _axes(5.0, 0.24 * count + 0.9)
    top = account.top(query, count, output)
    values = np.array([value for _, value in top])
    ax.barh(np.arange(len(top)), values, color=[BLUE if v > 0 else ORANGE for v in values], height=0.75)
    ax.set_yticks(np.arange(len(top)), [f"sample {index}" for index, _ in top])
    ax.invert_yaxis()
    ax.axvline(0, color=INK, lw=0.8)
    ax.set(xlabel="contribution (unit of the output)")
    _plain(ax)
    return ax


def over_time(account: Any, query: int, ax: Axes | None = None, *, output: int | None = None) -> Axes:
    """Draw the way of a prediction through training: the running sum of what each step's batch moved."""
    if ax is None:
        (ax,) = _axes(6.0, 3.2)
    output = int(account.prediction[query].argmax()) if output is None else output
    moved = np.concatenate([[0.0], np.cumsum(np.asarray(account.over_time(query, output)))])
    ax.plot(float(account.initial[query, output]) + moved, color=BLUE, lw=1.6)
    ax.axhline(float(account.prediction[query, output]), color=INK, ls=":", lw=1)
    ax.set(
        xlabel="step", ylabel="initial + contributions until then", title=f"query {query}, output {output}"
    )
    _plain(ax)
    return ax


def by_class(
    account: Any,
    query: int,
    labels: Any,
    ax: Axes | None = None,
    *,
    output: int | None = None,
    classes: Sequence[str] | None = None,
) -> Axes:
    """Draw the contributions of the training samples of each class to one output of a query."""
    if ax is None:
        (ax,) = _axes(6.0, 3.2)
    output = int(account.prediction[query].argmax()) if output is None else output
    values = np.asarray(account.by_class(labels)[query, output])
    ax.bar(np.arange(len(values)), values, color=[BLUE if v > 0 else ORANGE for v in values])
    ax.set_xticks(np.arange(len(values)), classes or [str(i) for i in range(len(values))])
    ax.axhline(0, color=INK, lw=0.8)
    ax.set(xlabel="class of the training samples", ylabel="contribution (unit of the output)")
    _plain(ax)
    return ax


def picture(values: np.ndarray, ax: Axes, *, title: str = "", color: str = INK) -> None:
    """Draw one picture, grey ``[h, w]`` (1 is ink) or ``[h, w, 3]``."""
    ax.imshow(values, cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_title(title, color=color, fontsize=8.5, pad=3)
    for spine in ax.spines.values():
        spine.set(color=color, lw=1.2)


def save_picture(values: np.ndarray, stream: BinaryIO) -> None:
    """Write a picture as PNG, one pixel each: grey ``[h, w]`` (1 is ink) or ``[h, w, 3]``, in [0, 1]."""
    values = np.clip(np.asarray(values, dtype=float), 0, 1)
    pixels = colormaps["gray_r"](values) if values.ndim == 2 else values
    image.imsave(stream, pixels, format="png")


def _axes(width: float, height: float, count: int = 1) -> list[Axes]:
    """Return a row of axes in a figure of their own, which no window or global state knows."""
    return list(np.atleast_1d(Figure(figsize=(width, height), layout="constrained").subplots(1, count)))


def _plain(ax: Axes) -> None:
    """Leave only the axes that are read, in the color of the text."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(which="both", colors=INK)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.title.set_color(INK)
    ax.title.set_fontsize(11)
    ax.grid(alpha=0.25, lw=0.6)
