"""The old place of `ntkit.infinite.moments.vectors`."""

from ntkit.deprecation import moved

__getattr__ = moved(
    __name__,
    "ntkit.infinite.moments.vectors ntkit.infinite.moments.positions ntkit.infinite.moments.functions "
    "ntkit.infinite.moments.expression ntkit.infinite.moments.rewrites",
    "0.2",
    Law="WeightLaw",
    Matrix="WeightMatrix",
    Scaled="Multiple",
    Sum="VectorSum",
)
