"""Expectations of functions of Gaussian vectors: closed forms first, then series, then sampling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ntkit.infinite.duals.cross import cross, cross_slope
from ntkit.infinite.duals.dual import Dual
from ntkit.infinite.duals.effort import effort
from ntkit.infinite.moments import gains, sampling, series
from ntkit.infinite.moments.accuracy import account, account_product, carried, grown, measured
from ntkit.infinite.variables.algebra import Need, Value, add, multiply
from ntkit.infinite.variables.expression import Expression, walk
from ntkit.infinite.variables.functions import Apply, as_function, unrelated
from ntkit.infinite.variables.numerics import NOISE
from ntkit.infinite.variables.protocols import PairValues, SideValues
from ntkit.infinite.variables.vectors import Gain, VectorSum


def closed(u: Apply) -> Dual | None:
    """Return the dual of a function of one centered Gaussian, where that is all that is needed."""
    argument = u.arguments[0]
    if u.function.dual is None or len(u.arguments) != 1 or not isinstance(argument, Expression):
        return None
    if not argument.gaussian or not argument.centered:
        return None
    return u.function.dual if gains.slopes(argument) is not None else None


def how(u: Apply) -> str:
    """Return how expectations of a function are taken, for people."""
    dual = closed(u)
    if dual is None and u.factors is not None:
        return "product of independent factors"
    return dual.how if dual is not None else "Hermite series" if series.serves(u) else "sampling"


def _factors(u: Apply, v: Apply) -> tuple[Expression, Expression, Expression, Expression] | None:
    """Return the factors of two products where those of one sort and of the other are independent."""
    if u.factors is None or v.factors is None:
        return None
    a, b = u.factors
    for c, d in (v.factors, v.factors[::-1]):
        if unrelated((a, c), (b, d)):
            return a, b, c, d
    return None


def mean(side: SideValues, u: Apply) -> Tensor:
    """Return E[u]."""
    dual = closed(u)
    if dual is not None:
        variance = side.variance(_argument(u))
        with measured(side.numerics, u):
            return dual.mean(variance)
    if u.factors is not None:
        value = multiply(*map(side.mean, u.factors))
        return side.numerics.zeros(1, *(1 for _ in u.shape)) if value is None else value
    return series.mean(side, u) if series.serves(u) else sampling.mean(side, u)


def entangled(u: Expression, v: Expression) -> bool:
    """Return whether a trained scale is part of a function and of another vector too."""
    inside = [walk(w, below=lambda e: e.gains) if w.gains else [] for w in (u, v)]
    scales = [{e.vector.name for e in some if isinstance(e, Gain)} for some in inside]
    return bool(scales[0] & scales[1])


def product(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Value:
    """Return E[u v'] where one of them is a function."""
    if not (isinstance(u, Apply) and isinstance(v, Apply)):
        return _stein(pairs, u, v, need, "moment")
    first, second = closed(u), closed(v)
    one, two = ((_argument(w),) if dual is not None else w.basis for w, dual in ((u, first), (v, second)))
    if all(pairs.covariance(a, b, need) is None for a in one for b in two):
        return pairs.means(u, v, need)
    parts = _factors(u, v)
    if parts is not None:
        factors = pairs.moment(parts[0], parts[2], need), pairs.moment(parts[1], parts[3], need)
        _account_factors(pairs, u, v)
        return multiply(*factors)
    if first is not None and second is not None:
        if u is v and pairs.left is pairs.right and not pairs.outer and need == "equal":
            variance = pairs.left.variance(_argument(u))
            with measured(pairs.left.numerics, u):
                return first.square(variance)
        if first is second:
            return _both(pairs, u, v, need, first)[0]
        at = _arguments(pairs, u, v, need)
        with measured(pairs.left.numerics, u, v):
            return cross(first, second, *at)
    if series.serves(u) and series.serves(v):
        return series.product(pairs, u, v, need)
    return sampling.product(pairs, u, v, need)


def tangent(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Value:
    """Return Theta(u, v') = sum_ij E[d_i u d_j v'] Theta(g_i, g_j') where one of them is a function."""
    if not (isinstance(u, Apply) and isinstance(v, Apply)):
        return _stein(pairs, u, v, need, "tangent")
    first = closed(u)
    if first is not None and first is closed(v):
        return _closed_tangent(pairs, u, v, need, first)
    parts = _factors(u, v)
    if parts is not None:
        a, b, c, d = parts
        through_first = multiply(pairs.tangent(a, c, need), pairs.moment(b, d, need))
        through_second = multiply(pairs.moment(a, c, need), pairs.tangent(b, d, need))
        _account_factors(pairs, u, v)
        return add((through_first, through_second))
    second = closed(v)
    if first is not None and second is not None and not (u.gains and v.gains):
        inner = pairs.tangent(_argument(u), _argument(v), need)
        if inner is None:
            return None
        cov, one, two = _arguments(pairs, u, v, need)
        with measured(pairs.left.numerics, u, v):
            at_zero = first.expected_slope(one) * second.expected_slope(two)
            slopes = cross_slope(first, second, cov, one, two)
        return inner * torch.where((one > 0) & (two > 0), slopes, at_zero)
    if all(pairs.tangent(a, b, need) is None for a in u.basis for b in v.basis):
        return None
    if series.serves(u) and series.serves(v):
        return series.tangent(pairs, u, v, need)
    return sampling.tangent(pairs, u, v, need)


def _closed_tangent(pairs: PairValues, u: Apply, v: Apply, need: Need, dual: Dual) -> Value:
    a, b = _argument(u), _argument(v)
    inner = pairs.tangent(a, b, need)
    through = None if inner is None else _both(pairs, u, v, need, dual)[1] * inner
    with measured(pairs.left.numerics, u, v):
        correction = gains.correction(pairs, a, b, need, dual)
    return add((through, correction))


def _account_factors(pairs: PairValues, u: Apply, v: Apply) -> None:
    for w in (u, v):
        assert w.factors is not None
        account_product(pairs.left.numerics, w, *w.factors)


def account_terms(pairs: PairValues, u: VectorSum) -> None:
    """Keep the errors of a sum of products of independent factors."""
    for term in u.terms:
        if isinstance(term, Apply) and term.factors is not None:
            account_product(pairs.left.numerics, term, *term.factors)


def _argument(u: Apply) -> Expression:
    """Return the first argument of a function that has a dual, a vector."""
    argument = u.arguments[0]
    assert isinstance(argument, Expression)
    return argument


def _arguments(pairs: PairValues, u: Apply, v: Apply, need: Need) -> tuple[Tensor, Tensor, Tensor]:
    """Return covariance and variances of the arguments of two functions."""
    a, b = _argument(u), _argument(v)
    one = pairs.lift(pairs.left.variance(a), "left", need, len(b.shape))
    two = pairs.lift(pairs.right.variance(b), "right", need, len(a.shape))
    covariance = pairs.covariance(a, b, need)
    return torch.zeros_like(one) if covariance is None else covariance, one, two


def _both(pairs: PairValues, u: Apply, v: Apply, need: Need, dual: Dual) -> tuple[Tensor, Tensor]:
    def both() -> tuple[Tensor, Tensor]:
        cov, one, two = _arguments(pairs, u, v, need)
        numerics = pairs.left.numerics
        with effort(numerics.fineness) as found:
            value, slope = dual.both(cov, one, two)
            slope = dual.by_autograd(slope, one, two)
        before = carried(numerics, u, v)[0]
        change = grown(dual, cov, one, two, before) if before > NOISE else (0.0, 0.0)
        account(numerics, (u, v), found.error, change=change)
        return value, slope

    return pairs.remember(("both", u, v, need), both)


def _stein(
    pairs: PairValues, u: Expression, v: Expression, need: Need, kind: Literal["moment", "tangent"]
) -> Value:
    """Return E[h g'] or Theta(h, g') for a function h and a Gaussian vector g, by Stein's lemma.

    E[h] E[g'] + sum_i E[d_i h] Cov[g_i, g'], or sum_i E[d_i h] Theta(g_i, g').
    """
    left = isinstance(u, Apply)
    h, g = (u, v) if left else (v, u)
    assert isinstance(h, Apply)
    moments = kind == "moment"
    dual = closed(h)
    if not g.gaussian or (dual is None and (g.gains or not h.local)):
        return (sampling.product if moments else sampling.tangent)(
            pairs, as_function(u), as_function(v), need
        )
    terms = [pairs.means(u, v, need) if moments else None]
    if dual is not None and not moments:
        terms.append(gains.against(pairs, _argument(h), g, need, dual, left))
    of = pairs.covariance if moments else pairs.tangent
    for b in h.basis if dual is None else (_argument(h),):
        value = of(b, g, need) if left else of(g, b, need)
        if value is not None:
            gain = slope(pairs.left if left else pairs.right, h, b, moments)
            terms.append(pairs.lift(gain, "left" if left else "right", need, len(g.shape)) * value)
    return add(terms)


def slope(side: SideValues, u: Apply, b: Expression, jumps: bool) -> Tensor:
    """Return E[d u / d b] for one of the vectors that a function depends on, with or without its jumps.

    Covariances see a jump (Stein), gradients do not: autograd takes the derivative of a step to be zero.
    """
    dual = closed(u)
    if dual is not None and u.arguments[0] is b:
        of = dual.gain if jumps else dual.expected_slope

        def gain() -> Tensor:
            variance = side.variance(b)
            with measured(side.numerics, u):
                return of(variance)

        return side.remember(("slope", u, jumps), gain)
    slopes = series.slopes if series.serves(u) else sampling.slopes
    return side.remember(("slopes", u, jumps), lambda: slopes(side, u, jumps))[b]
