"""Polynomials: squares, monomials, Hermite polynomials."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ntkit.infinite.duals.dual import Dual, rule
from ntkit.infinite.duals.pieces import INF, Piece, Pieces

aten = torch.ops.aten


class Polynomial(Dual):
    """phi(u) = sum_j coefficients[j] u^j.

    E[phi(u) psi(v)] = sum_r cov^r E[phi^(r)(u)] E[psi^(r)(v)] / r!, which ends at the lower degree (the
    Hermite expansion without its divisions by the variance: Daniely et al. 2016, Sec. 4.2).
    """

    def __init__(self, *coefficients: float) -> None:
        self.coefficients = tuple(float(c) for c in coefficients) or (0.0,)

    @classmethod
    def hermite_polynomial(cls, degree: int) -> Polynomial:
        """Return he_k / sqrt(k!), whose dual at variances of one is rho^k."""
        basis = [0.0] * degree + [1 / math.sqrt(math.factorial(degree))]
        return cls(*np.polynomial.hermite_e.herme2poly(basis).tolist())

    def phi(self, x: Tensor) -> Tensor:
        """Return the polynomial."""
        return _horner(self.coefficients, x)

    def pieces(self) -> Pieces:
        """Return one piece."""
        return (Piece(-INF, INF, self.coefficients),)

    def value(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi(u) phi(v)]."""
        return _product(self.coefficients, self.coefficients, cov, var1, var2)

    def slope(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi'(u) phi'(v)]."""
        slope = _derivative(self.coefficients)
        return _product(slope, slope, cov, var1, var2)

    def radial(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[u phi'(u) v phi'(v)]."""
        scaled = [j * c for j, c in enumerate(self.coefficients)]
        return _product(scaled, scaled, cov, var1, var2)

    def mean(self, var: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return _mean(self.coefficients, var)

    def gain(self, var: Tensor) -> Tensor:
        """Return E[phi'(u)]."""
        return _mean(_derivative(self.coefficients), var)

    def crossed(self, other: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return value and slope with another polynomial."""
        if not isinstance(other, Polynomial):
            return None
        a, b = self.coefficients, other.coefficients
        slope = _product(_derivative(a), _derivative(b), cov, var1, var2)
        return _product(a, b, cov, var1, var2), slope


def _derivative(c: Sequence[float]) -> Sequence[float]:
    return [j * a for j, a in enumerate(c)][1:] or [0.0]


def _horner(c: Sequence[float], x: Tensor) -> Tensor:
    total = torch.full_like(x, c[-1])
    for a in reversed(c[:-1]):
        total = total * x + a
    return total


def _mean(c: Sequence[float], var: Tensor) -> Tensor:
    """Return sum_j c_2j (2j - 1)!! var^j."""
    return _horner([a * math.prod(range(1, 2 * j, 2)) for j, a in enumerate(c[::2])], var)


def _product(a: Sequence[float], b: Sequence[float], cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
    terms = []
    for r in range(min(len(a), len(b))):
        terms.append(_mean(a, var1) * _mean(b, var2) / math.factorial(r))
        a, b = _derivative(a), _derivative(b)
    total = terms[-1] * torch.ones_like(cov)
    for term in reversed(terms[:-1]):
        total = total * cov + term
    return total


rule(aten.square.default, aten.square_.default)(partial(Polynomial, 0, 0, 1))


@rule(aten.pow.Tensor_Scalar, aten.pow_.Scalar)
def power(exponent: float) -> Dual | None:
    """Return the dual of u^k for a whole k >= 1."""
    if exponent != int(exponent) or not 1 <= exponent <= 20:
        return None
    return Polynomial(*[0.0] * int(exponent), 1.0)
