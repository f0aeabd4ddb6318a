"""The pages' templates."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from ntkit.display.numbers import number, percent, picture, plain, polyline, short, signed, tiny


@cache
def environment() -> Environment:
    """Return the templates with their filters; everything that is not `Markup` is escaped."""
    loader = PackageLoader("ntkit.report", "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    for each in (signed, short, plain, tiny, number, picture, polyline, percent):
        environment.filters[each.__name__] = each
    return environment
