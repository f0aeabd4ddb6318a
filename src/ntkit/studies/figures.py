"""How the studies draw: panels of their own, each finished alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

Figures = Mapping[str, Figure]  # by their titles


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Return a figure of so many inches and its axes as ``Figure.subplots`` has them: one, or an array."""
    drawn = Figure(figsize=(width, height), layout="constrained")
    return drawn, drawn.subplots(rows, columns, **options)


def ticks(axis: Any, values: Iterable[float]) -> None:
    """Mark these values on an axis, as plain numbers; a logarithmic one marks others beside them."""
    values = [float(value) for value in values]
    axis.set_ticks(values, [f"{value:g}" for value in values])
    axis.set_minor_formatter("")


def above(drawn: Figure, ax: Axes, columns: int) -> None:
    """Put the legend of an axis above all axes of the figure, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def finish(ax: Axes, *, grid: Any = "major", fontsize: float | None = None, **labels: Any) -> None:
    """Label an axis, as ``Axes.set`` does; add a faint grid, and a legend of what has a name."""
    ax.set(**labels)
    ax.grid(alpha=0.3, which=grid)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=fontsize)
