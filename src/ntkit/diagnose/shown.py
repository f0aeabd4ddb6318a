"""What every result has: a table of pandas, a plot, and both in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from markupsafe import escape

from ntkit.display.svg import inline_svg
from ntkit.errors import NtkitError

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


Places: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Flags: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]


class Shown(ABC):
    """A result that says in words what was found, and has a table and a plot."""

    @property
    @abstractmethod
    def words(self) -> str:
        """What was found, in plain words, made of the figures."""

    @abstractmethod
    def columns(self) -> Mapping[str, object]:
        """Return the columns of the table, all of one length."""

    @abstractmethod
    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the result."""

    def table(self) -> pandas.DataFrame:
        """Return the result as a table of pandas."""
        try:
            import pandas
        except ImportError as error:
            raise NtkitError("table() makes a table of pandas: pip install pandas.") from error
        return pandas.DataFrame({name: np.asarray(column) for name, column in self.columns().items()})

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.words}>"

    def _repr_html_(self) -> str:
        name = type(self).__name__.lower()
        return f"<p>{escape(self.words)}</p>{inline_svg(self.plot(), name)}"
