"""Exponentials: exp, sin, cos, random Fourier features, and the Gaussian."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import Dual, JointDual, rule
from ntkit.infinite.duals.erf import excess

aten = torch.ops.aten


class Exponential(Dual):
    """phi(u) = exp(rate u): E[phi(u) phi(v)] = exp(rate^2 (var1 + var2 + 2 cov) / 2)."""

    smooth = True

    def __init__(self, rate: float = 1.0) -> None:
        self.rate = float(rate)

    def phi(self, x: Tensor) -> Tensor:
        """Return exp(rate x)."""
        return torch.exp(self.rate * x)

    def value(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi(u) phi(v)]."""
        return torch.exp(self.rate**2 * ((var1 + var2) / 2 + cov))

    def slope(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return rate^2 E[phi(u) phi(v)]."""
        return self.rate**2 * self.value(cov, var1, var2)

    def mean(self, var: Tensor) -> Tensor:
        """Return exp(rate^2 var / 2)."""
        return torch.exp(self.rate**2 / 2 * var)

    def gain(self, var: Tensor) -> Tensor:
        """Return rate E[phi(u)]."""
        return self.rate * self.mean(var)

    def crossed(self, other: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return value and slope with an exponential of another rate."""
        if not isinstance(other, Exponential):
            return None
        a, b = self.rate, other.rate
        value = torch.exp((a * a * var1 + b * b * var2) / 2 + a * b * cov)
        return value, a * b * value


class Sinusoid(JointDual):
    """phi(u) = odd sin(frequency u) + even cos(frequency u).

    With c = frequency^2 cov and m = frequency^2 (var1 + var2) / 2,

        E[phi(u) phi(v)]   = exp(-m) (odd^2 sinh(c) + even^2 cosh(c))
        E[phi'(u) phi'(v)] = frequency^2 exp(-m) (odd^2 cosh(c) + even^2 sinh(c))

    (from the characteristic function). ``Sinusoid(w, 1, 1)`` is the feature of random Fourier methods: its
    value is exp(-w^2 E[(u - v)^2] / 2), the Gaussian kernel of u and v (Rahimi & Recht 2007).
    """

    smooth = True

    def __init__(self, frequency: float = 1.0, odd: float = 1.0, even: float = 0.0) -> None:
        self.frequency, self.odd, self.even = float(frequency), float(odd), float(even)

    def phi(self, x: Tensor) -> Tensor:
        """Return odd sin(frequency x) + even cos(frequency x)."""
        return self.odd * torch.sin(self.frequency * x) + self.even * torch.cos(self.frequency * x)

    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope from the same exponentials."""
        return self._with(self, cov, var1, var2)

    def mean(self, var: Tensor) -> Tensor:
        """Return even exp(-frequency^2 var / 2)."""
        return self.even * torch.exp(-(self.frequency**2) / 2 * var)

    def gain(self, var: Tensor) -> Tensor:
        """Return odd frequency exp(-frequency^2 var / 2)."""
        return self.odd * self.frequency * torch.exp(-(self.frequency**2) / 2 * var)

    def crossed(self, other: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return value and slope with another sinusoid."""
        return self._with(other, cov, var1, var2) if isinstance(other, Sinusoid) else None

    def _with(self, other: Sinusoid, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        sines, cosines = _products(self.frequency, other.frequency, cov, var1, var2)
        odd, even, scale = self.odd * other.odd, self.even * other.even, self.frequency * other.frequency
        return odd * sines + even * cosines, scale * (odd * cosines + even * sines)


def _products(a: float, b: float, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
    """Return E[sin(a u) sin(b v)] and E[cos(a u) cos(b v)]; small sines are not differences."""
    c, m = a * b * cov, (a * a * var1 + b * b * var2) / 2
    plus, minus = torch.exp(c - m) / 2, torch.exp(-c - m) / 2
    small = torch.sinh(c.clamp(-1, 1)) * torch.exp(-m)
    return torch.where(c.abs() < 1, small, plus - minus), plus + minus


class Gaussian(JointDual):
    """The Gaussian, phi(u) = exp(-rate u^2).

    With D = (1 + 2 rate var1) (1 + 2 rate var2) - (2 rate cov)^2,

        E[phi(u) phi(v)] = D^(-1/2),   E[phi'(u) phi'(v)] = 4 rate^2 cov D^(-3/2)

    (a Gaussian integral; Williams 1997, Sec. 3.2).
    """

    smooth = True

    def __init__(self, rate: float = 1.0) -> None:
        self.rate = float(rate)

    def phi(self, x: Tensor) -> Tensor:
        """Return exp(-rate x^2)."""
        return torch.exp(-self.rate * x * x)

    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope from one determinant."""
        a = 2 * self.rate
        value = excess(a * cov, a * var1, a * var2).rsqrt()
        return value, a * a * cov * value**3

    def mean(self, var: Tensor) -> Tensor:
        """Return 1 / sqrt(1 + 2 rate var)."""
        return (1 + 2 * self.rate * var).rsqrt()

    def gain(self, var: Tensor) -> Tensor:
        """Return zero: phi is even."""
        return torch.zeros_like(var)


rule(aten.exp.default, aten.exp_.default)(Exponential)
rule(aten.exp2.default, aten.exp2_.default, aten.special_exp2.default)(partial(Exponential, math.log(2)))
rule(aten.sin.default, aten.sin_.default)(partial(Sinusoid, 1.0, 1.0, 0.0))
rule(aten.cos.default, aten.cos_.default)(partial(Sinusoid, 1.0, 0.0, 1.0))
