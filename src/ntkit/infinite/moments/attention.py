"""Kernels of attention: means over draws of the scores, the values integrated.

For out_t = sum_s A_ts V_s with A = softmax(z), z a Gaussian of covariance c Kq(t, t') Kk(s, s'),

    E[out_t out'_t']     = E[(A K A'^T)_tt'],   K = E[V V']
    Theta(out_t, out'_t') = E[(A Theta_V A'^T)_tt'] + c sum_ss'rr' E[D_sr K_ss' D'_s'r'] Theta_z(tr, t'r')

with D = d A_s / d z_r = A_s (delta_sr - A_r) and Theta_z / c = Theta_q Kk + Kq Theta_k, whose sums over
s, s', r, r' are products of matrices. A covariance that is a product is drawn as Lq Z Lk^T: no matrix has
a side of all scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from ntkit.compute.plan import chunks
from ntkit.infinite.moments.accuracy import note
from ntkit.infinite.moments.algebra import Need, Value, add, at_equal
from ntkit.infinite.moments.expression import Expression
from ntkit.infinite.moments.positions import Shape
from ntkit.infinite.moments.protocols import PairValues
from ntkit.infinite.moments.vectors import (
    Attended,
    Coefficient,
    Inner,
    Multiple,
    Offset,
    Scores,
    Stopped,
    VectorSum,
)

BLOCKS = 8  # of draws, whose spread gives the standard error
TOGETHER = 16  # draws that have a seed of their own
FEWER = 4  # as many draws less than points elsewhere: the values are integrated
CACHED = 2**25  # bytes of draws that are worked on together
QUASI = 1024  # dimensions up to which draws are quasi-random


def scores_of(z: Expression) -> Scores | None:
    """Return scores as a product of queries and keys, masked, and numbers; None where there is more."""
    found: list[tuple[Inner, float, tuple[Coefficient, ...]]] = []
    offsets: list[Coefficient] = []
    trained = True
    stack: list[tuple[Expression, float, tuple[Coefficient, ...]]] = [(z, 1.0, ())]
    while stack:
        e, number, masks = stack.pop()
        match e:
            case VectorSum():
                stack += [(term, number, masks) for term in e.terms]
            case Multiple(factor=Coefficient() as mask):
                stack.append((e.inner, number, (*masks, mask)))
            case Multiple(factor=float() | int() as factor):
                stack.append((e.inner, number * factor, masks))
            case Stopped():
                trained = False
                stack.append((e.inner, number, masks))
            case Inner():
                found.append((e, number, masks))
            case Offset() if not masks:
                offsets.append(_times(e.coefficient, number))
            case _:
                return None
    if len(found) != 1:
        return None
    inner, number, masks = found[0]
    return Scores(inner, number, masks, tuple(offsets), z.shape, trained)


def _times(c: Coefficient, number: float) -> Coefficient:
    return c if number == 1 else Coefficient(c.shape, lambda side: number * c.value(side))


def moment(pairs: PairValues, u: Attended, v: Attended, need: Need) -> Value:
    """Return E[u v']."""
    return _both(pairs, u, v, need, pairs.derive)[0]


def tangent(pairs: PairValues, u: Attended, v: Attended, need: Need) -> Value:
    """Return Theta(u, v')."""
    return _both(pairs, u, v, need, True)[1]


def _both(pairs: PairValues, u: Attended, v: Attended, need: Need, derive: bool) -> tuple[Value, Value]:
    if need == "equal":
        whole = _both(pairs, u, v, "all", derive)
        return at_equal(whole[0], u.shape, v.shape), at_equal(whole[1], u.shape, v.shape)
    return pairs.remember(("attention", u, v, derive), lambda: _sampled(pairs, u, v, derive))


def _sampled(pairs: PairValues, u: Attended, v: Attended, derive: bool) -> tuple[Value, Value]:
    values = pairs.moment(u.values, v.values, "all")
    through = pairs.tangent(u.values, v.values, "all") if derive else None
    if values is None and through is None:
        return None, None
    draws = _Draws(pairs, u, v)
    draws.planned()
    parts = [draws.means(part, values, through, derive) for part in chunks(draws.count, draws.chunk)]
    shape = (*pairs.batch, *u.shape, *v.shape)
    return tuple(  # pyright: ignore[reportReturnType]
        None if means[0] is None else torch.cat([m for m in means if m is not None]).reshape(shape)
        for means in zip(*parts, strict=True)
    )


class _Draws:
    """Draws of the scores of two attentions for pairs of samples, both orders of the two alike."""

    def __init__(self, pairs: PairValues, u: Attended, v: Attended) -> None:
        self.pairs, self.ends = pairs, (u, v)
        self.sides = (pairs.left, pairs.right)
        self.numerics = pairs.left.numerics
        self.alone = u is v and pairs.left is pairs.right and not pairs.outer
        self.count = prod(pairs.batch)
        index = torch.arange(self.count)
        self.index = (index // pairs.right.n, index % pairs.right.n) if pairs.outer else (index, index)
        unit = BLOCKS * TOGETHER
        self.draws = unit * max(1, self.numerics.count // FEWER // unit)
        (*self.lead, self.t, self.s), (*other, self.t2, self.s2) = (e.scores.shape for e in self.ends)
        self.w, self.w2 = prod(self.lead), prod(other)

    @property
    def each(self) -> int:
        """The numbers that a draw of one pair takes, with those of the products."""
        rows, columns = self.w * self.t + self.w2 * self.t2, self.w * self.s + self.w2 * self.s2
        return 2 * rows * columns + 6 * (self.w * self.t + self.w * self.s) * self.w2 * (self.s2 + self.t2)

    @property
    def chunk(self) -> int:
        """How many pairs are drawn at a time within the budget."""
        held = TOGETHER * self.each * self.numerics.zeros(1).element_size()
        return max(1, self.numerics.budget // held)

    def planned(self) -> None:
        """Tell how many draws are made, and how many at a time."""
        held = self.each * self.numerics.zeros(1).element_size()
        pairs = min(self.count, self.chunk)
        at_once = [slice(0, len(seeds) * TOGETHER) for _, seeds in self._seeds(slice(0, pairs))]
        self.numerics.planned("attention", "scores of all positions together", self.draws, at_once, held)

    def _seeds(self, chunk: slice) -> Iterator[tuple[int, range]]:
        """Return blocks of draws in parts that fit into the budget: its number, and the seeds of a part."""
        pairs = len(range(*chunk.indices(self.count)))
        held = TOGETHER * self.each * pairs * self.numerics.zeros(1).element_size()
        most = max(1, min(self.numerics.budget, CACHED) // held)
        each = self.draws // TOGETHER // BLOCKS
        for block in range(BLOCKS):
            for part in chunks(each, most):
                yield block, range(block * each, (block + 1) * each)[part]

    def means(self, chunk: slice, values: Value, through: Value, derive: bool) -> tuple[Value, Value]:
        """Return both kernels of some pairs, ``[B, W, t, W', t']``."""
        u, v = self.ends
        zero = self.numerics.zeros(1)
        k = zero if values is None else self._pairs(values, (self.w, self.s), (self.w2, self.s2), chunk)
        theta = None if through is None else self._pairs(through, (self.w, self.s), (self.w2, self.s2), chunk)
        trained = derive and values is not None and u.scores.trained and v.scores.trained
        curved = self._curved(u, v, chunk) if trained else []
        orders = [(0, 1)] if self.alone else [(0, 1), (1, 0)]
        factors = [self._factors(order, chunk) for order in orders]
        kernels: list[Tensor] = [zero] * BLOCKS
        tangents: list[list[Tensor]] = [[zero] * (1 + len(curved)) for _ in range(BLOCKS)]
        for block, seeds in self._seeds(chunk):
            z = torch.cat([self._normal(seed) for seed in seeds])
            for factor in factors:
                a, b = self._weights(z, factor, chunk)
                first, second = (
                    w if m is None else w * m for w, m in zip((a, b), self._masks(chunk), strict=True)
                )
                if values is not None:
                    ak = torch.einsum("nbwts,bwsvr->nbwtvr", a, k)
                    out = torch.einsum("nbwtvr,nbvur->nbwtvu", ak, b)
                    kernels[block] = kernels[block] + out.sum(0)
                    kb = torch.einsum("bwsvr,nbvur->nbwsvu", k, b) if curved else zero
                    for i, (y, _) in enumerate(curved):
                        yb = torch.einsum("bwsvr,nbvur->nbwsvu", y, second)
                        ay = torch.einsum("nbwts,bwsvr->nbwtvr", first, y)
                        right = torch.einsum("bwsvr,nbvur->nbwsvu", k * y, second) - kb * yb
                        term = torch.einsum("nbwts,nbwsvu->bwtvu", first, right)
                        term = term - torch.einsum("nbwtvr,nbvur->bwtvu", ak * ay, second)
                        ayb = torch.einsum("nbwtvr,nbvur->nbwtvu", ay, second)
                        tangents[block][i + 1] = tangents[block][i + 1] + term + (out * ayb).sum(0)
                if theta is not None:
                    at = torch.einsum("nbwts,bwsvr->nbwtvr", a, theta)
                    tangents[block][0] = tangents[block][0] + torch.einsum("nbwtvr,nbvur->bwtvu", at, b)
        count = self.draws * len(orders)
        found: list[Value] = []
        for first, *rest in tangents:
            whole = [first / count] if theta is not None else []
            found.append(add([*whole, *(t / count * y for t, (_, y) in zip(rest, curved, strict=True))]))
        parts = [torch.stack(kernels) * (BLOCKS / count)] if values is not None else []
        parts += [torch.stack([t for t in found if t is not None]) * BLOCKS] if found[0] is not None else []
        note(self.numerics, self.ends, *((part, None) for part in parts))
        return None if values is None else sum(kernels, zero) / count, add(found)

    def _curved(self, u: Attended, v: Attended, chunk: slice) -> list[tuple[Tensor, Tensor]]:
        """Return what d A / d z meets in Theta_z: kernels of keys ``[B, W, s, W', s']`` and of queries."""
        a, b = u.scores, v.scores
        scale = a.number * b.number * (a.inner.factor * b.inner.factor) ** 0.5
        found = []
        for of_keys, of_queries in (
            (self.pairs.moment, self.pairs.tangent),
            (self.pairs.tangent, self.pairs.moment),
        ):
            keys = of_keys(a.inner.right, b.inner.right, "all")
            queries = of_queries(a.inner.left, b.inner.left, "all")
            if keys is not None and queries is not None:
                keys = self._pairs(keys, (self.w, self.s), (self.w2, self.s2), chunk)
                found.append(
                    (keys, scale * self._pairs(queries, (self.w, self.t), (self.w2, self.t2), chunk))
                )
        return found

    def _pairs(self, value: Tensor, left: Shape, right: Shape, chunk: slice) -> Tensor:
        """Return a kernel of pairs as ``[B, W, t, W', t']``."""
        return value.expand(*self.pairs.batch, *value.shape[len(self.pairs.batch) :]).reshape(
            -1, *left, *right
        )[chunk]

    def _normal(self, block: int) -> Tensor:
        """Return some draws ``[n, rows, columns]``; of many, the second half the negative of the first."""
        rows, columns = self.w * self.t + self.w2 * self.t2, self.w * self.s + self.w2 * self.s2
        if rows * columns <= QUASI:
            points = self.numerics.normal(rows * columns)[block * TOGETHER : (block + 1) * TOGETHER]
            return points.reshape(-1, rows, columns)
        generator = torch.Generator().manual_seed((self.numerics.seed << 20) + block)
        z = torch.randn(TOGETHER // 2, rows, columns, generator=generator, dtype=torch.float64)
        z = z.to(self.numerics.device, self.numerics.dtype)
        return torch.cat([z, -z])

    def _factors(self, order: tuple[int, int], chunk: slice) -> list[tuple[Tensor, Tensor]]:
        """Return for both sides factors of the covariances of queries and of keys, ``[B, rows, columns]``."""
        first = order[0]
        queries, keys = (self._factor(part, first, chunk) for part in ("left", "right"))
        return list(zip(queries, keys, strict=True))

    def _factor(self, part: str, first: int, chunk: slice) -> list[Tensor]:
        vectors = [getattr(e.scores.inner, part) for e in self.ends]
        sizes = [prod(e.shape) for e in vectors]

        def own(which: int) -> Tensor:
            e = vectors[which]
            value = self.sides[which].itself.moment(e, e, "all")
            value = self.numerics.zeros(1, *e.shape, *e.shape) if value is None else value
            value = value.expand(self.sides[which].n, *value.shape[1:])
            return value.reshape(-1, sizes[which], sizes[which])[self.index[which][chunk]]

        if self.alone:
            factor = self.numerics.factor(own(0))
            return [factor, factor]
        second = 1 - first
        value = self.pairs.moment(vectors[0], vectors[1], "all")
        a, b = own(first), own(second)
        cross = (
            a.new_zeros(a.shape[0], sizes[0], sizes[1])
            if value is None
            else self._pairs(value, (sizes[0],), (sizes[1],), chunk)
        )
        cross = cross if first == 0 else cross.mT
        joint = torch.cat([torch.cat([a, cross], -1), torch.cat([cross.mT, b], -1)], -2)
        factor = self.numerics.factor(joint)
        rows = factor.split([sizes[first], sizes[second]], -2)
        return (
            [rows[0][..., : sizes[first]], rows[1]] if first == 0 else [rows[1], rows[0][..., : sizes[first]]]
        )

    def _weights(
        self, z: Tensor, factors: list[tuple[Tensor, Tensor]], chunk: slice
    ) -> tuple[Tensor, Tensor]:
        """Return the softmax of both scores at draws, ``[n, B, W, t, s]``."""
        both = []
        for which, (queries, keys) in enumerate(factors):
            scores = self.ends[which].scores
            (*lead, t, s), inner = scores.shape, scores.inner
            w = prod(lead)
            rows = torch.einsum("bpx,nxy->nbpy", queries, z[:, : queries.shape[-1], : keys.shape[-1]])
            rows = _lead(rows, -2, inner.left.shape[:-2], lead, t)
            columns = _lead(keys, -2, inner.right.shape[:-2], lead, s)
            value = rows @ columns.mT * (scores.number * inner.factor**0.5)
            for mask in scores.masks:
                value = value * self._numbers(mask, scores, which, chunk)
            for offset in scores.offsets:
                value = value + self._numbers(offset, scores, which, chunk)
            both.append(torch.softmax(value.reshape(*value.shape[:2], w, t, s), -1))
        return both[0], both[0] if self.alone else both[1]

    def _numbers(self, c: Coefficient, scores: Scores, which: int, chunk: slice) -> Tensor:
        value = c.value(self.sides[which])
        value = value.reshape(value.shape[0], *[1] * (len(scores.shape) - len(c.shape)), *value.shape[1:])
        value = (
            value.expand(value.shape[0], *scores.shape).flatten(1, -3)
            if len(scores.shape) > 2
            else value.expand(value.shape[0], *scores.shape)[:, None]
        )
        return value[self.index[which][chunk]] if value.shape[0] > 1 else value

    def _masks(self, chunk: slice) -> list[Tensor | None]:
        """Return the factors of the scores of both sides, None where there are none."""
        found: list[Tensor | None] = []
        for which, e in enumerate(self.ends):
            factors = [self._numbers(mask, e.scores, which, chunk) for mask in e.scores.masks]
            found.append(prod(factors[1:], start=factors[0]) if factors else None)
        return found


def _lead(t: Tensor, dim: int, mine: Shape, lead: list[int], size: int) -> Tensor:
    """Split the positions of a factor into the axes in front ``[W]``, repeated as in scores, and rows."""
    t = t.unflatten(dim, (*mine, size))
    rank = len(mine)
    at = t.ndim - 2 - rank
    t = t.expand(*t.shape[:at], *lead, *t.shape[at + rank :])
    return t.flatten(at, at + rank - 1) if rank else t.unsqueeze(at)
