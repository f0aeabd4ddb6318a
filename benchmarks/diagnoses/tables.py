"""Tables and sentences of the page, made of what was measured."""

from __future__ import annotations


def tables(results: dict) -> dict[str, str]:
    """Return the parts of the page by name."""
    return {}


def into_page(page, found) -> None:
    """Write the parts."""
