"""Quadrature on [0, 1]: Gauss-Legendre rules, nested ones, and the rule of the left end."""

from __future__ import annotations

from functools import cache

import numpy as np

QuadratureRule = tuple[tuple[float, ...], tuple[float, ...]]  # nodes in [0, 1] and their weights

LEFT: QuadratureRule = ((0.0,), (1.0,))  # Theorem 2 of "Can neural networks extrapolate?", Eq. 9
LEVELS = (1, 2, 3, 5, 8)  # numbers of nodes, in the order in which they are tried
NESTED = (1, 3, 7, 15, 31)  # numbers of nodes of nested rules: each keeps the nodes of the one before


@cache
def gauss(size: int) -> QuadratureRule:
    """Return the Gauss-Legendre rule on [0, 1], exact for polynomials of degree 2 size - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(size)
    return tuple(((nodes + 1) / 2).tolist()), tuple((weights / 2).tolist())


@cache
def nested(level: int) -> QuadratureRule:
    """Return a rule of ``NESTED[level]`` nodes on [0, 1], exact up to degree (3 size + 1) / 2.

    Patterson, "The optimum addition of points to quadrature formulae", 1968: the n + 1 nodes that are added
    to n are the zeros of the polynomial E of degree n + 1 for which E times the old nodes' polynomial is
    orthogonal to all of degree n and less. The old nodes come first.
    """
    legendre = np.polynomial.legendre
    old = np.array([0.0])
    grid, measure = legendre.leggauss(2 * NESTED[level] + 2)
    for _ in range(level):
        n = len(old)
        g = np.prod(grid[:, None] - old, axis=1)
        values = legendre.legvander(grid, n + 1)
        moments = values[:, : n + 1].T @ ((measure * g)[:, None] * values)
        scale = np.abs(moments).max()
        lower = np.linalg.lstsq(moments[:, :-1] / scale, -moments[:, -1] / scale, rcond=1e-14)[0]
        old = np.concatenate([old, np.sort(legendre.legroots(np.append(lower, 1.0)).real)])
    lagrange = np.linalg.solve(legendre.legvander(old, len(old) - 1).T, 2.0 * (np.arange(len(old)) == 0))
    return tuple(((old + 1) / 2).tolist()), tuple((lagrange / 2).tolist())
