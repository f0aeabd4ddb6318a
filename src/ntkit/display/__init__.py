"""Axes, SVG and small pieces of pages: they take arrays and strings."""
