"""How the studies draw: panels of their own, each finished alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import BboxBase

from ntkit.display.axes import INK

Figures = Mapping[str, Figure]  # by their titles
_SIDES = ((1, 1), (1, -1), (-1, 1), (-1, -1), (0, 1), (0, -1))  # of a point: right, up


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


def name_points(
    drawn: Figure, ax: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float], size: float = 7
) -> None:
    """Write names beside points: those, in order, that find room within the axes and cover no other."""
    drawn.draw_without_rendering()
    inside, taken = ax.get_window_extent(), list[BboxBase]()
    for name, at in zip(names, zip(x, y, strict=True), strict=True):
        for right, up in _SIDES:
            written = ax.annotate(
                name,
                at,
                (5 * right, 5 * up),
                textcoords="offset points",
                ha={1: "left", 0: "center", -1: "right"}[right],
                va={1: "bottom", 0: "center", -1: "top"}[up],
                fontsize=size,
                color=INK,
                path_effects=[withStroke(linewidth=2, foreground="white")],
            )
            box = written.get_window_extent()
            fits = inside.x0 <= box.x0 and inside.y0 <= box.y0 and box.x1 <= inside.x1 and box.y1 <= inside.y1
            if fits and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            written.remove()


def finish(ax: Axes, *, grid: Any = "major", fontsize: float | None = None, **labels: Any) -> None:
    """Label an axis, as ``Axes.set`` does; add a faint grid, and a legend of what has a name."""
    ax.set(**labels)
    ax.grid(alpha=0.3, which=grid)
    if ax.get_legend_handles_labels()[0]:
        ax.legend(frameon=False, fontsize=fontsize)
