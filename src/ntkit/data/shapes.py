"""Planar shapes and their boundaries: branched ones to learn from, and harder ones outside of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import numpy as np
from scipy import ndimage

from ntkit.errors import BadValueError

FINE = 2  # pixels of the drawing for a pixel of the picture, along each side


def branched(n: int, size: int, seed: int, fill: float = 0.18) -> tuple[np.ndarray, np.ndarray]:
    """Draw connected, branched shapes that do not meet the border of the picture, and their boundaries.

    Each is a random tree of curved strokes of changing width, drawn at twice the resolution, without holes;
    the boundary is made of the shape's pixels with one of eight neighbors outside. Both are brought to
    ``size`` by a Lanczos filter (Courtois, Morel, Arias, "Can neural networks extrapolate?", Section 6.2.1:
    256 to 128).

    Parameters
    ----------
    n
        Number of shapes.
    size
        Pixels along each side.
    seed
        The same seed gives the same shapes.
    fill
        About the part of the picture that a shape fills on average.

    Returns
    -------
    boundary, shape
        Both float32 ``[n, size, size]``, in [0, 1] up to the filter's ringing.

    Examples
    --------
    >>> boundary, shape = branched(2, 32, seed=0)
    >>> boundary.shape, bool((shape.mean((1, 2)) > 0.05).all())
    ((2, 32, 32), True)
    """
    if n < 1 or size < 16:
        raise BadValueError(f"branched draws at least one shape of at least 16 pixels, not {n} of {size}.")
    draw = np.random.default_rng(seed)
    return _pairs([_branched(draw, FINE * size, fill) for _ in range(n)])


def spirals(n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw spirals: connected, with a boundary much longer than that of `branched` shapes."""
    return _many(_spiral, n, size, seed)


