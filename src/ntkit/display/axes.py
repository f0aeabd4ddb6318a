"""Axes and colors of all figures."""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

INK = "#010203"  # text and axes; the page replaces it by its own text color


BLUE, ORANGE, GREEN = "#2a83c4", "#d9730d", "#159a78"  # told apart by all eyes, on white and on black


def draw_picture(values: np.ndarray, ax: Axes, *, title: str = "", color: str = INK) -> None:
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
    pixels = np.round(255 * (1 - values if values.ndim == 2 else values)).astype(np.uint8)
    Image.fromarray(pixels).save(stream, format="png", optimize=True)


def new_axes(width: float, height: float, count: int = 1) -> list[Axes]:
    """Return a row of axes in a figure of their own, which no window or global state knows."""
    return list(np.atleast_1d(Figure(figsize=(width, height), layout="constrained").subplots(1, count)))


def plain_axes(ax: Axes) -> None:
    """Leave only the axes that are read, in the color of the text."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(INK)
    ax.tick_params(which="both", colors=INK)
    ax.xaxis.label.set_color(INK)
    ax.yaxis.label.set_color(INK)
    ax.title.set_color(INK)
    ax.title.set_fontsize(11)
    ax.grid(alpha=0.25, lw=0.6)
