"""How columns and rows are scaled before a kernel sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.special import ndtri

from ntkit.errors import one_of
from ntkit.network import Floats

Scale: TypeAlias = Literal["auto", "standardize", "unit", "rank"] | None
SCALES = ("auto", "standardize", "unit", "rank", None)
AUTO = ("standardize", "unit", "rank")  # what "auto" compares
KNOTS, FARTHEST = 512, 3.0  # of a column's ranks, and the largest normal score


@dataclass(frozen=True, eq=False)
class Scaling:
    """A scaling of samples ``[n, d]``: ``"standardize"``, ``"unit"``, ``"rank"`` or none.

        standardize    (x_i - mean_i) / std_i, zero for a column that is constant in training
        unit           sqrt(d) x / |x|, zero for a sample that is zero
        rank           the normal score of x_i among the training samples, then standardized

    All give numbers of a mean square of about one. One-hot columns are only centered: a rare category says
    no more than a frequent one.

    >>> import numpy as np
    >>> x = np.array([[1.0, 5.0], [3.0, 5.0]])
    >>> Scaling.of("standardize", x)(x)
    array([[-1.,  0.],
           [ 1.,  0.]])
    >>> np.linalg.norm(Scaling.of("unit", x)(x), axis=1).round(3)
    array([1.414, 1.414])
    """

    name: str | None
    mean: Floats | None = None
    factor: Floats | None = None
    ranks: tuple[tuple[Floats, Floats], ...] | None = None

    @classmethod
    def of(
        cls,
        name: str | None,
        x: np.ndarray,
        weights: np.ndarray | None = None,
        binary: np.ndarray | None = None,
    ) -> Scaling:
        """Return a scaling by its name, with what it takes from training samples.

        ``weights`` ``[n]``: of the samples. ``binary`` ``[d]``: which columns are one-hot.
        """
        if one_of("scale", name, SCALES) not in ("standardize", "rank"):
            return cls(name)
        counted = x if weights is None else x[weights > 0]
        own = None if weights is None else weights[weights > 0]
        if name == "rank":
            flags = np.zeros(x.shape[1], dtype=bool) if binary is None else binary
            ranks = tuple(_ranks(column, flag) for column, flag in zip(counted.T, flags, strict=True))
            after = cls.of("standardize", _ranked(counted, ranks), own, binary)
            return cls(name, after.mean, after.factor, ranks)
        size = np.abs(counted).max(0)
        size = np.where(size > 0, size, 1.0)  # squares of large numbers overflow
        mean = np.average(counted / size, axis=0, weights=own)
        std = np.sqrt(np.average((counted / size - mean) ** 2, axis=0, weights=own))
        constant = std <= 1e-12  # of the largest entry: rounding of the mean
        factor = np.where(constant, 0.0, 1 / (np.where(constant, 1.0, std) * size))
        return cls(name, mean * size, factor if binary is None else np.where(binary, 1.0, factor))

    def __call__(self, x: np.ndarray) -> Floats:
        """Return samples scaled."""
        if self.name in ("standardize", "rank"):
            assert self.mean is not None and self.factor is not None
            x = x if self.ranks is None else _ranked(x, self.ranks)
            return (x - self.mean) * self.factor
        if self.name == "unit":
            size = np.abs(x).max(1, keepdims=True, initial=0)
            x = x / np.where(size > 0, size, 1.0)
            norms = np.linalg.norm(x, axis=1, keepdims=True)
            return x / np.where(norms > 0, norms, 1.0) * x.shape[1] ** 0.5
        return x

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scaling) or self.name != other.name:
            return False
        mine, theirs = self._numbers(), other._numbers()
        return len(mine) == len(theirs) and all(map(np.array_equal, mine, theirs))

    def _numbers(self) -> list[Floats]:
        parts = [self.mean, self.factor, *(side for pair in self.ranks or () for side in pair)]
        return [part for part in parts if part is not None]

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __str__(self) -> str:
        told = {"standardize": "columns standardized", "unit": "rows of equal norm", "rank": "columns ranked"}
        return told.get(str(self.name), "inputs as given")


def _ranks(column: np.ndarray, binary: bool) -> tuple[Floats, Floats]:
    """Return values of a column, rising, and their normal scores; of a one-hot column itself."""
    if binary:
        return np.array([0.0, 1.0]), np.array([0.0, 1.0])
    values, counts = np.unique(column, return_counts=True)
    share = (np.cumsum(counts) - counts / 2) / len(column)
    scores = ndtri(share).clip(-FARTHEST, FARTHEST)
    kept = np.unique(np.linspace(0, len(values) - 1, KNOTS).round().astype(int))
    return values[kept], scores[kept]


def _ranked(x: np.ndarray, ranks: tuple[tuple[Floats, Floats], ...]) -> Floats:
    """Return samples by ranks, between two values in proportion, beyond the outermost as these."""
    columns = [np.interp(x[:, i], *pair) for i, pair in enumerate(ranks)]
    return np.stack(columns, 1) if columns else x
