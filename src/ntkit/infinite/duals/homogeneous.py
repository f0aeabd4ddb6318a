"""Functions with one slope on each side of zero: ReLU, leaky ReLU, abs, identity."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ntkit.infinite.duals.correlation import arcsine, arcsine_in_place, correlation, ordinary, root
from ntkit.infinite.duals.dual import Dual, JointDual, rule
from ntkit.infinite.duals.pieces import INF, Piece, Pieces

aten = torch.ops.aten


class Homogeneous(JointDual):
    """phi(u) = a max(u, 0) + b min(u, 0) = m u + d abs(u), m = (a + b) / 2 and d = (a - b) / 2.

        E[phi(u) phi(v)]   = slope cov + (2 d^2 / pi) sqrt(var1 var2 - cov^2)
        E[phi'(u) phi'(v)] = m^2 + (2 d^2 / pi) asin(rho)

    (the arc-cosine kernel of degree one: Cho & Saul 2009, Eq. 6; 3 Prop. III.1.2). ReLU is (1, 0), leaky
    ReLU (1, negative slope), abs (1, -1), the identity (1, 1).
    """

    kinks = (0.0,)

    def __init__(self, a: float, b: float) -> None:
        self.a, self.b = float(a), float(b)
        self.m, self.d = (self.a + self.b) / 2, (self.a - self.b) / 2
        if self.d == 0:
            self.kinks = ()

    def phi(self, x: Tensor) -> Tensor:
        """Return m x + d abs(x)."""
        return self.m * x + self.d * x.abs()

    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope from one square root and one arcsine."""
        return self._with(self, cov, var1, var2)

    def pieces(self) -> Pieces:
        """Return the two rays."""
        if self.d == 0:
            return (Piece(-INF, INF, (0.0, self.m)),)
        rays = Piece(-INF, 0.0, (0.0, self.b)), Piece(0.0, INF, (0.0, self.a))
        return tuple(p for p in rays if p.coefficients[1])

    def crossed(self, other: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return the closed form with another such function; Stein's identity if this one is linear."""
        if isinstance(other, Homogeneous):
            return self._with(other, cov, var1, var2)
        if self.d == 0:
            ones = torch.ones_like(cov)
            gains = self.m * ones * other.gain(var2), self.m * ones * other.mean_slope(var2)
            return gains[0] * cov, gains[1]
        return None

    def _with(self, other: Homogeneous, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        mm, dd = self.m * other.m, self.d * other.d * 2 / math.pi
        if dd == 0:
            ones = torch.ones_like(cov * var1 * var2)
            return mm * cov * ones, mm * ones
        if ordinary(cov, var1, var2):
            s, w = arcsine_in_place(cov, var1, var2)
            slope = w.mul_(dd).add_(mm)
            return s.mul_(dd).addcmul_(slope, cov), slope
        s, w = arcsine(cov, var1, var2)
        slope = mm + dd * w
        return slope * cov + dd * s, slope

    def radial(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return the value: u phi'(u) = phi(u)."""
        return self.value(cov, var1, var2)

    def weighted(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return m^2 var1 + (2 d^2 / pi) (var1 asin(rho) + cov s / var2), by Stein's lemma."""
        s, w = arcsine(cov, var1, var2)
        inner = torch.where(var2 > 0, cov * s / torch.where(var2 > 0, var2, 1.0), 0.0)
        return self.m**2 * var1 + (2 / math.pi * self.d**2) * (var1 * w + inner)

    def curved(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return (2 d^2 / pi) times rho q, q^2 and -rho q, by Price's theorem."""
        rho, q = correlation(cov, var1, var2)
        rate = 2 / math.pi * self.d**2
        return rate * rho * q, rate * q * q, -rate * rho * q

    def curvature(self, var: Tensor) -> Tensor:
        """Return zero: phi' is odd but for a number."""
        return torch.zeros_like(var)

    def mean(self, var: Tensor) -> Tensor:
        """Return d sqrt(2 var / pi)."""
        return self.d * math.sqrt(2 / math.pi) * root(var)

    def gain(self, var: Tensor) -> Tensor:
        """Return m."""
        return torch.full_like(var, self.m)

    def square(self, var: Tensor) -> Tensor:
        """Return (a^2 + b^2) var / 2."""
        return (self.a**2 + self.b**2) / 2 * var


rule(aten.relu.default, aten.relu_.default)(partial(Homogeneous, 1, 0))
rule(aten.abs.default, aten.abs_.default)(partial(Homogeneous, 1, -1))
rule(aten.neg.default, aten.neg_.default)(partial(Homogeneous, -1, -1))
rule(aten.positive.default, aten.alias.default, aten.clone.default)(partial(Homogeneous, 1, 1))


@rule(aten.leaky_relu.default, aten.leaky_relu_.default)
def leaky_relu(negative_slope: float = 0.01) -> Dual:
    """Return the dual of u above zero, a multiple of it below."""
    return Homogeneous(1, negative_slope)


@rule(aten.rrelu.default, aten.rrelu_.default)
def rrelu(lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False) -> Dual | None:
    """Return the dual of leaky ReLU with the mean of the slopes, which evaluation uses."""
    return None if training else Homogeneous(1, (lower + upper) / 2)
