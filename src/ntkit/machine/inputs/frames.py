"""Data frames as numbers: categories one-hot, missing values as the median and an indicator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from ntkit.errors import BadValueError
from ntkit.network import Floats

if TYPE_CHECKING:
    from pandas import DataFrame, Series


def is_frame(x: object) -> TypeGuard[DataFrame]:
    """Return whether x is a data frame, by what pandas and its like have in common."""
    return hasattr(x, "columns") and hasattr(x, "dtypes") and hasattr(x, "iloc")


@dataclass(frozen=True)
class Column:
    """One column of a data frame: the categories of one that has some, else the median of its numbers.

    ``missing`` says whether values were missing in training: a category of their own, or an indicator.
    """

    name: str
    categories: list[str] | None
    median: float
    missing: bool

    @property
    def names(self) -> list[str]:
        """The names of what the column becomes."""
        own = [self.name] if self.categories is None else [f"{self.name}={c}" for c in self.categories]
        return [*own, f"{self.name} missing"] if self.missing else own

    def numbers(self, values: Series) -> Floats:
        """Return ``[n, k]``: the numbers and their indicator, or one-hot rows (zero for a new category)."""
        gone = np.asarray(values.isna(), dtype=bool)
        if self.categories is None:
            filled = _floats(self.name, values, gone)
            filled[gone] = self.median
            own = filled[:, None]
        else:
            text = _texts(values, gone)
            own = np.stack([text == c for c in self.categories], 1) & ~gone[:, None]
        return np.column_stack([own, gone] if self.missing else [own]).astype(float)


@dataclass(frozen=True)
class Columns:
    """The columns of the data frame that an estimator was fitted with.

    A column of categories, texts or truth values becomes one column for each category, 1 where a sample
    has it. A missing number becomes the median of the column, and a column more says where one was missing;
    a missing category is a category. A category that was not seen in training is none of them.

    >>> import pandas as pd
    >>> frame = pd.DataFrame({"size": [1.0, None, 3.0, 4.0], "kind": ["a", "b", "b", "a"]})
    >>> columns = Columns.of(frame)
    >>> columns.names
    ['size', 'size missing', 'kind=a', 'kind=b']
    >>> columns.numbers(frame)[1]
    array([3., 1., 0., 1.])
    """

    columns: list[Column]

    @classmethod
    def of(cls, frame: DataFrame) -> Columns:
        """Return what training samples say about each column."""
        return cls([_column(str(name), frame.iloc[:, i]) for i, name in enumerate(frame.columns)])

    @property
    def names(self) -> list[str]:
        """The names of the columns of numbers."""
        return [name for column in self.columns for name in column.names]

    @property
    def binary(self) -> np.ndarray:
        """Which columns of numbers are one-hot, or say what was missing, ``[d]``."""
        flags = [[c.categories is not None or name != c.name for name in c.names] for c in self.columns]
        return np.array([flag for own in flags for flag in own], dtype=bool)

    def numbers(self, frame: DataFrame) -> Floats:
        """Return a data frame with the same columns as numbers ``[n, d]``."""
        return np.concatenate([c.numbers(frame.iloc[:, i]) for i, c in enumerate(self.columns)], 1)


def plain(frame: DataFrame) -> bool:
    """Return whether all columns are numbers without a missing one, which need no reading."""
    return all(_numeric(frame.iloc[:, i]) for i in range(frame.shape[1])) and not bool(
        np.asarray(frame.isna()).any()
    )


def missing_in(x: ArrayLike) -> bool:
    """Return whether an array of numbers holds NaN."""
    values = np.asarray(x)
    return values.dtype.kind == "f" and bool(np.isnan(values).any())


def _numeric(values: Series) -> bool:
    return getattr(values.dtype, "kind", "O") in "iufb" and str(values.dtype) not in ("bool", "boolean")


def _column(name: str, values: Series) -> Column:
    gone = np.asarray(values.isna(), dtype=bool)
    missing = bool(gone.any())
    if _numeric(values):
        numbers = _floats(name, values, gone)
        known = numbers[~gone]
        return Column(name, None, float(np.median(known)) if len(known) else 0.0, missing)
    return Column(name, sorted(set(_texts(values, gone)[~gone].tolist())), 0.0, missing)


def _texts(values: Series, gone: np.ndarray) -> np.ndarray:
    """Return values as texts, the missing ones empty."""
    plain = values.astype(object).to_numpy()
    return np.array(["" if none else str(v) for v, none in zip(plain, gone, strict=True)], dtype=object)


def _floats(name: str, values: Series, gone: np.ndarray) -> Floats:
    """Return numbers in float64, NaN where they are missing."""
    if not _numeric(values):
        raise BadValueError(
            f"Column {name!r} holds {values.dtype}, in training it held numbers; give numbers there."
        )
    return np.array(values.where(~gone, np.nan).to_numpy(dtype=float, na_value=np.nan))
