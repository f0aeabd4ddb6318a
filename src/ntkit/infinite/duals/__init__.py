"""E[phi(u) phi(v)] and E[phi'(u) phi'(v)] of functions of one variable, u and v jointly Gaussian."""

from ntkit.infinite.duals import erf, exponential, homogeneous, piecewise, polynomial, rectified, smooth

__all__ = ["erf", "exponential", "homogeneous", "piecewise", "polynomial", "rectified", "smooth"]
