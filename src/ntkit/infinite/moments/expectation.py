"""Expectations of functions of Gaussian vectors: closed forms first, then series, then sampling."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import Dual, cross, cross_slope
from ntkit.infinite.moments import sampling, series
from ntkit.infinite.moments.algebra import Need, Value, add, multiply
from ntkit.infinite.moments.expression import Expression, walk
from ntkit.infinite.moments.functions import Apply, unrelated
from ntkit.infinite.moments.protocols import PairValues, SideValues
from ntkit.infinite.moments.vectors import Gain, Vector, VectorSum


def closed(u: Apply) -> Dual | None:
    """Return the dual of a function of one centered Gaussian, where that is all that is needed."""
    argument = u.arguments[0]
    if u.function.dual is None or len(u.arguments) != 1 or not isinstance(argument, Expression):
        return None
    if not argument.gaussian or not argument.centered:
        return None
    return u.function.dual if not argument.gains or gain_of(argument) is not None else None


def gain_of(argument: Expression) -> Gain | None:
    """Return the trained scale of a Gaussian argument that is this scale times a vector, and a shift."""
    terms = argument.terms if isinstance(argument, VectorSum) else (argument,)
    gains = [term for term in terms if term.gains]
    rest = [term for term in terms if not term.gains]
    gain = gains[0] if len(gains) == 1 else None
    if not isinstance(gain, Gain) or gain.inner.gains or not gain.vector.average:
        return None
    if not all(isinstance(term, Vector) and not term.law.variance and not term.average for term in rest):
        return None
    return gain if all(s == 1 for s in gain.vector.shape) else None


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
        return dual.mean(side.variance(_argument(u)))
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
    if sampling.by_rows(u, v):
        return sampling.product(pairs, u, v, need)
    if all(pairs.covariance(a, b, need) is None for a in u.basis for b in v.basis):
        return pairs.means(u, v, need)
    parts = _factors(u, v)
    if parts is not None:
        return multiply(pairs.moment(parts[0], parts[2], need), pairs.moment(parts[1], parts[3], need))
    first, second = closed(u), closed(v)
    if first is not None and second is not None:
        if u is v and pairs.left is pairs.right and not pairs.outer and need == "equal":
            return first.square(pairs.left.variance(_argument(u)))
        if first is second:
            return _both(pairs, u, v, need, first)[0]
        return cross(first, second, *_arguments(pairs, u, v, need))
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
        return add((through_first, multiply(pairs.moment(a, c, need), pairs.tangent(b, d, need))))
    second = closed(v)
    if first is not None and second is not None and not (u.gains or v.gains):
        inner = pairs.tangent(u.basis[0], v.basis[0], need)
        if inner is None:
            return None
        cov, one, two = _arguments(pairs, u, v, need)
        at_zero = first.expected_slope(one) * second.expected_slope(two)
        return inner * torch.where((one > 0) & (two > 0), cross_slope(first, second, cov, one, two), at_zero)
    if sampling.by_rows(u, v):
        return sampling.tangent(pairs, u, v, need)
    if all(pairs.tangent(a, b, need) is None for a in u.basis for b in v.basis):
        return None
    if series.serves(u) and series.serves(v):
        return series.tangent(pairs, u, v, need)
    return sampling.tangent(pairs, u, v, need)


def _closed_tangent(pairs: PairValues, u: Apply, v: Apply, need: Need, dual: Dual) -> Value:
    a, b = _argument(u), _argument(v)
    first, second = gain_of(a), gain_of(b)
    if first is None and second is None:
        inner = pairs.tangent(a, b, need)
        return None if inner is None else _both(pairs, u, v, need, dual)[1] * inner
    if first is None or second is None:
        return sampling.tangent(pairs, u, v, need)
    factor = first.vector.average * second.vector.average
    shifts = [pairs.tangent(s, t, need) for s in _shifts(a) for t in _shifts(b)]
    through = pairs.tangent(first.inner, second.inner, need)
    inner = add((*shifts, None if through is None else factor * through))
    total = None if inner is None else inner * _both(pairs, u, v, need, dual)[1]
    trained = pairs.tangent(first.vector, second.vector, need)
    if trained is None:
        return total
    return add((total, dual.radial(*_arguments(pairs, u, v, need)) * (trained / factor)))


def _shifts(argument: Expression) -> list[Expression]:
    return [t for t in argument.terms if not t.gains] if isinstance(argument, VectorSum) else []


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
        value, slope = dual.both(cov, one, two)
        return value, dual.by_autograd(slope, one, two)

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
    if g.gains or not h.local:
        return (sampling.product if moments else sampling.tangent)(pairs, u, v, need)
    terms = [pairs.means(u, v, need) if moments else None]
    of = pairs.covariance if moments else pairs.tangent
    for b in h.basis:
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
        return side.remember(("slope", u, jumps), lambda: of(side.variance(b)))
    slopes = series.slopes if series.serves(u) else sampling.slopes
    return side.remember(("slopes", u, jumps), lambda: slopes(side, u, jumps))[b]
