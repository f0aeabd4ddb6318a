"""Gauss-Legendre rules on [0, 1], and the rule of the left end."""

from __future__ import annotations

from functools import cache

import numpy as np

QuadratureRule = tuple[tuple[float, ...], tuple[float, ...]]  # nodes in [0, 1] and their weights

LEFT: QuadratureRule = ((0.0,), (1.0,))  # Theorem 2 of "Can neural networks extrapolate?", Eq. 9
LEVELS = (1, 2, 3, 5, 8)  # numbers of nodes, in the order in which they are tried


@cache
def gauss(size: int) -> QuadratureRule:
    """Return the Gauss-Legendre rule on [0, 1], exact for polynomials of degree 2 size - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(size)
    return tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist())
