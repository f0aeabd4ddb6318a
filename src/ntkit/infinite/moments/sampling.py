"""Expectations by coordinate sampling: draw the G-variables of two samples, apply the user's function.

With H and D_i = d h / d g_i on the same S points, E[h h'] = H^T H' / S and the tangent kernel is
sum_ij (D_i^T D_j' / S) Theta(g_i, g_j'). A value depends on its two samples only (all positions of both),
whatever the tiles; each pair is drawn in both orders, so that the kernel is symmetric.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.moments.draws import JointDraws, basis
from ntkit.infinite.moments.evaluate import Lift, evaluate
from ntkit.infinite.moments.jacobians import jacobians, pattern
from ntkit.infinite.variables.algebra import Need, Value, add, at_equal
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.expression import apart as independent
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.protocols import PairValues, SideValues
from ntkit.infinite.variables.vectors import Vector


@dataclass
class Drawn:
    """One vector at its draws, with its derivatives by the vectors of its basis."""

    value: Tensor  # [S, B, *shape]
    slopes: dict[Expression, Tensor]  # [S, B, *shape, *rows], or [S, B, P, Q] for all pairs of positions


def at_draws(
    u: Expression, drawn: dict[Expression, Tensor], lift: Lift, side: SideValues, derive: bool
) -> Drawn:
    """Return a vector at draws of its basis, and its derivatives with respect to each of the basis."""
    if not isinstance(u, Apply):
        return Drawn(drawn[u], {u: torch.ones_like(drawn[u])} if derive else {})
    if not derive:
        return Drawn(evaluate(u, drawn, lift, side), {})
    with torch.enable_grad():
        leaves = {b: t.detach() for b, t in drawn.items()}
        if u.local:  # a vector that broadcasts has a derivative for each position
            shape = torch.broadcast_shapes(*(t.shape for t in leaves.values()))
            leaves = {b: t.expand(shape) for b, t in leaves.items()}
        else:  # and one for each draw, where it is drawn alike
            lead = torch.broadcast_shapes(*(t.shape[:2] for t in leaves.values()))
            leaves = {b: t.expand(*lead, *t.shape[2:]) for b, t in leaves.items()}
        if u.axes is not None and not u.local:
            leaves = {b: _spread(t, u, b) for b, t in leaves.items()}
        mixed = u.axes is None
        leaves = pattern(u).repeated(leaves) if mixed else leaves
        leaves = {b: t.clone().requires_grad_() for b, t in leaves.items()}
        value = evaluate(u, leaves, lift, side)
        slopes = jacobians(u, value, leaves) if mixed else _slopes(value, leaves)
    return Drawn(value.detach(), slopes)


def _spread(t: Tensor, u: Apply, b: Expression) -> Tensor:
    """Return draws of a vector of the basis at each position of a function, and at each place of its rows."""
    assert u.axes is not None
    return t.expand(*t.shape[: t.ndim - len(b.shape)], *u.shape, *b.shape[len(b.shape) - u.axes[b] :])


def _slopes(value: Tensor, leaves: dict[Expression, Tensor]) -> dict[Expression, Tensor]:
    if not value.requires_grad:
        return {}
    gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    return {b: g for b, g in zip(leaves, gradients, strict=True) if g is not None}


def product(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Tensor:
    """Return E[u v']."""
    return _sampled(pairs, u, v, need, pairs.derive)[0]


def tangent(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Value:
    """Return sum_ij E[d_i u d_j v'] Theta(g_i, g_j')."""
    return _sampled(pairs, u, v, need, True)[1]


def _sampled(
    pairs: PairValues, u: Expression, v: Expression, need: Need, derive: bool
) -> tuple[Tensor, Value]:
    """Return both from the same draws; the second only where it is wanted."""
    key = ("sampled", u, v, need, derive)
    return pairs.remember(key, lambda: _sample(pairs, u, v, need, derive))


def _sample(
    pairs: PairValues, u: Expression, v: Expression, need: Need, derive: bool
) -> tuple[Tensor, Value]:
    draws = JointDraws(pairs, u, v, need)
    means: tuple[list[Tensor], list[Tensor]] = ([], [])
    parts, points = draws.chunks(derive)
    how = "each pair of positions" if draws.apart else "all positions together"
    names = " and ".join(dict.fromkeys(e.function.name for e in (u, v) if isinstance(e, Apply)))
    draws.numerics.planned(names, how, draws.samples, points, draws.bytes(derive))
    for chunk in parts:
        orders = [(0, 1)] if draws.alone else [(0, 1), (1, 0)]
        found = [_ordered(draws, order, chunk, points, derive) for order in orders]
        for values, part in zip(means, zip(*found, strict=True), strict=True):
            total = add(part)
            if total is not None:
                values.append(total / len(part))

    def whole(values: list[Tensor]) -> Value:
        if not values or draws.apart:
            return torch.cat(values).reshape(draws.shape) if values else None
        shaped = torch.cat(values).reshape(*pairs.batch, *u.shape, *v.shape)
        return at_equal(shaped, u.shape, v.shape) if need == "equal" else shaped

    value = whole(means[0])
    assert value is not None
    return value, whole(means[1])


def _ordered(
    draws: JointDraws, order: tuple[int, int], chunk: slice, points: list[slice], derive: bool
) -> tuple[Tensor, Value]:
    """Return both from the points, some at a time."""
    (u, v), (left, right) = draws.vectors, draws.sides
    factors = draws.factors(order, chunk)
    between = _between(draws, chunk) if derive else {}
    draws.numerics.sampled = True
    moment: Value = None
    squares: list[Value] = [None, None]
    theta: Value = None
    for part in points:
        size = part.stop - part.start
        drawn = draws.draw(order, chunk, part, factors)
        first = at_draws(u, drawn[0], draws.lift(0, chunk), left, derive)
        second = first if draws.alone else at_draws(v, drawn[1], draws.lift(1, chunk), right, derive)
        if derive:
            theta = add((theta, _tangent(draws, first, second, between, size)))
        moment = add((moment, _product(draws, first.value, second.value, squares, size)))
    assert moment is not None
    value = moment / draws.samples
    theta = None if theta is None else theta / draws.samples
    if draws.apart:
        return value, theta
    one, two = (_correction(draws, which, squares[which], chunk) for which in (0, 1))
    return value * one[:, :, None] * two[:, None, :], theta


def _product(draws: JointDraws, a: Tensor, b: Tensor, squares: list[Value], size: int) -> Tensor:
    """Return the sum of products over some points; add those of the squares."""
    if draws.apart:
        return (a * b).expand(size, -1).sum(0)
    both = zip((a, b), draws.vectors, strict=True)
    a, b = (t.expand(size, -1, *e.shape).reshape(size, -1, prod(e.shape)) for t, e in both)
    squares[:] = [add((total, t.square().sum(0))) for total, t in zip(squares, (a, b), strict=True)]
    return torch.einsum("sbp,sbq->bpq", a, b)


def _correction(draws: JointDraws, which: int, squares: Value, chunk: slice) -> Tensor:
    """Return sqrt(E[h^2] / its mean over the draws): no correlation then exceeds one.

    E[h^2] at a position is an integral of few dimensions, known much better than what many positions share.
    """
    e = draws.vectors[which]
    assert squares is not None
    drawn = squares / draws.samples
    square = draws.sides[which].itself.moment(e, e, "equal") if isinstance(e, Apply) and e.local else None
    if square is None:
        return torch.ones_like(drawn)
    known = draws.lift(which, chunk)(square.expand(square.shape[0], *e.shape).reshape(square.shape[0], -1))
    tiny = torch.finfo(drawn.dtype).tiny
    return torch.where(drawn > 0, known / drawn.clamp(min=tiny), 1.0).clamp(min=0).sqrt()


Between = dict[tuple[Expression, Expression], Tensor]  # tangent kernels, [B] or [B, size, size]


def _between(draws: JointDraws, chunk: slice) -> Between:
    """Return the tangent kernels of the vectors that two functions depend on."""
    found: Between = {}
    for a in basis(draws.vectors[0]):
        for b in basis(draws.vectors[1]):
            if independent(a, b) or (isinstance(a, Vector) and isinstance(b, Vector) and not a.shares(b)):
                continue
            theta = draws.pairs.tangent(a, b, draws.need)
            if theta is not None:
                found[a, b] = draws.flat(theta, a, b)[chunk]
    return found


def _tangent(draws: JointDraws, first: Drawn, second: Drawn, between: Between, size: int) -> Value:
    """Return the sum of E[d_a u Theta(a, b) d_b v'] over some points."""
    terms = []
    for (a, b), theta in between.items():
        if a in first.slopes and b in second.slopes:
            terms.append(_contract(draws, first.slopes[a], second.slopes[b], theta, (a, b), size))
    return add(terms)


def _contract(
    draws: JointDraws,
    left: Tensor,
    right: Tensor,
    theta: Tensor,
    ends: tuple[Expression, Expression],
    count: int,
) -> Tensor:
    if draws.apart:
        return (left * right).expand(count, -1).sum(0) * theta
    (u, v), (a, b) = draws.vectors, ends
    pair, rows, columns = theta.shape[0], _rows(u, a), _rows(v, b)
    if rows is not None and columns is not None:
        first, second = (*u.shape, *rows), (*v.shape, *columns)
        both = zip((left, right), (first, second), strict=True)
        left, right = (t.expand(count, pair, *shape).reshape(count, pair, -1) for t, shape in both)
        full = theta.reshape(pair, *_padded(a.shape, first), *_padded(b.shape, second))
        full = full.expand(pair, *first, *second).reshape(pair, prod(first), prod(second))
        product = torch.einsum("sbp,sbq->bpq", left, right) * full
        return product.reshape(pair, prod(u.shape), prod(rows), prod(v.shape), -1).sum((2, 4))
    left, right = _dense(left, count, u, rows, pair), _dense(right, count, v, columns, pair)
    through = torch.einsum("sbpr,brt->sbpt", left, theta)
    return torch.einsum("sbpt,sbqt->bpq", through, right)


def _padded(shape: tuple[int, ...], wanted: tuple[int, ...]) -> tuple[int, ...]:
    return (1,) * (len(wanted) - len(shape)) + shape


def _rows(e: Expression, b: Expression) -> tuple[int, ...] | None:
    """Return the shape of the rows that a function takes of a vector, None where it mixes positions."""
    if not isinstance(e, Apply):
        return ()
    return None if e.axes is None else b.shape[len(b.shape) - e.axes[b] :]


def _dense(slopes: Tensor, count: int, e: Expression, rows: tuple[int, ...] | None, pair: int) -> Tensor:
    """Return derivatives for all pairs of positions, ``[S, B, P, Q]``."""
    if rows is None:
        return slopes
    p = prod(e.shape)
    slopes = slopes.expand(count, pair, *e.shape, *rows).reshape(count, pair, p, prod(rows))
    return torch.diag_embed(slopes.mT).movedim(-3, -1).flatten(-2)


def mean(side: SideValues, u: Apply) -> Tensor:
    """Return E[u], ``[n, *shape]``."""
    return _alone(side, u, False)[u]


def slopes(side: SideValues, u: Apply, _: bool) -> dict[Expression, Tensor]:
    """Return E[d u / d b] for the vectors b that a function depends on, at the same position."""
    return _alone(side, u, True)


def _alone(side: SideValues, u: Apply, derive: bool) -> dict[Expression, Tensor]:
    draws = JointDraws(side.itself, u, u, "equal")
    draws.numerics.sampled = True
    means: dict[Expression, list[Tensor]] = {}
    parts, points = draws.chunks(derive)
    for chunk in parts:
        factors, count = draws.factors((0, 1), chunk), len(range(*chunk.indices(draws.count)))
        sums: dict[Expression, Tensor] = {}
        for part in points:
            drawn = draws.draw((0, 1), chunk, part, factors)[0]
            at = at_draws(u, drawn, draws.lift(0, chunk), side, derive)
            for key, value in (at.slopes if derive else {u: at.value}).items():
                shape = (part.stop - part.start, count, *(() if draws.apart else u.shape))
                total = value.expand(shape).sum(0)
                sums[key] = sums[key] + total if key in sums else total
        for key, total in sums.items():
            means.setdefault(key, []).append(total / draws.samples)
    return {key: torch.cat(pieces).reshape(side.n, *u.shape) for key, pieces in means.items()}
