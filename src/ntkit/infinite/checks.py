"""The old place of `ntkit.diagnose.definiteness`."""

from ntkit.deprecation import moved

__getattr__ = moved(__name__, "ntkit.diagnose.definiteness", "0.2")
