"""The minimum of a function of one number, between two bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scipy.optimize import minimize_scalar


def minimum(function: Callable[[float], float], low: float, high: float, tol: float) -> tuple[float, float]:
    """Return where a function is least, to ``tol``, and its value there, by Brent's method.

    >>> x, value = minimum(lambda x: (x - 0.25) ** 2, 0.0, 1.0, 1e-6)
    >>> round(x, 4), value < 1e-9
    (0.25, True)
    """
    found: Any = minimize_scalar(function, bounds=(low, high), method="bounded", options={"xatol": tol})
    return float(found.x), float(found.fun)
