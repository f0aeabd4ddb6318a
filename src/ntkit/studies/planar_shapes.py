"""Shapes beside those of `ntkit.data.shapes`: of a given complexity, of a given stroke; and rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from scipy import ndimage

from ntkit.data.shapes import FINE, boundary, halved

Pair = tuple[np.ndarray, np.ndarray]
STROKE = (
    0.11  # that `branched` shapes are drawn with, in sides of the picture; they overlap and are wider there
)


def trees(n: int, size: int, seed: int, branches: int) -> Pair:
    """Draw shapes as `branched` does, with so many branches; they may have holes where branches meet."""
    return _many(lambda draw, fine: _tree(draw, fine, branches), n, size, seed)


def wide_spirals(n: int, size: int, seed: int) -> Pair:
    """Draw spirals whose arms are as wide as the strokes that `branched` shapes are drawn with."""
    return _many(_spiral, n, size, seed)


def wide_combs(n: int, size: int, seed: int) -> Pair:
    """Draw combs whose teeth are as wide as the strokes that `branched` shapes are drawn with."""
    return _many(_comb, n, size, seed)


def crossings_per_row(shapes: np.ndarray) -> np.ndarray:
    """Return, for each shape, how often a row that meets it changes, on average."""
    changes = np.abs(np.diff(np.pad(shapes > 0.5, ((0, 0), (0, 0), (1, 1))).astype(int), axis=-1)).sum(-1)
    return changes.sum(1) / np.maximum((changes > 0).sum(1), 1)


def by_rows(edges: np.ndarray, cut: float = 0.5) -> np.ndarray:
    """Return Eq. 10 of the paper on boundaries as they are seen: the parity along each row."""
    return np.cumsum(edges > cut, axis=-1) % 2


def by_depth(edges: np.ndarray, cut: float = 0.35) -> np.ndarray:
    """Return what boundaries ``[n, size, size]`` enclose: regions an odd number of lines deep, and the lines.

    Lines are the pixels above ``cut``, connected to all eight neighbors; regions to four.
    """
    return np.stack([_depth(picture > cut) for picture in edges])


def _depth(lines: np.ndarray) -> np.ndarray:
    walls = np.pad(lines, 1)
    regions, count = cast(tuple[np.ndarray, int], ndimage.label(~walls))
    joined, _ = cast(tuple[np.ndarray, int], ndimage.label(walls, np.ones((3, 3))))
    depth = np.full(count + 1, -1)
    reached, level = {int(regions[0, 0])}, 0
    while reached:
        depth[list(reached)] = level
        touched = ndimage.binary_dilation(np.isin(regions, list(reached)), np.ones((3, 3))) & walls
        wall = np.isin(joined, np.unique(joined[touched]))
        beyond = ndimage.binary_dilation(wall, np.ones((3, 3))) & ~walls
        reached = {int(r) for r in np.unique(regions[beyond]) if depth[r] < 0}
        level += 1
    inside = (depth[regions] % 2 == 1) & ~walls
    return (inside | walls)[1:-1, 1:-1]


def _many(make: Callable[[np.random.Generator, int], np.ndarray], n: int, size: int, seed: int) -> Pair:
    draw = np.random.default_rng(seed)
    shapes = [make(draw, FINE * size) for _ in range(n)]
    edges = np.stack([halved(boundary(shape)) for shape in shapes])
    return edges.astype(np.float32), np.stack([halved(shape) for shape in shapes]).astype(np.float32)


def _tree(draw: np.random.Generator, size: int, branches: int) -> np.ndarray:
    width = size * STROKE / 2
    points = [(size / 2, size / 2, width)]
    rows, columns = np.mgrid[:size, :size]
    drawn = np.zeros((size, size), bool)
    for _ in range(branches):
        y, x, radius = points[draw.integers(len(points))]
        angle, turn = draw.uniform(0, 2 * np.pi), draw.normal(0, 0.25)
        for _ in range(int(draw.integers(8, 20))):
            angle += turn + draw.normal(0, 0.25)
            y, x = y + 0.6 * width * np.sin(angle), x + 0.6 * width * np.cos(angle)
            radius = float(np.clip(radius * draw.uniform(0.88, 1.12), 0.45 * width, 1.5 * width))
            if min(y, x, size - 1 - y, size - 1 - x) - radius < 3:
                break
            points.append((y, x, radius))
            drawn |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    drawn |= (rows - size / 2) ** 2 + (columns - size / 2) ** 2 <= width**2
    return ndimage.gaussian_filter(drawn.astype(float), size / 100) > 0.5


def _spiral(draw: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2
    outer = 0.46 * size
    turns = outer / (2 * STROKE * size)  # an arm and the gap beside it are one turn
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns) + draw.uniform(0, 2 * np.pi)
    arm = (radius / outer * turns - draw.choice([-1, 1]) * angle / (2 * np.pi)) % 1
    return (arm < 0.5) & (radius < outer)


def _comb(draw: np.random.Generator, size: int) -> np.ndarray:
    drawn = np.zeros((size, size), bool)
    edge, tooth = size // 12, round(STROKE * size)
    drawn[edge : edge + tooth, edge:-edge] = True
    for left in range(edge, size - edge - tooth, 2 * tooth):
        drawn[edge : size - edge - int(draw.integers(0, size // 4)), left : left + tooth] = True
    return np.rot90(drawn, int(draw.integers(4))).copy()
