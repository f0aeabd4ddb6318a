"""Expectations by coordinate sampling: draw the G-variables of two samples, apply the user's function.

With H and D_i = d h / d g_i on the same S points, E[h h'] = H^T H' / S and the tangent kernel is
sum_ij (D_i^T D_j' / S) Theta(g_i, g_j'). A value depends on its two samples only (all positions of both),
whatever the tiles; each pair is drawn in both orders, so that the kernel is symmetric.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ntkit.compute.plan import chunks
from ntkit.infinite.expressions import (
    Apply,
    Coefficient,
    Expression,
    Gain,
    Mixed,
    Moved,
    Offset,
    Scaled,
    Shape,
    Stopped,
    Sum,
    Vector,
)

if TYPE_CHECKING:
    from ntkit.infinite.pairs import Need, Pairs, Side, Value

Lift = Callable[[Tensor], Tensor]  # a value [n, *shape] of a side, to broadcast with its draws

BLOCKS = 8  # of points, whose spread gives the standard error
FEW = 64  # pairs of positions that are each drawn on their own: fewer dimensions, smaller error


def random(b: Expression) -> bool:
    """Return whether a vector varies between coordinates (parameters that are all equal do not)."""
    return not (isinstance(b, Vector) and not b.law.variance)


def evaluate(u: Expression, drawn: dict[Expression, Tensor], lift: Lift, side: Side) -> Tensor:
    """Return a function of vectors at draws ``[..., *shape]`` of those vectors."""
    done = dict(drawn)

    def of(e: Expression) -> Tensor:
        if e not in done:
            match e:
                case Sum():
                    done[e] = sum((of(t) for t in e.terms[1:]), of(e.terms[0]))
                case Scaled():
                    factor = side.factor(e)
                    done[e] = of(e.inner) * (lift(factor) if isinstance(factor, Tensor) else factor)
                case Gain():
                    done[e] = of(e.vector) * of(e.inner)
                case Moved():
                    done[e] = e.move.apply(of(e.inner))
                case Mixed():
                    weights, inner = lift(e.weights.value(side)), of(e.inner)
                    done[e] = (weights @ inner.unsqueeze(-1)).squeeze(-1)
                case Stopped():
                    done[e] = of(e.inner).detach()
                case Offset():
                    done[e] = lift(e.coefficient.value(side))
                case Apply():
                    args = [lift(a.value(side)) if isinstance(a, Coefficient) else of(a) for a in e.arguments]
                    done[e] = e.function.call(*args)
                case _:
                    raise AssertionError(e)
        return done[e]

    return of(u)


@dataclass
class Drawn:
    """One vector of a side at its draws, with its derivatives."""

    value: Tensor  # [S, B, *shape]
    slopes: dict[Expression, Tensor]  # [S, B, *shape], or [S, B, *shape, *shape of the basis]


def at_draws(u: Expression, drawn: dict[Expression, Tensor], lift: Lift, side: Side, derive: bool) -> Drawn:
    """Return a vector at draws of its basis, and its derivatives with respect to each of the basis."""
    if not derive:
        return Drawn(evaluate(u, drawn, lift, side), {})
    if not isinstance(u, Apply) and u in drawn:
        return Drawn(drawn[u], {u: torch.ones_like(drawn[u])})
    local = not isinstance(u, Apply) or u.local
    with torch.enable_grad():
        leaves = {b: t.detach() for b, t in drawn.items()}
        if local:  # a vector that broadcasts has a derivative for each position
            shape = torch.broadcast_shapes(*(t.shape for t in leaves.values()))
            leaves = {b: t.expand(shape) for b, t in leaves.items()}
        leaves = {b: t.clone().requires_grad_() for b, t in leaves.items()}
        value = evaluate(u, leaves, lift, side)
        slopes = _slopes(value, leaves) if local else _jacobians(value, leaves, len(u.shape))
    return Drawn(value.detach(), slopes)


def _slopes(value: Tensor, leaves: dict[Expression, Tensor]) -> dict[Expression, Tensor]:
    if not value.requires_grad:
        return {}
    found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    return {b: g for b, g in zip(leaves, found, strict=True) if g is not None}


def _jacobians(value: Tensor, leaves: dict[Expression, Tensor], positions: int) -> dict[Expression, Tensor]:
    """Return d value / d leaf for all pairs of positions, ``[S, B, P, Q]`` with flat positions."""
    lead = value.shape[: value.ndim - positions]
    flat = value.reshape(*lead, -1)
    rows = []
    for p in range(flat.shape[-1]):
        found = torch.autograd.grad(flat[..., p].sum(), list(leaves.values()), retain_graph=True, allow_unused=True)
        rows.append([torch.zeros_like(t) if g is None else g for g, t in zip(found, leaves.values(), strict=True)])
    return {
        b: torch.stack([row[i].reshape(*lead, -1) for row in rows], -2) for i, b in enumerate(leaves)
    }


class _Plan:
    """What is drawn together for two vectors: each pair of positions apart, or all positions at once."""

    def __init__(self, pairs: Pairs, u: Expression, v: Expression, need: Need) -> None:
        self.pairs, self.u, self.v = pairs, u, v
        local = all(not isinstance(e, Apply) or e.local for e in (u, v))
        few = prod(u.shape) * prod(v.shape) <= FEW
        self.apart = local and (need == "equal" or few)
        self.need: Need = need if self.apart else "all"
        self.bases = [_basis(u), _basis(v)]
        self.points = pairs.left.points
        n1, n2 = pairs.left.n, pairs.right.n
        if self.apart:
            self.shape = self._shape()
            self.count = prod(self.shape)
        else:
            self.shape = pairs.batch
            self.count = prod(self.shape)
            grid = torch.arange(n1 * n2) if pairs.outer else None
            self.index = (grid // n2, grid % n2) if grid is not None else (torch.arange(n1), torch.arange(n1))

    def _shape(self) -> Shape:
        positions = (*self.u.shape, *self.v.shape)
        if self.need == "equal":
            positions = tuple(torch.broadcast_shapes(self.u.shape, self.v.shape))
        return (*self.pairs.batch, *positions)

    def chunk(self) -> int:
        """Return how many pairs are drawn at a time."""
        each = sum(prod(b.shape) if not self.apart else 1 for basis in self.bases for b in basis)
        held = self.points.count * self.points.zeros(1).element_size() * 4 * max(each, 1)
        return max(1, self.points.budget // held)

    def lift(self, which: int, chunk: slice) -> Lift:
        """Return how values of a side broadcast with the draws of a chunk of pairs."""
        pairs, other = self.pairs, (self.v, self.u)[which]
        if self.apart:
            name = ("left", "right")[which]

            def spread(value: Tensor) -> Tensor:
                lifted = pairs.lift(value, name, self.need, len(other.shape))  # pyright: ignore
                return lifted.expand(self.shape).reshape(-1)[chunk]

            return spread
        index = self.index[which][chunk]
        return lambda value: value[index] if value.shape[0] > 1 else value

    def blocks(self, first: int, second: int, chunk: slice) -> Tensor:
        """Return the covariances of what is drawn for two of the two vectors, ``[B, m, m']``."""
        rows = []
        for a in self.bases[first]:
            row = [self._block(a, b, first, second, chunk) for b in self.bases[second]]
            rows.append(torch.cat(row, -1))
        return torch.cat(rows, -2)

    def _block(self, a: Expression, b: Expression, first: int, second: int, chunk: slice) -> Tensor:
        sides = (self.pairs.left, self.pairs.right)
        if first == second:
            value = sides[first].own.covariance(a, b, "equal" if self.apart else "all")
        elif first == 0:
            value = self.pairs.covariance(a, b, self.need)
        else:
            return self._block(b, a, 0, 1, chunk).transpose(-1, -2)
        size = (1, 1) if self.apart else (prod(a.shape), prod(b.shape))
        count = len(range(*chunk.indices(self.count)))
        if value is None:
            return self.points.zeros(count, *size)
        if self.apart:
            flat = self.lift(first, chunk)(value) if first == second else value.expand(self.shape).reshape(-1)[chunk]
            return flat[:, None, None]
        value = value.expand(*value.shape[: value.ndim - len(a.shape) - len(b.shape)], *a.shape, *b.shape)
        if first == second:
            return self.lift(first, chunk)(value.reshape(value.shape[0], *size)).expand(count, *size)
        return value.expand(*self.pairs.batch, *a.shape, *b.shape).reshape(-1, *size)[chunk]

    def draw(self, order: tuple[int, int], chunk: slice, alone: bool) -> list[dict[Expression, Tensor]]:
        """Return draws ``[S, B, *shape]`` of both bases, the first of the order from the first dimensions."""
        x, y = order
        sizes = [sum(1 if self.apart else prod(b.shape) for b in basis) for basis in self.bases]
        own = self.blocks(x, x, chunk)
        if alone:
            z = self.points.normal(2 * sizes[x])[:, : sizes[x]]
            joint = own
        else:
            z = self.points.normal(sum(sizes))
            mixed = self.blocks(x, y, chunk)
            top, bottom = torch.cat([own, mixed], -1), torch.cat([mixed.mT, self.blocks(y, y, chunk)], -1)
            joint = torch.cat([top, bottom], -2)
        flat = torch.einsum("sm,bkm->sbk", z, self.points.factor(joint))
        drawn: list[dict[Expression, Tensor]] = [{}, {}]
        start = 0
        for which in order[:1] if alone else order:
            side = (self.pairs.left, self.pairs.right)[which]
            lift = self.lift(which, chunk)
            for b in self.bases[which]:
                size = 1 if self.apart else prod(b.shape)
                g = flat[..., start : start + size].reshape(*flat.shape[:2], *(() if self.apart else b.shape))
                average = side.mean(b)
                drawn[which][b] = g if average is None else g + lift(average)
                start += size
        if alone:
            drawn[order[1]] = drawn[x]
        for which, e in enumerate((self.u, self.v)):
            ones = torch.ones_like(flat[..., :1].reshape(*flat.shape[:2], *(() if self.apart else (1,) * len(e.shape))))
            for b in e.basis if isinstance(e, Apply) else (e,):
                if not random(b):
                    assert isinstance(b, Vector)
                    shape = ones.shape if self.apart else (*ones.shape[:2], *b.shape)
                    drawn[which][b] = ones.new_full(shape, b.average)
        return drawn


def _basis(e: Expression) -> list[Expression]:
    return [b for b in (e.basis if isinstance(e, Apply) else (e,)) if random(b)]


def product(pairs: Pairs, u: Expression, v: Expression, need: Need) -> Tensor:
    """Return E[u v']."""
    return _sampled(pairs, u, v, need, derive=False)


def tangent(pairs: Pairs, u: Expression, v: Expression, need: Need) -> Value:
    """Return sum_ij E[d_i u d_j v'] Theta(g_i, g_j')."""
    return _sampled(pairs, u, v, need, derive=True)


def _sampled(pairs: Pairs, u: Expression, v: Expression, need: Need, derive: bool) -> Tensor:
    from ntkit.infinite.pairs import at_equal

    plan = _Plan(pairs, u, v, need)
    alone = u is v and pairs.left is pairs.right and not pairs.outer
    pieces = []
    for chunk in chunks(plan.count, plan.chunk()):
        total = None
        for order in ((0, 1),) if alone else ((0, 1), (1, 0)):
            drawn = plan.draw(order, chunk, alone)
            first = at_draws(u, drawn[0], plan.lift(0, chunk), pairs.left, derive)
            second = first if alone else at_draws(v, drawn[1], plan.lift(1, chunk), pairs.right, derive)
            value = _tangent(plan, first, second, chunk) if derive else _product(plan, first.value, second.value)
            total = value if total is None else (total + value) / 2
        pieces.append(total)
    whole = torch.cat(pieces)
    if plan.apart:
        return whole.reshape(plan.shape)
    whole = whole.reshape(*pairs.batch, *u.shape, *v.shape)
    return at_equal(whole, u.shape, v.shape) if need == "equal" else whole  # pyright: ignore


def _product(plan: _Plan, a: Tensor, b: Tensor) -> Tensor:
    """Return the mean of products over points, and keep the standard error."""
    if plan.apart:
        a, b = torch.broadcast_tensors(a, b)
        blocks = torch.stack([(x * y).mean(0) for x, y in zip(a.chunk(BLOCKS), b.chunk(BLOCKS), strict=True)])
    else:
        a, b = a.expand(plan.points.count, -1, *plan.u.shape), b.expand(plan.points.count, -1, *plan.v.shape)
        a, b = a.flatten(2), b.flatten(2)
        a, b = (t[..., None] if t.ndim == 2 else t for t in (a, b))
        blocks = torch.stack(
            [
                torch.einsum("sbp,sbq->bpq", x, y) / x.shape[0]
                for x, y in zip(a.chunk(BLOCKS), b.chunk(BLOCKS), strict=True)
            ]
        )
    plan.points.note(blocks)
    return blocks.mean(0)


def _tangent(plan: _Plan, first: Drawn, second: Drawn, chunk: slice) -> Tensor:
    total = None
    for a, left in first.slopes.items():
        for b, right in second.slopes.items():
            theta = plan.pairs.tangent(a, b, plan.need)
            if theta is None:
                continue
            value = _contract(plan, a, b, left, right, theta, chunk)
            total = value if total is None else total + value
    if total is None:
        count = len(range(*chunk.indices(plan.count)))
        size = () if plan.apart else (prod(plan.u.shape), prod(plan.v.shape))
        total = plan.points.zeros(count, *size)
    return total


def _contract(
    plan: _Plan, a: Expression, b: Expression, left: Tensor, right: Tensor, theta: Tensor, chunk: slice
) -> Tensor:
    """Return E[d_a u Theta(a, b) d_b v']."""
    count = plan.points.count
    if plan.apart:
        return (left * right).mean(0) * theta.expand(plan.shape).reshape(-1)[chunk]
    p, q = prod(plan.u.shape), prod(plan.v.shape)
    theta = theta.expand(*plan.pairs.batch, *a.shape, *b.shape)
    diagonal_left = not isinstance(plan.u, Apply) or plan.u.local
    diagonal_right = not isinstance(plan.v, Apply) or plan.v.local
    if diagonal_left and diagonal_right:
        left = left.expand(*left.shape[:2], *plan.u.shape).reshape(count, -1, p)
        right = right.expand(*right.shape[:2], *plan.v.shape).reshape(count, -1, q)
        theta = theta.expand(*plan.pairs.batch, *plan.u.shape, *plan.v.shape).reshape(-1, p, q)[chunk]
        return torch.einsum("sbp,sbq->bpq", left, right) / count * theta
    theta = theta.reshape(-1, prod(a.shape), prod(b.shape))[chunk]
    left = torch.diag_embed(left.reshape(count, -1, p)) if diagonal_left else left
    right = torch.diag_embed(right.reshape(count, -1, q)) if diagonal_right else right
    through = torch.einsum("sbpr,brt->sbpt", left, theta)
    return torch.einsum("sbpt,sbqt->bpq", through, right) / count


def mean(side: Side, u: Apply) -> Tensor:
    """Return E[u], ``[n, *shape]``."""
    return _alone(side, u, False)[u]


def slopes(side: Side, u: Apply, _: bool) -> dict[Expression, Tensor]:
    """Return E[d u / d b] for the vectors b that a function depends on, at the same position."""
    return _alone(side, u, True)


def _alone(side: Side, u: Apply, derive: bool) -> dict[Expression, Tensor]:
    plan = _Plan(side.own, u, u, "equal")
    found: dict[Expression, list[Tensor]] = {}
    for chunk in chunks(plan.count, plan.chunk()):
        drawn = plan.draw((0, 1), chunk, alone=True)
        at = at_draws(u, drawn[0], plan.lift(0, chunk), side, derive)
        for key, value in (at.slopes if derive else {u: at.value}).items():
            shape = () if plan.apart else u.shape
            found.setdefault(key, []).append(value.mean(0).expand(-1, *shape))
    return {key: torch.cat(pieces).reshape(side.n, *u.shape) for key, pieces in found.items()}
