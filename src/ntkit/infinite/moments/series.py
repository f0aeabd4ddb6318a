"""Expectations of local functions of one Gaussian vector by their Hermite series, whatever the function."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ntkit.infinite.duals.hermite import coefficients, contract, places
from ntkit.infinite.moments.algebra import Need, Value, add
from ntkit.infinite.moments.draws import random
from ntkit.infinite.moments.expression import Expression
from ntkit.infinite.moments.functions import Apply
from ntkit.infinite.moments.protocols import PairValues, SideValues
from ntkit.infinite.moments.sampling import at_draws
from ntkit.infinite.moments.vectors import Vector

DEGREE = 160


def serves(u: Expression) -> bool:
    """Return whether a function is local, of at most one vector that is random."""
    return isinstance(u, Apply) and u.local and sum(map(random, u.basis)) <= 1


def mean(side: SideValues, u: Apply) -> Tensor:
    """Return E[u], ``[n, *shape]``."""
    return _coefficients(side, u)[u][..., 0]


def slopes(side: SideValues, u: Apply, jumps: bool) -> dict[Expression, Tensor]:
    """Return E[d u / d b] for each vector b of the basis (``jumps``: as covariances see it, E[u z] / std)."""
    series = _coefficients(side, u)
    result = {b: c[..., 0] for b, c in series.items() if b is not u}
    g = _random(u)
    if jumps and g is not None:
        std = side.variance(g).sqrt()
        safe = std.clamp(min=torch.finfo(std.dtype).tiny)
        result[g] = torch.where(std > 0, series[u][..., 1] / safe, result[g])
    return result


def product(pairs: PairValues, u: Apply, v: Apply, need: Need) -> Tensor:
    """Return E[u v'] = sum_k a_k a_k' rho^k."""
    a, b = _coefficients(pairs.left, u)[u], _coefficients(pairs.right, v)[v]
    return _contract(pairs, u, v, a, b, need, u is v)


def tangent(pairs: PairValues, u: Apply, v: Apply, need: Need) -> Value:
    """Return sum_ij E[d_i u d_j v'] Theta(g_i, g_j')."""
    first, second = _coefficients(pairs.left, u), _coefficients(pairs.right, v)
    terms = []
    for a in u.basis:
        for b in v.basis:
            theta = pairs.tangent(a, b, need)
            if theta is not None and a in first and b in second:
                terms.append(_contract(pairs, u, v, first[a], second[b], need, a is b) * theta)
    return add(terms)


def _contract(pairs: PairValues, u: Apply, v: Apply, a: Tensor, b: Tensor, need: Need, same: bool) -> Tensor:
    positions = (len(u.shape), len(v.shape))
    first, second = _lift(pairs, a, "left", need, positions[1]), _lift(pairs, b, "right", need, positions[0])
    rho = _correlation(pairs, u, v, need)
    value = contract(first[..., :-1], second[..., :-1], rho)
    if same:
        value = value + first[..., -1] * second[..., -1] * rho ** (DEGREE + 1)
    return value


def _lift(pairs: PairValues, c: Tensor, side: Literal["left", "right"], need: Need, other: int) -> Tensor:
    lifted = [pairs.lift(part, side, need, other) for part in c.unbind(-1)]
    return torch.stack(lifted, -1)


def _random(u: Apply) -> Expression | None:
    return next((b for b in u.basis if random(b)), None)


def _correlation(pairs: PairValues, u: Apply, v: Apply, need: Need) -> Tensor:
    a, b = _random(u), _random(v)
    value = None if a is None or b is None else pairs.covariance(a, b, need)
    if a is None or b is None or value is None:
        return pairs.left.numerics.zeros(*[1] * len((*pairs.batch, *u.shape, *v.shape)))
    one = pairs.lift(pairs.left.variance(a), "left", need, len(v.shape))
    two = pairs.lift(pairs.right.variance(b), "right", need, len(u.shape))
    scale = (one * two).clamp(min=torch.finfo(value.dtype).tiny).rsqrt()
    return (value * scale).clamp(-1, 1)


def _coefficients(side: SideValues, u: Apply) -> dict[Expression, Tensor]:
    """Return coefficients ``[n, *shape, DEGREE + 2]`` of u and its derivatives, the rest's norm last."""
    return side.remember(("hermite", u), lambda: _expansions(side, u))


def _expansions(side: SideValues, u: Apply) -> dict[Expression, Tensor]:
    g = _random(u)
    shape = (side.n, *u.shape)
    variance = side.numerics.zeros(*shape) if g is None else side.variance(g).expand(shape)
    average = None if g is None else side.mean(g)
    grid = places(variance).movedim(-1, 0)
    vectors = (b for b in u.basis if isinstance(b, Vector))
    ends: dict[Expression, Tensor] = {b: grid.new_full(grid.shape, b.average) for b in vectors}
    if g is not None:
        ends[g] = grid if average is None else grid + average
    at = at_draws(u, ends, lambda value: value, side, derive=True)
    drawn = {u: at.value, **at.slopes}
    series: dict[Expression, Tensor] = {}
    for key, value in drawn.items():
        values = value.expand(grid.shape).movedim(0, -1)
        a = coefficients(lambda _, values=values: values, variance, DEGREE)
        square = coefficients(lambda _, values=values: values.square(), variance, 0)[..., 0]
        rest = (square - a.square().sum(-1)).clamp(min=0).sqrt()
        series[key] = torch.cat([a, rest[..., None]], -1)
    return series
