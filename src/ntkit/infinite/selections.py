"""The old place of `ntkit.infinite.layers.selections`."""

from ntkit.deprecation import moved

__getattr__ = moved(__name__, "ntkit.infinite.layers.selections", "0.2")
