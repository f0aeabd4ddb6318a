"""E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of functions of one variable, u and v jointly Gaussian."""

from ntkit.infinite.duals import erf, homogeneous, smooth

__all__ = ["erf", "homogeneous", "smooth"]
