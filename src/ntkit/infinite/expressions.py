"""The old place of `ntkit.infinite.moments.vectors`."""

from ntkit.deprecation import moved

__getattr__ = moved(__name__, "ntkit.infinite.moments.vectors", "0.2")
