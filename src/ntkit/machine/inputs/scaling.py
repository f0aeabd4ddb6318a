"""How columns and rows are scaled before a kernel sees them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ntkit.errors import one_of
from ntkit.network import Floats

Scale: TypeAlias = Literal["auto", "standardize", "unit"] | None
SCALES = ("auto", "standardize", "unit", None)


@dataclass(frozen=True, eq=False)
class Scaling:
    """A scaling of samples ``[n, d]``: ``"standardize"``, ``"unit"`` or none.

        standardize    (x_i - mean_i) / std_i, zero for a column that is constant in training
        unit           sqrt(d) x / |x|, zero for a sample that is zero

    Both give numbers of a mean square of about one. One-hot columns are only centered: a rare category says
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
        if one_of("scale", name, SCALES) != "standardize":
            return cls(name)
        counted = x if weights is None else x[weights > 0]
        own = None if weights is None else weights[weights > 0]
        size = np.abs(counted).max(0)
        size = np.where(size > 0, size, 1.0)  # squares of large numbers overflow
        mean = np.average(counted / size, axis=0, weights=own)
        std = np.sqrt(np.average((counted / size - mean) ** 2, axis=0, weights=own))
        constant = std <= 1e-12  # of the largest entry: rounding of the mean
        factor = np.where(constant, 0.0, 1 / (np.where(constant, 1.0, std) * size))
        return cls(name, mean * size, factor if binary is None else np.where(binary, 1.0, factor))

    def __call__(self, x: np.ndarray) -> Floats:
        """Return samples scaled."""
        if self.name == "standardize":
            assert self.mean is not None and self.factor is not None
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
        return self.name != "standardize" or (
            np.array_equal(self.mean, other.mean) and np.array_equal(self.factor, other.factor)  # pyright: ignore[reportArgumentType]
        )

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __str__(self) -> str:
        return {"standardize": "columns standardized", "unit": "rows of equal norm", None: "inputs as given"}[
            self.name
        ]
