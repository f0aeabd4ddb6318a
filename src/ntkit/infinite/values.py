"""The old place of `ntkit.infinite.reading.values`."""

from ntkit.deprecation import moved

__getattr__ = moved(__name__, "ntkit.infinite.reading.values", "0.2")
