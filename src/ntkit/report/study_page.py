"""A study on one self-contained HTML page: paper, measured, bar, and the figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from ntkit.display.svg import inline_svg
from ntkit.report.templating import environment


@dataclass(frozen=True)
class StudyPage:
    """All that the page says. ``claims`` have ``what``, ``paper``, ``measured``, ``bar`` and ``holds``."""

    name: str
    title: str
    source: str
    lead: str
    claims: Sequence[Any]
    notes: Sequence[str]
    figures: Mapping[str, Figure]
    facts: Sequence[tuple[str, str]]


def render_study(page: StudyPage) -> str:
    """Return the page as one HTML document that loads nothing from anywhere."""
    figures = enumerate(page.figures.items())
    drawn = {title: inline_svg(figure.axes[0], f"figure{i}", title) for i, (title, figure) in figures}
    return environment().get_template("study.html.jinja").render(page=page, drawn=drawn)
