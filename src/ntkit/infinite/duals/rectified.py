"""Powers above zero only: the step, sign, and the arc-cosine kernels."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from ntkit.errors import BadValueError
from ntkit.infinite.duals.correlation import arcsine, root
from ntkit.infinite.duals.dual import Dual, JointDual, rule
from ntkit.infinite.duals.pieces import INF, Piece, Pieces

aten = torch.ops.aten


class Step(Dual):
    """The step, phi(u) = low below zero, high above.

    With m = (low + high) / 2 and d = (high - low) / 2,

        E[phi(u) phi(v)] = m^2 + (2 d^2 / pi) asin(rho)

    (the arc-cosine kernel of degree zero: Cho & Saul 2009, Eq. 5). The slope is zero: it is that of a
    network trained with autograd's derivative, which does not see the jump. ``gain`` does. At a variance
    of zero, the value is that of correlation zero.
    """

    kinks = (0.0,)

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        self.low, self.high = float(low), float(high)
        self.m, self.d = (self.low + self.high) / 2, (self.high - self.low) / 2

    def phi(self, x: Tensor) -> Tensor:
        """Return the step; at zero its middle."""
        return self.m + self.d * torch.sign(x)

    def pieces(self) -> Pieces:
        """Return the two constants."""
        rays = Piece(-INF, 0.0, (self.low,)), Piece(0.0, INF, (self.high,))
        return tuple(p for p in rays if p.coefficients[0])

    def value(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi(u) phi(v)]."""
        return self.m**2 + (2 / math.pi * self.d**2) * arcsine(cov, var1, var2)[1]

    def slope(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros_like(cov * var1 * var2)

    def radial(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return zero."""
        return self.slope(cov, var1, var2)

    def mean(self, var: Tensor) -> Tensor:
        """Return m."""
        return torch.full_like(var, self.m)

    def gain(self, var: Tensor) -> Tensor:
        """Return d sqrt(2 / (pi var)), what the jump makes; zero where the variance is."""
        safe = torch.where(var > 0, var, 1.0)
        return torch.where(var > 0, self.d * math.sqrt(2 / math.pi) * safe.rsqrt(), 0.0)

    def mean_slope(self, var: Tensor) -> Tensor:
        """Return zero."""
        return torch.zeros_like(var)

    def square(self, var: Tensor) -> Tensor:
        """Return (low^2 + high^2) / 2, or m^2 at a variance of zero."""
        return self.m**2 + self.d**2 * (var > 0).to(var.dtype)


class RectifiedPower(JointDual):
    """The rectified power, phi(u) = max(u, 0)^k for k >= 1.

    With s = sqrt(var1 var2 - cov^2) and W = pi / 2 + asin(rho),

        E[phi(u) phi(v)] = (s A_k + W E[u^k v^k]) / (2 pi),   E[phi'(u) phi'(v)] = k^2 (that of k - 1)

    with a polynomial A_k in cov and var1 var2 (the arc-cosine kernel of degree k, Cho & Saul 2009, Eq. 4:
    J_k(theta) = A_k sin(theta) + (pi - theta) E[u^k v^k] at variances of one).
    """

    kinks = (0.0,)

    def __init__(self, power: int) -> None:
        if power != int(power) or power < 1:
            raise BadValueError(f"RectifiedPower takes a whole power >= 1, not {power}; for 0 there is Step.")
        self.power = int(power)

    def phi(self, x: Tensor) -> Tensor:
        """Return max(x, 0)^k."""
        return x.clamp(min=0) ** self.power

    def pieces(self) -> Pieces:
        """Return the one ray that is not zero."""
        return (Piece(0.0, INF, (*[0.0] * self.power, 1.0)),)

    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope from one square root and one arcsine."""
        s, w = arcsine(cov, var1, var2)
        w, q = w + w.new_tensor(math.pi / 2), var1 * var2
        k = self.power
        value, lower = ((s * _form(a, cov, q) + w * _form(b, cov, q)) for a, b in (_parts(k), _parts(k - 1)))
        return value / (2 * math.pi), k * k / (2 * math.pi) * lower

    def radial(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return k^2 E[phi(u) phi(v)]."""
        return self.power**2 * self.value(cov, var1, var2)

    def mean(self, var: Tensor) -> Tensor:
        """Return E[max(u, 0)^k]."""
        return _moment(self.power, var)

    def gain(self, var: Tensor) -> Tensor:
        """Return k E[max(u, 0)^(k - 1)]."""
        return self.power * _moment(self.power - 1, var)

    def square(self, var: Tensor) -> Tensor:
        """Return E[max(u, 0)^2k]."""
        return _moment(2 * self.power, var)


def _moment(k: int, var: Tensor) -> Tensor:
    factor = 2 ** (k / 2 - 1) * math.gamma((k + 1) / 2) / math.sqrt(math.pi)
    return factor * var ** (k // 2) * (root(var) if k % 2 else 1.0)


def _parts(k: int) -> tuple[list[float], list[float]]:
    """Return the coefficients of A_k and of B_k = E[u^k v^k] in cov, at var1 var2 = 1.

    d/dcov of the value is the slope, so B_k' = k^2 B_{k-1} and
    B_k - cov A_k + (1 - cov^2) (A_k' - k^2 A_{k-1}) = 0.
    """
    a, b = [0.0, 0.0, 0.0], [1.0]
    for n in range(1, k + 1):
        old, a = a, [0.0] * (n + 3)
        b = [0.0] + [n * n * c / (i + 1) for i, c in enumerate(b)]
        if n % 2 == 0:
            b[0] = float(math.prod(range(1, n, 2)) ** 2)
        old = [*old, 0.0, 0.0]
        for i in range(n, 0, -1):
            a[i - 1] = (b[i] + (i + 1) * a[i + 1] - n * n * (old[i] - (old[i - 2] if i > 1 else 0.0))) / i
    return a[: max(k, 1)], b


def _form(c: list[float], cov: Tensor, q: Tensor) -> Tensor:
    """Return sum_i c_i cov^i q^((d - i) / 2) over the powers of one parity, d the highest."""
    terms = c[::-1][::2]
    total = torch.full_like(cov * q, terms[0])
    high = torch.ones_like(q)
    for a in terms[1:]:
        high = high * q
        total = total * (cov * cov) + a * high
    return total * cov if len(c) % 2 == 0 else total


rule(aten.sign.default, aten.sign_.default, aten.sgn.default, aten.sgn_.default)(partial(Step, -1, 1))
