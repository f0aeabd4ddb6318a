"""The figures of the study of planar topology."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.studies.figures import Figures, panels
from ntkit.studies.study import Result

SHOWN = ("in domain", "30 branches", "wide spirals", "nested", "combs")


def figure(result: Result) -> Figures:
    """Draw boundaries, answers and shapes; scores against complexity, by set, by architecture and data."""
    return {
        "In the domain, and where it fails": _pictures(result),
        "Harder shapes": _complexity(result),
        "Sets of shapes, and rules": _sets(result),
        "Networks trained alike": _compared(result),
    }


def _pictures(result: Result) -> Figure:
    """Draw one shape of each set, the worst outside of the domain: boundary, network, shape."""
    drawn, axes = panels(1.35 * len(SHOWN), 4.6, 3, len(SHOWN))
    for column, where in enumerate(SHOWN):
        each, triple = result.arrays[f"{where}: each"][0], result.arrays[where]
        score = each[0] if where == "in domain" else each.min()
        for ax, picture in zip(axes[:, column], triple[:, 0], strict=True):
            ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        axes[0, column].set_title(where, fontsize=9)
        axes[2, column].set_xlabel(f"IoU {score:.2f}", fontsize=9)
    for row, kind in enumerate(("boundary", "network", "shape")):
        axes[row, 0].set_ylabel(kind)
    return drawn


def _names(result: Result) -> tuple[list[str], list[str]]:
    """Return the sets with a number of branches, and those outside of the domain."""
    sets = [name for name in result.numbers["crossings"] if name != "in domain"]
    trees = [name for name in sets if name.endswith("branches")]
    return trees, [name for name in sets if name not in trees]


def _complexity(result: Result) -> Figure:
    """Draw the score of each shape against the crossings of its rows."""
    drawn, ax = panels(5.5, 4.2)
    trees, outside = _names(result)
    for names, color, text in (
        (outside, ORANGE, "other shapes"),
        (trees, GREEN, "2 to 30 branches"),
        (["in domain"], BLUE, "in domain"),
    ):
        scores, crossings = np.concatenate([result.arrays[f"{name}: each"] for name in names], axis=1)
        ax.plot(crossings, scores, ".", color=color, ms=4, alpha=0.6, label=text)
    ax.set(xlabel="crossings of a row, mean of a shape", ylabel="intersection over union", ylim=(0, 1.02))
    ax.grid(alpha=0.3)
    drawn.legend(loc="outside upper center", ncols=3, frameon=False, markerscale=3)
    return drawn


def _sets(result: Result) -> Figure:
    """Draw the means by set: the network's, and those of two rules on the boundary as it is seen."""
    drawn, ax = panels(5.5, 4.8)
    trees, outside = _names(result)
    scores, sets = result.numbers["scores"], ["in domain", *trees, *outside]
    places = np.arange(len(sets))
    for name, text, marker, color in (
        ("shown", "U-Net", "o", BLUE),
        ("depth", "depth of regions", "s", GREEN),
        ("rows", "parity of rows", "^", ORANGE),
    ):
        ax.plot([scores[name][w] for w in sets], places, marker, color=color, label=text)
    ax.set_yticks(places, sets)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1.02), xlabel="intersection over union, mean")
    ax.grid(alpha=0.3)
    drawn.legend(loc="outside upper center", ncols=3, frameon=False)
    return drawn


def _compared(result: Result) -> Figure:
    """Draw what the networks score in the domain, and the U-Net with fewer and more shapes."""
    scores, config = result.numbers["scores"], result.config
    _, outside = _names(result)
    names = [name for name in scores if name not in ("shown", "rows", "depth")]
    texts = {"affine": f"unet, {config.compared_shapes:,} shapes\nand affine maps"}
    drawn, ax = panels(6, 0.4 * len(names) + 1.4)
    places = np.arange(len(names))
    for key, text, marker, color in (
        ("in", "in domain", "o", BLUE),
        ("out", "out of domain, mean", "s", ORANGE),
    ):
        values = [
            scores[n]["in domain"] if key == "in" else np.mean([scores[n][w] for w in outside]) for n in names
        ]
        ax.plot(values, places, marker, color=color, label=text)
        for place, value in zip(places, values, strict=True):
            ax.text(value, place - 0.18, f"{value:.2f}", ha="center", va="bottom", fontsize=7, color=color)
    labels = [texts.get(n, f"unet, {n}" if n.endswith("shapes") else n) for n in names]
    ax.set_yticks(places, labels)
    ax.set(ylim=(len(names) - 0.5, -0.7), xlim=(0, 1.02), xlabel="intersection over union, mean")
    ax.grid(alpha=0.3)
    drawn.legend(loc="outside upper center", ncols=2, frameon=False)
    return drawn
