"""erf, and what is made of the normal distribution function."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import Dual, JointDual, rule
from ntkit.infinite.duals.smooth import smooth

aten = torch.ops.aten


def excess(cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
    """Return det(I + Sigma) = (1 + var1) (1 + var2) - cov^2, which is at least one."""
    return (1 + var1 + var2 + (var1 * var2 - cov * cov)).clamp(min=1)


class Erf(JointDual):
    """The error function, phi(u) = erf(scale u).

    With c = 2 scale^2 cov, v1 = 2 scale^2 var1 and v2 = 2 scale^2 var2,

        E[phi(u) phi(v)]   = (2 / pi) asin(c / sqrt((1 + v1) (1 + v2)))
        E[phi'(u) phi'(v)] = (4 scale^2 / pi) / sqrt((1 + v1) (1 + v2) - c^2)

    (Williams 1997, Eq. 11).
    """

    smooth = True

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = float(scale)

    def phi(self, x: Tensor) -> Tensor:
        """Return erf(scale x)."""
        return torch.erf(self.scale * x)

    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope from one square root."""
        scale = 2 * self.scale**2
        cov = scale * cov
        s = excess(cov, scale * var1, scale * var2).sqrt()
        return torch.atan2(cov, s) * (2 / math.pi), (2 * scale / math.pi) / s

    def mean(self, var: Tensor) -> Tensor:
        """Return zero: phi is odd."""
        return torch.zeros_like(var)

    def gain(self, var: Tensor) -> Tensor:
        """Return 2 scale / sqrt(pi (1 + 2 scale^2 var))."""
        return (2 * self.scale / math.sqrt(math.pi)) * (1 + 2 * self.scale**2 * var).rsqrt()


class GELU(JointDual):
    """The exact GELU, phi(u) = u Phi(u), Phi the normal distribution function (Tsuchida et al. 2020).

    With D = (1 + var1) (1 + var2) - cov^2 and P = E[Phi(u) Phi(v)]
    = 1/4 + asin(cov / sqrt((1 + var1) (1 + var2))) / (2 pi), Stein's identity gives

        E[phi(u) phi(v)]   = cov P + (var1 var2 + r cov^2 - cov^2) / (2 pi sqrt(D))
        E[phi'(u) phi'(v)] = P + cov (r + 1 / D) / (2 pi sqrt(D)),   r = 1 / (1 + var1) + 1 / (1 + var2).
    """

    smooth = True

    def phi(self, x: Tensor) -> Tensor:
        """Return x Phi(x)."""
        return torch.nn.functional.gelu(x)

    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope from one square root and one arcsine."""
        determinant = excess(cov, var1, var2)
        s = determinant.rsqrt()
        both_positive = 0.25 + torch.atan2(cov * s, torch.ones_like(s)) / (2 * math.pi)
        r, density = 1 / (1 + var1) + 1 / (1 + var2), s / (2 * math.pi)
        value = cov * both_positive + (var1 * var2 + (r - 1) * (cov * cov)) * density
        return value, both_positive + cov * (r + 1 / determinant) * density

    def mean(self, var: Tensor) -> Tensor:
        """Return var / sqrt(2 pi (1 + var))."""
        return var * (2 * math.pi * (1 + var)).rsqrt()

    def gain(self, var: Tensor) -> Tensor:
        """Return one half: phi'(u) + phi'(-u) = 1."""
        return torch.full_like(var, 0.5)


rule(aten.erf.default, aten.erf_.default, aten.special_erf.default)(Erf)


@rule(aten.gelu.default, aten.gelu_.default)
def gelu(approximate: str = "none") -> Dual:
    """Return the dual of u Phi(u), or of its approximation by tanh."""
    return GELU() if approximate == "none" else smooth(aten.gelu.default, approximate=approximate)