def nested(n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw shapes within holes of shapes: rings around rings around a disk."""
    return _many(_nested, n, size, seed)


def several(n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw several branched shapes, apart from each other."""
    return _many(_several, n, size, seed)


def combs(n: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw combs with many thin teeth: the longest boundaries."""
    return _many(_comb, n, size, seed)


OUTSIDE: dict[str, Callable[[int, int, int], tuple[np.ndarray, np.ndarray]]] = {
    "spirals": spirals,
    "nested": nested,
    "several shapes": several,
    "combs": combs,
}


def boundary(shape: np.ndarray) -> np.ndarray:
    """Return the pixels of a binary shape that have one of their eight neighbors outside of it."""
    return shape & ~ndimage.binary_erosion(shape, np.ones((3, 3)))


def parity(crossings: np.ndarray) -> np.ndarray:
    """Return the shape whose left and right edges these are: two lines that solve the task.

    A pixel is inside when the number of crossings on the half-line to its left is odd (Eq. 10 of the paper
    for each row); ``crossings`` are the pixels where a row of the shape changes.

    Examples
    --------
    >>> parity(np.array([[0, 1, 0, 0, 1, 0]])).tolist()
    [[0, 1, 1, 1, 0, 0]]
    """
    return np.cumsum(crossings, axis=-1) % 2


def crossings(shape: np.ndarray) -> np.ndarray:
    """Return where the rows of binary shapes change, ``[..., size, size]``."""
    return np.abs(np.diff(shape.astype(int), axis=-1, prepend=0))


def halved(picture: np.ndarray) -> np.ndarray:
    """Return a picture at half the resolution, by a separable Lanczos filter with three lobes."""
    x = (np.arange(12) - 5.5) / 2
    taps = np.sinc(x) * np.sinc(x / 3)
    taps /= taps.sum()
    for axis in (0, 1):
        # the filter sits between two pixels: correlate with an even number of taps, then take every other
        picture = ndimage.correlate1d(picture.astype(np.float32), taps, axis=axis, mode="constant", origin=-1)
        picture = picture[::2] if axis == 0 else picture[:, ::2]
    return picture


def _pairs(shapes: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    edges = np.stack([halved(boundary(shape)) for shape in shapes])
    return edges.astype(np.float32), np.stack([halved(shape) for shape in shapes]).astype(np.float32)


def _many(
    make: Callable[[np.random.Generator, int], np.ndarray], n: int, size: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return _pairs([make(draw, FINE * size) for _ in range(n)])


def _branched(draw: np.random.Generator, size: int, fill: float) -> np.ndarray:
    """Draw one branched shape: disks along random walks that start on each other, then smoothed."""
    while True:
        width = size * 0.055 * np.sqrt(fill / 0.18) * draw.uniform(0.8, 1.25)
        branches = int(draw.integers(4, 9))
        points: list[tuple[float, float, float]] = []
        for branch in range(branches):
            start = (size / 2, size / 2, width) if branch == 0 else points[draw.integers(len(points))]
            y, x, radius = start
            angle, turn = draw.uniform(0, 2 * np.pi), draw.normal(0, 0.25)
            for _ in range(int(draw.integers(8, 20))):
                angle += turn + draw.normal(0, 0.25)
                y, x = y + 0.6 * width * np.sin(angle), x + 0.6 * width * np.cos(angle)
                radius = np.clip(radius * draw.uniform(0.88, 1.12), 0.45 * width, 1.5 * width)
                room = min(y, x, size - 1 - y, size - 1 - x) - radius - 3
                if room < 0:
                    break
                points.append((y, x, float(radius)))
        if not points:
            continue
        rows, columns = np.mgrid[:size, :size]
        drawn = np.zeros((size, size), bool)
        for y, x, radius in points:
            drawn |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
        drawn = ndimage.gaussian_filter(drawn.astype(float), size / 100) > 0.5
        drawn = np.asarray(ndimage.binary_fill_holes(drawn))
        parts, count = cast(tuple[np.ndarray, int], ndimage.label(drawn))
        touching = drawn[[0, -1]].any() or drawn[:, [0, -1]].any()
        if count == 1 and not touching and 0.35 * fill < drawn.mean() < 2.2 * fill:
            return parts > 0


def _spiral(draw: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2
    turns = draw.uniform(2.0, 3.5)
    radius, angle = np.hypot(rows, columns), np.arctan2(rows, columns) + draw.uniform(0, 2 * np.pi)
    outer = 0.46 * size
    arm = (radius / outer * turns - angle / (2 * np.pi)) % 1
    return (arm < draw.uniform(0.4, 0.6)) & (radius < outer)


def _nested(draw: np.random.Generator, size: int) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size] - size / 2
    stretch = draw.uniform(0.75, 1.3)
    radius = np.hypot(rows * stretch**0.5, columns / stretch**0.5)
    wave = 1 + 0.08 * np.cos(draw.integers(2, 6) * np.arctan2(rows, columns) + draw.uniform(0, 6))
    level = radius * wave / (0.4 * size)
    rings = int(draw.integers(2, 4))
    return (level < 1) & ((level * (2 * rings - 1)).astype(int) % 2 == 0)


def _several(draw: np.random.Generator, size: int) -> np.ndarray:
    half = size // 2
    drawn = np.zeros((size, size), bool)
    for row in (0, 1):
        for column in (0, 1):
            quarter = np.s_[row * half : (row + 1) * half, column * half : (column + 1) * half]
            drawn[quarter] = _branched(draw, half, 0.2)
    return drawn


def _comb(draw: np.random.Generator, size: int) -> np.ndarray:
    drawn = np.zeros((size, size), bool)
    edge, tooth = size // 12, int(draw.integers(max(4, size // 26), max(5, size // 18)))
    drawn[edge : 2 * edge, edge:-edge] = True
    for left in range(edge, size - edge - tooth, 2 * tooth):
        drawn[edge : size - edge - int(draw.integers(0, size // 4)), left : left + tooth] = True
    return np.rot90(drawn, int(draw.integers(4))).copy()
