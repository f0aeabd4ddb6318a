"""The index of a folder of studies: their pictures, and the sections of the papers that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ntkit.report.templating import environment


@dataclass(frozen=True)
class IndexEntry:
    """A study on the index: its papers with their sections, bars held and in all, and its first picture."""

    name: str
    title: str
    places: Sequence[tuple[str, str]]
    held: int
    bars: int
    picture: str | None

    @property
    def state(self) -> str:
        """How many of its bars hold, in words."""
        return f"{self.held} of {self.bars} bars hold" if self.bars else "reported only"


@dataclass(frozen=True)
class _Section:
    anchor: str
    text: str
    studies: list[IndexEntry]


def render_index(entries: Sequence[IndexEntry], papers: Sequence[str]) -> str:
    """Return the index as one HTML document, which shows the pictures of the folders beside it.

    Each study is linked to its section in the list of the papers below, and each section to its studies.
    """
    listed = [(paper, _sections(i, paper, entries)) for i, paper in enumerate(papers)]
    listed = [(paper, sections) for paper, sections in listed if sections]
    links = {entry.name: [] for entry in entries}
    for paper, sections in listed:
        for section in sections:
            for entry in section.studies:
                links[entry.name].append((section.anchor, ", ".join(filter(None, (paper, section.text)))))
    return (
        environment().get_template("studies.html.jinja").render(entries=entries, papers=listed, links=links)
    )


def _sections(number: int, paper: str, entries: Sequence[IndexEntry]) -> list[_Section]:
    """Return the sections of a paper that studies are about, in order."""
    found: dict[str, list[IndexEntry]] = {}
    for entry in entries:
        for source, section in entry.places:
            if source == paper:
                found.setdefault(section, []).append(entry)
    ordered = sorted(found)
    return [_Section(f"paper-{number + 1}-{i + 1}", text, found[text]) for i, text in enumerate(ordered)]
