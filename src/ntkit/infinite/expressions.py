"""The old place of `ntkit.infinite.moments.vectors` and its neighbours."""

from ntkit.deprecation import moved

_NEW = "ntkit.infinite.moments.vectors ntkit.infinite.moments.positions ntkit.infinite.moments.functions"
_RENAMED = {"Law": "WeightLaw", "Matrix": "WeightMatrix", "Scaled": "Multiple", "Sum": "VectorSum"}

__getattr__ = moved(__name__, _NEW, "0.2", **_RENAMED)
