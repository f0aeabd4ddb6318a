"""The pages' templates."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from ntkit.display.numbers import number, percent, picture, plain, polyline, short, signed, tiny


@cache
def environment() -> Environment:
    """Return the templates with their filters; everything that is not `Markup` is escaped."""
    environment = Environment(
        loader=PackageLoader("ntkit.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        signed=signed,
        short=short,
        plain=plain,
        tiny=tiny,
        number=number,
        picture=picture,
        polyline=polyline,
        percent=percent,
    )
    return environment
