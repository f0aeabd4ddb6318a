"""The old place of `ntkit.infinite.reading.rules`."""

from ntkit.deprecation import moved

__getattr__ = moved(__name__, "ntkit.infinite.reading.rules", "0.2", RULES="LIMIT_RULES")
