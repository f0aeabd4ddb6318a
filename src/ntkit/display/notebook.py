"""How results show themselves in a notebook."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = "max-height: 28em; overflow: auto; white-space: pre; margin: 0; line-height: 1.3"


def listing(text: str) -> str:
    """Return a text as HTML that scrolls where it is long, with the spaces that it has.

    >>> listing("a < b")[-15:]
    '>a &lt; b</pre>'
    """
    return f'<pre style="{_STYLE}">{html.escape(text)}</pre>'


def shortened(text: str, first: int = 20, last: int = 10) -> str:
    """Return the first and last lines of a long text; `print` gives all of it."""
    lines = text.splitlines()
    if len(lines) <= first + last + 1:
        return text
    left = len(lines) - first - last
    return "\n".join([*lines[:first], f"... {left} lines more: print it for all ...", *lines[-last:]])


class Printed:
    """What prints as a text: its repr is cut where that is long, and in a notebook it scrolls."""

    def __repr__(self) -> str:
        return shortened(str(self))

    def _repr_html_(self) -> str:
        return listing(str(self))


def with_figure(text: str, ax: Axes, name: str) -> str:
    """Return a text and a figure, one below the other."""
    from ntkit.display.svg import inline_svg

    return f'{listing(text)}<div style="max-width: 56em; background: #fff">{inline_svg(ax, name)}</div>'
