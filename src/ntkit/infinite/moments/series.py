"""Expectations of local functions of one Gaussian vector by their Hermite series, whatever the function."""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor

from ntkit.errors import NoRuleError
from ntkit.infinite.duals.effort import fineness, tail, tell, tell_tail
from ntkit.infinite.duals.hermite import coefficients, contract, expand, grid, panels
from ntkit.infinite.duals.judged import SMOOTH, Uncontrolled, apart, edges, judge, kinks, probes
from ntkit.infinite.moments.accuracy import measured
from ntkit.infinite.moments.draws import random
from ntkit.infinite.moments.sampling import at_draws
from ntkit.infinite.variables.algebra import Need, Value, add
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.protocols import PairValues, SideValues
from ntkit.infinite.variables.vectors import Vector

DEGREE = 160
GRID = 1041  # nodes of the even grid; each level has twice as many, and twice the degree
_ORDER = 48  # nodes between two kinks, or two of the panels around them


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
    degree = first.shape[-1] - 2
    with measured(pairs.left.numerics, u, v):
        rests = first[..., -1].square(), second[..., -1].square()
        whole = first.square().sum(-1), second.square().sum(-1)
        tell_tail(rests, whole, rho, degree, (rests[0] == rests[1]) & (rho > 0) if same else None)
    if same:
        value = value + first[..., -1] * second[..., -1] * rho ** (degree + 1)
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
    """Return coefficients ``[n, *shape, degree + 2]`` of u and its derivatives, the rest's norm last."""

    def all_samples() -> dict[Expression, Tensor]:
        nodes = GRID * side.numerics.fineness
        each = 24 * nodes * prod(u.shape)  # bytes: a value and a derivative at all nodes, and a copy
        size = max(1, side.numerics.budget // each)
        with measured(side.numerics, u):
            parts = [_expansions(side, u, slice(i, i + size)) for i in range(0, side.n, size)]
        keys = dict.fromkeys(key for part in parts for key in part)
        return {key: torch.cat([part[key] for part in parts]) for key in keys}

    return side.remember(("hermite", u), all_samples)


def _expansions(side: SideValues, u: Apply, samples: slice) -> dict[Expression, Tensor]:
    """Expand u and its derivatives: on an even grid, or between the kinks that are found on it."""
    g = _random(u)
    shape = (len(range(*samples.indices(side.n))), *u.shape)

    def lift(value: Tensor) -> Tensor:
        return value[samples] if value.shape[0] > 1 else value

    variance = side.numerics.zeros(*shape) if g is None else lift(side.variance(g)).expand(shape)
    whole = None if g is None else side.mean(g)
    average = None if whole is None else lift(whole)
    spread = variance.double().clamp(min=0).sqrt()
    vectors = [b for b in u.basis if isinstance(b, Vector)]

    def drawn_at(z: Tensor) -> dict[Expression, Tensor]:
        """Return u and its derivatives at places ``[Q, *shape]`` in standard deviations, ``[Q, *shape]``."""
        x = spread * z
        ends: dict[Expression, Tensor] = {b: x.new_full(x.shape, b.average) for b in vectors}
        if g is not None:
            ends[g] = x if average is None else x + average
        at = at_draws(u, ends, lift, side, derive=True)
        values = {u: at.value, **at.slopes}  # of a step, whole numbers
        return {key: value.to(x.dtype).expand(x.shape) for key, value in values.items()}

    nodes = grid(variance.device)
    on_grid = {
        k: v.movedim(0, -1)
        for k, v in drawn_at(nodes.reshape(-1, *[1] * len(shape)).expand(-1, *shape)).items()
    }
    keys = list(on_grid)
    try:
        error = max(judge(v, nodes, lambda z, k=k: drawn_at(z)[k]) for k, v in on_grid.items())
    except Uncontrolled as reason:
        raise NoRuleError(
            f"The function {u.function.name} of a vector of variance up to {float(variance.max()):.3g} has "
            f"no second moment: {reason}. The theory is of controlled functions (Cappelletti 2019, Def. "
            f"2.1); a bounded one, or a clamp in front of it, has a limit."
        ) from reason
    drawn = [on_grid[k] for k in keys]
    evaluate = lambda z: [drawn_at(z)[k] for k in keys]  # noqa: E731
    places = kinks(drawn, nodes, evaluate) if error > SMOOTH else None
    if places is None:

        def of(values: Tensor, degree: int) -> Tensor:
            return coefficients(lambda _: values, variance, degree)

    else:
        between = edges(places, float(nodes[-1]))
        nodes, weights = panels(between, _ORDER * fineness())
        coarse = panels(between, _ORDER // 2 * fineness())
        rough = [probes(v.movedim(0, -1), *coarse) for v in evaluate(coarse[0].movedim(-1, 0))]
        drawn = [v.movedim(0, -1) for v in evaluate(nodes.movedim(-1, 0))]

        def of(values: Tensor, degree: int) -> Tensor:
            return expand(values, nodes, weights, degree).to(variance.dtype)

        error = max(apart(a, probes(b, nodes, weights)) for a, b in zip(rough, drawn, strict=True))
    series: dict[Expression, Tensor] = {}
    for key, values in zip(keys, drawn, strict=True):
        a = of(values, DEGREE * fineness())
        rest = tail(a, of(values.square(), 0)[..., 0]).sqrt()
        series[key] = torch.cat([a, rest[..., None]], -1)
    tell(error)
    return series
