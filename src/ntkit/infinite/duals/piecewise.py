"""Functions with kinks: ELU and its relatives, Hardtanh, Hardswish, shrinkage, clamps."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

import ntkit.infinite.duals.pieces as pieces
import ntkit.infinite.duals.split as split
from ntkit.infinite.duals.dual import Dual, rule
from ntkit.infinite.duals.homogeneous import Homogeneous
from ntkit.infinite.duals.pieces import INF, Piece, Pieces

aten = torch.ops.aten


class Piecewise(Dual):
    """A function that is a polynomial, or one times an exponential, between kinks.

    Means and squares are closed forms (truncated normals); for pairs see ``split.expectation``.
    """

    how = "quadrature"
    traceable = False

    def __init__(self, *parts: Piece) -> None:
        self.f: Pieces = parts
        self.kinks = pieces.kinks(parts)
        self._slope = pieces.derivative(parts)

    def phi(self, x: Tensor) -> Tensor:
        """Return the function itself."""
        return pieces.evaluate(self.f, x)

    def pieces(self) -> Pieces:
        """Return the pieces."""
        return self.f

    def value(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi(u) phi(v)]."""
        return split.expectation(self.f, self.f, cov, var1, var2)

    def slope(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi'(u) phi'(v)], without the jumps of phi."""
        return split.expectation(self._slope, self._slope, cov, var1, var2)

    def radial(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[u phi'(u) v phi'(v)]."""
        return split.expectation(pieces.times_x(self._slope), pieces.times_x(self._slope), cov, var1, var2)

    def mean(self, var: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        return split.average(self.f, var)

    def mean_slope(self, var: Tensor) -> Tensor:
        """Return E[phi'(u)], without the jumps of phi."""
        return split.average(self._slope, var)

    def gain(self, var: Tensor) -> Tensor:
        """Return E[u phi(u)] / var."""
        total = self.mean_slope(var)
        for k, jump in pieces.jumps(self.f):
            total = total + jump * split.density(k, var)
        return total

    def square(self, var: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        return split.square(self.f, var)

    def crossed(self, other: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return value and slope with another function made of pieces."""
        g = other.pieces()
        if g is None:
            return None
        slope = split.expectation(self._slope, pieces.derivative(g), cov, var1, var2)
        return split.expectation(self.f, g, cov, var1, var2), slope


def _line(*places: tuple[float, tuple[float, ...]], first: tuple[float, ...]) -> Piecewise:
    """Return the polynomial ``first`` up to the first place, then that of each place up to the next."""
    lows = [-INF, *(x for x, _ in places)]
    formulas = [first, *(c for _, c in places)]
    ends = zip(lows, [*lows[1:], INF], formulas, strict=True)
    return Piecewise(*(Piece(low, high, c) for low, high, c in ends if any(c)))


@rule(aten.elu.default, aten.elu_.default)
def elu(alpha: float = 1.0, scale: float = 1.0, input_scale: float = 1.0) -> Dual | None:
    """Return the dual of scale u above zero, scale alpha (exp(input_scale u) - 1) below."""
    if input_scale <= 0:
        return None
    a = scale * alpha
    below = Piece(-INF, 0.0, (a,), input_scale), Piece(-INF, 0.0, (-a,))
    return Piecewise(*below, Piece(0.0, INF, (0.0, scale)))


rule(aten.selu.default, aten.selu_.default)(  # the constants of self-normalizing networks
    partial(elu, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
)


@rule(aten.celu.default, aten.celu_.default)
def celu(alpha: float = 1.0) -> Dual | None:
    """Return the dual of u above zero, alpha (exp(u / alpha) - 1) below."""
    return elu(alpha, 1.0, 1 / alpha)


@rule(aten.clamp.default, aten.clamp_.default, aten.clamp_min.default, aten.clamp_min_.default)
def clamp(min: float | None = None, max: float | None = None) -> Dual | None:
    """Return the dual of u between two numbers and the nearer of them outside."""
    if (min is None and max is None) or (min is not None and max is not None and min >= max):
        return None
    if max is None and min == 0:
        return Homogeneous(1, 0)
    places: list[tuple[float, tuple[float, ...]]] = []
    if min is not None:
        places.append((min, (0.0, 1.0)))
    if max is not None:
        places.append((max, (max,)))
    return _line(*places, first=(0.0, 1.0) if min is None else (min,))


rule(aten.clamp_max.default, aten.clamp_max_.default)(partial(clamp, None))
rule(aten.relu6.default, aten.relu6_.default)(partial(clamp, 0.0, 6.0))


@rule(aten.hardtanh.default, aten.hardtanh_.default)
def hardtanh(min_val: float = -1.0, max_val: float = 1.0) -> Dual | None:
    """Return the dual of u between two numbers and the nearer of them outside."""
    return clamp(min_val, max_val)


rule(aten.hardsigmoid.default, aten.hardsigmoid_.default)(  # (u + 3) / 6 between 0 and 1
    partial(_line, (-3.0, (0.5, 1 / 6)), (3.0, (1.0,)), first=(0.0,))
)
rule(aten.hardswish.default, aten.hardswish_.default)(  # u times that
    partial(_line, (-3.0, (0.0, 0.5, 1 / 6)), (3.0, (0.0, 1.0)), first=(0.0,))
)


@rule(aten.softshrink.default)
def softshrink(lambd: float = 0.5) -> Dual | None:
    """Return the dual of u moved towards zero by ``lambd``, zero if nearer than that."""
    if lambd == 0:
        return Homogeneous(1, 1)
    return _line((-lambd, (0.0,)), (lambd, (-lambd, 1.0)), first=(lambd, 1.0))


@rule(aten.hardshrink.default)
def hardshrink(lambd: float = 0.5) -> Dual:
    """Return the dual of u, zero if nearer to zero than ``lambd``; its jumps do not enter the slope."""
    return _line((-lambd, (0.0,)), (lambd, (0.0, 1.0)), first=(0.0, 1.0)) if lambd > 0 else Homogeneous(1, 1)


@rule(aten.threshold.default, aten.threshold_.default)
def threshold(threshold: float, value: float) -> Dual:
    """Return the dual of u above the threshold, ``value`` below; a jump there does not enter the slope."""
    if threshold == 0 and value == 0:
        return Homogeneous(1, 0)
    return _line((threshold, (0.0, 1.0)), first=(value,))
