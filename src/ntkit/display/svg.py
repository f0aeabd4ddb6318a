"""Figures as inline SVG whose text and axes take the color of the page around them."""

from __future__ import annotations

import io
import re

import matplotlib as mpl
from matplotlib.axes import Axes

from ntkit.display.axes import INK


def inline_svg(ax: Axes, name: str, title: str = "") -> str:
    """Return the figure of some axes as an SVG element for an HTML page; ``name`` keeps its ids apart.

    Its title, for readers that do not see it, is the one that is given, or what its axes say.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None, "axes that were removed from their figure"
    stream, title = io.StringIO(), title or _title(ax) or name
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "ntkit"}):
        figure.savefig(
            stream, format="svg", transparent=True, metadata={"Title": title, "Date": None, "Creator": None}
        )
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', "", text, count=2)
    return text.replace(INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def _title(ax: Axes) -> str:
    """Return what the axes are about, in words."""
    x, y = ax.get_xlabel(), ax.get_ylabel()
    return ax.get_title() or (f"{y} against {x}" if x and y else x or y)
