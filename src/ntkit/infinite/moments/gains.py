"""Trained scales inside a function: what they add to its tangent kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.infinite.duals.correlation import correlation
from ntkit.infinite.duals.dual import Dual
from ntkit.infinite.variables import vectors as vec
from ntkit.infinite.variables.algebra import Need, Value, add
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.protocols import PairValues, SideValues

Slopes = tuple[tuple[vec.Vector, Expression], ...]


def slopes(e: Expression) -> Slopes | None:
    """Return d e / d gamma for each trained scale gamma in a Gaussian vector; None where one has positions.

    A scale with a number for each position is no number that moves with its vector.
    """
    if "slopes" not in e.__dict__:
        e.__dict__["slopes"] = _slopes(e)
    return e.__dict__["slopes"]


def _slopes(e: Expression) -> Slopes | None:
    if not e.gains or isinstance(e, vec.Stopped):
        return ()
    parts = e.terms if isinstance(e, vec.VectorSum) else (e.inner,) if isinstance(e, vec.Linear) else None
    if parts is None:
        return None
    inner: list[tuple[vec.Vector, Expression]] = []
    for part in parts:
        found = slopes(part)
        if found is None:
            return None
        inner += found
    match e:
        case vec.VectorSum():
            return tuple(inner)
        case vec.Gain():
            if any(s != 1 for s in e.vector.shape) or not e.inner.centered:
                return None
            through = tuple((g, vec.Multiple(x.shape, e.vector.average, x)) for g, x in inner)
            return ((e.vector, e.inner), *through)
        case vec.Multiple():
            return tuple((g, vec.Multiple(e.shape, e.factor, x)) for g, x in inner)
        case vec.Moved():
            return tuple((g, vec.Moved(e.shape, e.move, x)) for g, x in inner)
        case vec.Mixed():
            return tuple((g, vec.Mixed(e.shape, e.weights, x)) for g, x in inner)
    return None


def _step(a: vec.Vector, b: vec.Vector) -> float:
    """Return the rate of a scale that two vectors share; zero where they share none."""
    return a.law.step if a.name == b.name and a.shares(b) else 0.0


def _shared(u: Expression, v: Expression) -> list[tuple[float, Expression, Expression]]:
    pairs = [(_step(a, b), x, y) for a, x in slopes(u) or () for b, y in slopes(v) or ()]
    return [pair for pair in pairs if pair[0]]


def correction(pairs: PairValues, u: Expression, v: Expression, need: Need, dual: Dual) -> Value:
    """Return sum_gamma step (E[f f' x x'] - E[f f'] E[x x']) for f = phi'(u) and x = du / dgamma.

    Given u = sd1 a and v = sd2 (rho a + q b) with independent a and b, x x' is replaced by its part along a
    and b, the rest being independent of f f'.
    """
    shared = _shared(u, v)
    if not shared:
        return None
    one = pairs.lift(pairs.left.variance(u), "left", need, len(v.shape))
    two = pairs.lift(pairs.right.variance(v), "right", need, len(u.shape))
    value = pairs.covariance(u, v, need)
    cov = torch.zeros_like(one * two) if value is None else value
    sd1, sd2 = _safe(one), _safe(two)
    rho, q = correlation(cov, one, two)
    apart = torch.where(q > NEAR, q, torch.inf)
    aa, ab, bb = dual.curved(cov, one, two)

    def along(own: Tensor, other: Value, own_first: bool) -> tuple[Tensor, Tensor]:
        """Return the parts along a and b of a vector, from its covariances with u and v."""
        other = torch.zeros_like(own) if other is None else other
        a, second = (own / sd1, other / sd2) if own_first else (other / sd1, own / sd2)
        return a, (second - rho * a) / apart

    terms = []
    for step, x, y in shared:
        own = pairs.lift(_itself(pairs.left, x, u), "left", need, len(v.shape))
        x_a, x_b = along(own, pairs.covariance(x, v, need), True)
        own = pairs.lift(_itself(pairs.right, y, v), "right", need, len(u.shape))
        y_a, y_b = along(own, pairs.covariance(u, y, need), False)
        terms.append(step * (x_a * y_a * aa + (x_a * y_b + x_b * y_a) * ab + x_b * y_b * bb))
    return add(terms)


NEAR = 3e-7  # sqrt(1 - rho^2) below which two vectors count as one


def against(pairs: PairValues, u: Expression, g: Expression, need: Need, dual: Dual, left: bool) -> Value:
    """Return sum_gamma step (E[f x y] - E[f] E[x y]) for f = phi'(u), x = du / dgamma and y = dg / dgamma.

    ``left``: u belongs to the left sample.
    """
    terms = []
    side = pairs.left if left else pairs.right
    where, other = ("left", len(g.shape)) if left else ("right", len(g.shape))
    variance = side.variance(u)
    second = dual.curvature(variance) / _safe(variance) ** 2
    for step, x, y in _shared(u, g):
        crossed = pairs.covariance(u, y, need) if left else pairs.covariance(y, u, need)
        if crossed is not None:
            own = pairs.lift(_itself(side, x, u) * second, where, need, other)  # pyright: ignore
            terms.append(step * own * crossed)
    return add(terms)


def _itself(side: SideValues, x: Expression, u: Expression) -> Tensor:
    value = side.itself.covariance(x, u, "equal")
    return side.numerics.zeros(1, *(1 for _ in u.shape)) if value is None else value


def _safe(variance: Tensor) -> Tensor:
    return torch.where(variance > 0, variance, 1.0).sqrt()
