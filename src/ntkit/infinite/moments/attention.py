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
from math import lcm, prod

import torch
from torch import Tensor

from ntkit.compute.plan import chunks
from ntkit.infinite.moments import tables
from ntkit.infinite.moments.evaluate import softmax
from ntkit.infinite.variables.algebra import Need, Value, add, at_equal
from ntkit.infinite.variables.positions import Shape
from ntkit.infinite.variables.protocols import PairValues
from ntkit.infinite.variables.vectors import (
    Attended,
    Coefficient,
    Scores,
    Table,
    turns,
)

BLOCKS = 8  # of draws, whose spread gives the standard error
TOGETHER = 16  # draws that have a seed of their own
FEWER = 4  # as many draws less than points elsewhere: the values are integrated
CACHED = 2**25  # bytes of draws that are worked on together
QUASI = 1024  # dimensions up to which draws are quasi-random


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
        widths = (raw.data.shape[-1] for e in self.ends for raw, _ in e.scores.of_heads)
        self.heads = max(widths, default=1)  # of which each block of draws has equally many
        unit = BLOCKS * lcm(TOGETHER, self.heads)
        self.draws = unit * max(1, self.numerics.count // FEWER // unit)
        self.turn = turns(u.scores.inner, v.scores.inner)
        self.rank = 1 if self.turn is None else self.turn.shape[-1]
        self.entries: list[
            tuple[Table, int]
        ] = []  # tables of different parameters, and where their draws begin
        self.extra = 0
        for e in self.ends:
            for table in e.scores.tables:
                if not any(one.same(table) for one, _ in self.entries):
                    self.entries.append((table, self.extra))
                    self.extra += table.count
        (*self.lead, self.t, self.s), (*other, self.t2, self.s2) = (e.scores.shape for e in self.ends)
        self.w, self.w2 = prod(self.lead), prod(other)

    @property
    def each(self) -> int:
        """The numbers that a draw of one pair takes, with those of the products."""
        rows, columns = self.w * self.t + self.w2 * self.t2, self.w * self.s + self.w2 * self.s2
        pairs = 6 * (self.w * self.t + self.w * self.s) * self.w2 * (self.s2 + self.t2)
        entries = (
            (self.w * self.w2 * (self.s + self.t) * (self.extra + self.t * self.s2)) if self.extra else 0
        )
        return 2 * self.rank * rows * columns + pairs + entries

    @property
    def chunk(self) -> int:
        """How many pairs are drawn at a time within the budget."""
        held = TOGETHER * self.each * self.numerics.zeros(1).element_size()
        return max(1, self.numerics.budget // held)

    def planned(self) -> None:
        """Tell how many draws are made, and how many at a time."""
        held = self.each * self.numerics.zeros(1).element_size()
        pairs = min(self.count, self.chunk)
        at_once = [slice(0, len(seeds) * TOGETHER) for seeds in self._seeds(slice(0, pairs))]
        self.numerics.planned("attention", "scores of all positions together", self.draws, at_once, held)

    def _seeds(self, chunk: slice) -> Iterator[range]:
        """Return the seeds of blocks of draws, in parts that fit into the budget."""
        pairs = len(range(*chunk.indices(self.count)))
        held = TOGETHER * self.each * pairs * self.numerics.zeros(1).element_size()
        most = max(1, min(self.numerics.budget, CACHED) // held)
        each = self.draws // TOGETHER // BLOCKS
        for block in range(BLOCKS):
            for part in chunks(each, most):
                yield range(block * each, (block + 1) * each)[part]

    def means(self, chunk: slice, values: Value, through: Value, derive: bool) -> tuple[Value, Value]:
        """Return both kernels of some pairs, ``[B, W, t, W', t']``."""
        u, v = self.ends
        zero = self.numerics.zeros(1)
        k = zero if values is None else self._pairs(values, (self.w, self.s), (self.w2, self.s2), chunk)
        theta = None if through is None else self._pairs(through, (self.w, self.s), (self.w2, self.s2), chunk)
        trained = derive and values is not None and u.scores.trained and v.scores.trained
        curved = self._curved(u, v, chunk) if trained else []
        shared = self._shared_tables(u, v) if trained else []
        tabled = zero
        orders = [(0, 1)] if self.alone else [(0, 1), (1, 0)]
        factors = [self._factors(order, chunk) for order in orders]
        kernel = zero
        self.numerics.sampled = True
        tangents: list[Tensor] = [zero] * (1 + len(curved))
        for seeds in self._seeds(chunk):
            z, drawn = map(torch.cat, zip(*(self._normal(seed) for seed in seeds), strict=True))
            for factor in factors:
                a, b = self._weights(z, drawn, self._head_of(seeds), factor, chunk)
                first, second = (
                    w if m is None else w * m for w, m in zip((a, b), self._masks(chunk), strict=True)
                )
                if values is not None:
                    ak = torch.einsum("nbwts,bwsvr->nbwtvr", a, k)
                    out = torch.einsum("nbwtvr,nbvur->nbwtvu", ak, b)
                    kernel = kernel + out.sum(0)
                    kb = torch.einsum("bwsvr,nbvur->nbwsvu", k, b) if curved or shared else zero
                    for table, left, right, step in shared:
                        tabled = tabled + step * tables.through(
                            a, b, k, ak, kb, out, left, right, table.count
                        )
                    for i, (y, _) in enumerate(curved):
                        for x in range(self.rank):
                            ends = (
                                (first, second)
                                if self.turn is None
                                else (first * self.turn[..., x], second * self.turn[..., x])
                            )
                            tangents[i + 1] = tangents[i + 1] + _bent(*ends, ak, kb, k, y, out)
                if theta is not None:
                    at = torch.einsum("nbwts,bwsvr->nbwtvr", a, theta)
                    tangents[0] = tangents[0] + torch.einsum("nbwtvr,nbvur->bwtvu", at, b)
        count = self.draws * len(orders)
        whole = [tangents[0] / count] if theta is not None else []
        whole += [tabled / count] if shared else []
        whole += [total / count * other for total, (_, other) in zip(tangents[1:], curved, strict=True)]
        return None if values is None else kernel / count, add(whole)

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
        batch = self.pairs.batch
        if all(size == 1 for size in value.shape[len(batch) :]):  # alike for all positions
            alike = value.reshape(*value.shape[: len(batch)], *(1 for _ in (*left, *right)))
            return alike.expand(*batch, *left, *right).reshape(-1, *left, *right)[chunk]
        return value.expand(*batch, *value.shape[len(batch) :]).reshape(-1, *left, *right)[chunk]

    def _shared_tables(self, u: Attended, v: Attended) -> list[tuple[Table, Tensor, Tensor, float]]:
        """Return tables that both attentions have, their places in each, and the step of their entries."""
        found = []
        for a in u.scores.tables:
            for b in v.scores.tables:
                if a.same(b) and a.law.step:
                    places = [t.places.where(t.places >= 0, a.count) for t in (a, b)]
                    found.append(
                        (a, *(p.to(self.numerics.device) for p in places), a.law.step * a.scale * b.scale)
                    )
        return found

    def _normal(self, block: int) -> tuple[Tensor, Tensor]:
        """Return draws ``[n, rank, rows, columns]`` and of the entries of tables ``[n, entries]``.

        Of many, the second half are the negative of the first.
        """
        rows, columns = self.w * self.t + self.w2 * self.t2, self.w * self.s + self.w2 * self.s2
        sizes = (self.rank, rows, columns)
        if prod(sizes) + self.extra <= QUASI and self.draws <= self.numerics.count:
            points = self.numerics.normal(prod(sizes) + self.extra)
            points = points[block * TOGETHER : (block + 1) * TOGETHER]
            return points[:, : prod(sizes)].reshape(-1, *sizes), points[:, prod(sizes) :]
        generator = torch.Generator().manual_seed((self.numerics.seed << 20) + block)
        both = []
        for shape in (sizes, (self.extra,)):
            z = torch.randn(TOGETHER // 2, *shape, generator=generator, dtype=torch.float64)
            z = z.to(self.numerics.device, self.numerics.dtype)
            both.append(torch.cat([z, -z]))
        return both[0], both[1]

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
        self, z: Tensor, drawn: Tensor, head: Tensor, factors: list[tuple[Tensor, Tensor]], chunk: slice
    ) -> tuple[Tensor, Tensor]:
        """Return the softmax of both scores at draws, ``[n, B, W, t, s]``."""
        both = []
        for which, (queries, keys) in enumerate(factors):
            scores = self.ends[which].scores
            (*lead, t, s), inner = scores.shape, scores.inner
            w = prod(lead)
            rows = torch.einsum("bpx,nkxy->nbkpy", queries, z[..., : queries.shape[-1], : keys.shape[-1]])
            rows = _lead(rows, -2, inner.left.shape[:-2], lead, t)
            columns = _lead(keys, -2, inner.right.shape[:-2], lead, s)
            value = rows @ columns[:, None].mT * (scores.number * inner.factor**0.5)
            value = (
                value[:, :, 0] if self.turn is None else torch.einsum("nbkwts,tsk->nbwts", value, self.turn)
            )
            for mask in scores.masks:
                value = value * self._numbers(mask, scores, which, chunk)
            for offset in scores.offsets:
                value = value + self._numbers(offset, scores, which, chunk)
            for table in scores.tables:
                value = value + self._entries(table, drawn)[:, None, None]
            for raw, number in scores.of_heads:
                numbers = raw.data.value(self.sides[which])
                numbers = numbers[self.index[which][chunk]] if numbers.shape[0] > 1 else numbers
                value = value + number * numbers[..., head].movedim(-1, 0)[:, :, None]
            both.append(softmax(value.reshape(*value.shape[:2], w, t, s)))
        return both[0], both[0] if self.alone else both[1]

    def _head_of(self, seeds: range) -> Tensor:
        """Return the head that each draw of some seeds is one of, where heads differ."""
        block = self.draws // BLOCKS
        draws = torch.arange(seeds.start * TOGETHER, seeds.stop * TOGETHER)
        return draws % block * self.heads // block

    def _entries(self, table: Table, drawn: Tensor) -> Tensor:
        """Return what a table adds to scores at draws of its entries, ``[n, t, s]``."""
        start = next(at for one, at in self.entries if one.same(table))
        entries = table.average + table.law.variance**0.5 * drawn[:, start : start + table.count]
        entries = torch.cat([entries, entries.new_zeros(len(entries), 1)], 1)
        places = table.places.where(table.places >= 0, table.count).to(drawn.device)
        return table.scale * entries[:, places]

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


def _bent(first: Tensor, second: Tensor, ak: Tensor, kb: Tensor, k: Tensor, y: Tensor, out: Tensor) -> Tensor:
    """Return the sum over draws of D K D' Y, from weights a, b and a K, K b, ``out`` = a K b."""
    yb = torch.einsum("bwsvr,nbvur->nbwsvu", y, second)
    ay = torch.einsum("nbwts,bwsvr->nbwtvr", first, y)
    right = torch.einsum("bwsvr,nbvur->nbwsvu", k * y, second) - kb * yb
    term = torch.einsum("nbwts,nbwsvu->bwtvu", first, right)
    term = term - torch.einsum("nbwtvr,nbvur->bwtvu", ak * ay, second)
    ayb = torch.einsum("nbwtvr,nbvur->nbwtvu", ay, second)
    return term + (out * ayb).sum(0)


def _lead(t: Tensor, dim: int, mine: Shape, lead: list[int], size: int) -> Tensor:
    """Split the positions of a factor into the axes in front ``[W]``, repeated as in scores, and rows."""
    t = t.unflatten(dim, (*mine, size))
    rank = len(mine)
    at = t.ndim - 2 - rank
    t = t.expand(*t.shape[:at], *lead, *t.shape[at + rank :])
    return t.flatten(at, at + rank - 1) if rank else t.unsqueeze(at)
