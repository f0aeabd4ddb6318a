"""Functions that go row by row over scores of attention: all rows of all draws from two small factors.

Scores G[t, s] = sum_i q_i[t] k_i[s] / sqrt(d) have the covariance Kq(t, t') Kk(s, s'): G = M Z L' with
M M' = Kq and L L' = Kk for the positions of both samples, and no matrix over pairs of pairs of positions.
A row of the result depends on the same row of the scores, so that its derivative by them is a row, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.moments import vectors as vec
from ntkit.infinite.moments.algebra import Value, add
from ntkit.infinite.moments.draws import BLOCKS, parts_of, random
from ntkit.infinite.moments.evaluate import evaluate
from ntkit.infinite.moments.expression import Expression
from ntkit.infinite.moments.functions import Apply
from ntkit.infinite.moments.protocols import PairValues, SideValues

COPIES = 10  # arrays over rows and keys that are held for a draw


@dataclass(frozen=True)
class Rows:
    """A function as one of the rows of its scores, and of other vectors that each row takes whole."""

    scores: vec.Inner
    whole: tuple[Expression, ...]  # that vary
    fixed: tuple[vec.Vector, ...]

    @property
    def keys(self) -> int:
        """The number of keys."""
        return self.scores.shape[1]

    @property
    def size(self) -> int:
        """The numbers of the vectors that are taken whole."""
        return sum(prod(b.shape) for b in self.whole)


def rows_of(u: Expression) -> Rows | None:
    """Return a function by rows, where it is one of a single matrix of scores; remembered."""
    if not isinstance(u, Apply):
        return None
    if "rows" not in u.__dict__:
        u.__dict__["rows"] = _read(u)
    return u.__dict__["rows"]


def _read(u: Apply) -> Rows | None:
    if len(u.shape) != 1:
        return None
    by_row: set[Expression] = set()
    whole: dict[Expression, None] = {}
    seen: set[tuple[Expression, bool]] = set()
    stack: list[tuple[Expression, bool]] = [(u, True)]
    while stack:
        e, row = stack.pop()
        if (e, row) in seen:
            continue
        seen.add((e, row))
        if isinstance(e, vec.Inner) and row:
            by_row.add(e)
        elif not row and (isinstance(e, vec.Vector) or (e.gaussian and not e.gains)):
            whole[e] = None
        elif isinstance(e, vec.Vector):
            whole[e] = None
            if random(e) or prod(e.shape) > 1:
                return None
        elif isinstance(e, Apply) and not e.function.local and row:
            takes = e.function.rows
            if takes is None or any(not isinstance(a, Expression) for a in e.arguments):
                return None
            stack += [(a, of) for a, of in zip(e.arguments, takes, strict=True) if isinstance(a, Expression)]
        elif row and not isinstance(
            e, Apply | vec.VectorSum | vec.Multiple | vec.Gain | vec.Stopped | vec.Offset
        ):
            return None
        else:
            stack += [(part, row) for part in e.parts]
    if len(by_row) != 1 or by_row & set(whole) or any(isinstance(b, vec.Inner) for b in whole):
        return None
    (scores,) = by_row
    assert isinstance(scores, vec.Inner)
    if scores.left.shape[1] != 1 or scores.right.shape[0] != 1 or scores.shape[0] != u.shape[0]:
        return None
    fixed = tuple(b for b in whole if isinstance(b, vec.Vector) and not random(b))
    return Rows(scores, tuple(b for b in whole if b not in fixed), fixed)


class RowDraws:
    """Draws of the scores and of the other vectors of two functions by rows, for pairs of samples."""

    def __init__(self, pairs: PairValues, u: Apply, v: Apply) -> None:
        first, second = rows_of(u), rows_of(v)
        assert first is not None and second is not None
        self.pairs, self.vectors, self.rows = pairs, (u, v), (first, second)
        self.sides = (pairs.left, pairs.right)
        self.numerics = pairs.left.numerics
        self.alone = u is v and pairs.left is pairs.right and not pairs.outer
        self.count = prod(pairs.batch)
        index = torch.arange(self.count)
        self.index = (index // pairs.right.n, index % pairs.right.n) if pairs.outer else (index, index)
        self.queries = sum(r.scores.shape[0] for r in self.rows)
        self.keys = sum(r.keys for r in self.rows)
        self.dimensions = self.queries * self.keys + sum(r.size for r in self.rows)

    @property
    def bytes(self) -> int:
        """The bytes of one draw for one pair of samples."""
        numbers = sum(r.scores.shape[0] * (r.keys + r.size) for r in self.rows)
        item = torch.finfo(self.numerics.dtype).bits // 8
        return item * (COPIES * numbers + 3 * self.dimensions)

    def chunks(self) -> list[tuple[slice, list[slice]]]:
        """Return pairs of samples that are drawn at a time, and points at a time, within the budget."""
        block, most = self.numerics.count // BLOCKS, max(1, self.numerics.budget // self.bytes)
        each = min(block, most)
        parts = parts_of(block * BLOCKS, each)
        samples = max(1, min(self.count, most // each))
        return [(slice(i, min(i + samples, self.count)), parts) for i in range(0, self.count, samples)]

    def cross(self, kind: str, a: Expression, b: Expression, which: tuple[int, int], part: slice) -> Value:
        """Return a moment, covariance or tangent kernel at all positions, ``[B, size of a, size of b]``."""
        (i, j), sizes = which, (prod(a.shape), prod(b.shape))
        pairs = self.pairs if i != j else self.sides[i].itself
        value = getattr(pairs, kind)(*((a, b) if i <= j else (b, a)), "all")
        if value is None:
            return None
        shape = (*a.shape, *b.shape) if i <= j else (*b.shape, *a.shape)
        lead = value.ndim - len(shape)
        value = value.expand(*value.shape[:lead], *shape)
        value = value.reshape(*value.shape[:lead], *(sizes if i <= j else sizes[::-1]))
        if i != j:
            value = value.expand(*self.pairs.batch, *value.shape[lead:]).flatten(0, lead - 1)[part]
        else:
            value = value[self.index[i][part]] if value.shape[0] > 1 else value
        return value if i <= j else value.mT

    def factor(
        self, terms: list[tuple[int, Expression]], kind: str, part: slice, scale: float = 1.0
    ) -> Tensor:
        """Return the factor of the joint covariance of vectors, ``[B, m, m]``."""
        count = len(range(*part.indices(self.count)))
        rows = []
        for i, a in terms:
            row = []
            for j, b in terms:
                value = self.cross(kind, a, b, (i, j), part)
                size = (prod(a.shape), prod(b.shape))
                value = self.numerics.zeros(1, *size) if value is None else value * scale
                row.append(value.expand(count, *size))
            rows.append(torch.cat(row, -1))
        return self.numerics.factor(torch.cat(rows, -2))

    def factors(self, order: tuple[int, ...], part: slice) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the factors of the queries, of the keys, and of the vectors taken whole."""
        scores = [(i, self.rows[i].scores) for i in order]
        m = self.factor([(i, e.left) for i, e in scores], "moment", part, scores[0][1].factor)
        n = self.factor([(i, e.right) for i, e in scores], "moment", part)
        whole = [(i, b) for i in order for b in self.rows[i].whole]
        return m, n, self.factor(whole, "covariance", part) if whole else None

    def draw(
        self,
        order: tuple[int, ...],
        part: slice,
        points: slice,
        factors: tuple[Tensor, Tensor, Tensor | None],
    ) -> dict[int, dict[Expression, Tensor]]:
        """Return draws of each side: scores ``[S, B, T, 1, keys]``, others ``[S, B, T, *shape]``."""
        m, n, w = factors
        z = self.numerics.points(self.dimensions, points)
        grid = z[:, : self.queries * self.keys].reshape(len(z), 1, self.queries, self.keys)
        grid = grid[..., : m.shape[-1], : n.shape[-1]]  # a sample alone is drawn as the first of two
        rest = z[:, self.queries * self.keys :]
        others = torch.einsum("sm,bkm->sbk", rest[:, : w.shape[-1]], w) if w is not None else None
        drawn: dict[int, dict[Expression, Tensor]] = {}
        q = k = o = 0
        for i in order:
            r = self.rows[i]
            t = r.scores.shape[0]
            g = m[:, q : q + t] @ grid @ n[:, k : k + r.keys].mT
            here: dict[Expression, Tensor] = {r.scores: g.unsqueeze(-2)}
            q, k = q + t, k + r.keys
            for b in r.whole:
                assert others is not None
                value = others[..., o : o + prod(b.shape)].reshape(*others.shape[:2], 1, *b.shape)
                o += prod(b.shape)
                average = self.sides[i].mean(b)
                if average is not None:
                    value = value + self.lift(i, part)(average.expand(average.shape[0], *b.shape), False)
                here[b] = value.expand(*value.shape[:2], t, *b.shape)
            for b in r.fixed:
                here[b] = self.numerics.zeros(1, 1, 1, *b.shape) + b.average
            drawn[i] = here
        return drawn

    def lift(self, which: int, part: slice):
        """Return how numbers of a side broadcast with draws: rows apart, or as they are."""
        index = self.index[which][part]
        t = self.rows[which].scores.shape[0]

        def of(value: Tensor, apart: bool = True) -> Tensor:
            value = value[index] if value.shape[0] > 1 else value
            if not apart or value.ndim < 3:
                return value.unsqueeze(1)
            return value.expand(value.shape[0], t, *value.shape[2:]).unsqueeze(2)

        return of


def sample(pairs: PairValues, u: Apply, v: Apply, derive: bool) -> tuple[Tensor, Value]:
    """Return E[u v'] and the tangent kernel for all pairs of positions, ``[*batch, T, T']``."""
    draws = RowDraws(pairs, u, v)
    orders: list[tuple[int, ...]] = [(0,)] if draws.alone else [(0, 1), (1, 0)]
    values, tangents = [], []
    chunks = draws.chunks()
    draws.numerics.planned(
        u.function.name, "row by row of scores", draws.numerics.count, chunks[0][1], draws.bytes
    )
    for part, points in chunks:
        slopes = _between(draws, part) if derive else {}
        blocks: list[Tensor] = []
        tangent: Tensor | None = None
        prepared = [draws.factors(order, part) for order in orders]
        for here in points:
            total = None
            for order, factors in zip(orders, prepared, strict=True):
                drawn = draws.draw(order, part, here, factors)
                first, by_first = _evaluate(draws, 0, drawn[0], part, derive)
                second, by_second = (
                    (first, by_first) if draws.alone else _evaluate(draws, 1, drawn[1], part, derive)
                )
                moment = torch.einsum("sbp,sbq->bpq", first, second)
                total = moment if total is None else total + moment
                if derive:
                    tangent = add([tangent, _tangent(slopes, by_first, by_second)])
            assert total is not None
            start = here.start % (draws.numerics.count // BLOCKS) == 0
            blocks = [*blocks, total] if start else [*blocks[:-1], blocks[-1] + total]
        size = draws.numerics.count // BLOCKS
        means = torch.stack(blocks) / size / len(orders)
        draws.numerics.note(means)
        values.append(means.mean(0))
        if tangent is not None:
            tangents.append(tangent / (BLOCKS * size) / len(orders))
    shape = (*pairs.batch, *u.shape, *v.shape)
    return torch.cat(values).reshape(shape), torch.cat(tangents).reshape(shape) if tangents else None


def mean(side: SideValues, u: Apply) -> Tensor:
    """Return E[u], ``[n, T]``."""
    draws = RowDraws(side.itself, u, u)
    found = []
    for part, points in draws.chunks():
        factors, total = draws.factors((0,), part), side.numerics.zeros(1)
        for here in points:
            total = total + _evaluate(draws, 0, draws.draw((0,), part, here, factors)[0], part, False)[0].sum(
                0
            )
        found.append(total / (side.numerics.count // BLOCKS * BLOCKS))
    return torch.cat(found)


Slopes = dict[Expression, Tensor]  # by the scores [S, B, T, keys], by other vectors [S, B, T, size]


def _evaluate(
    draws: RowDraws, which: int, drawn: dict[Expression, Tensor], part: slice, derive: bool
) -> tuple[Tensor, Slopes]:
    u, side = draws.vectors[which], draws.sides[which]
    lift = draws.lift(which, part)
    if not derive:
        return evaluate(u, drawn, lift, side).squeeze(-1), {}
    with torch.enable_grad():
        leaves = {b: t.detach().clone().requires_grad_() for b, t in drawn.items()}
        value = evaluate(u, leaves, lift, side).squeeze(-1)
        if not value.requires_grad:
            return value.detach(), {}
        gradients = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
    found = zip(leaves, gradients, strict=True)
    return value.detach(), {b: g.flatten(3) for b, g in found if g is not None}


def _between(draws: RowDraws, part: slice) -> dict[tuple[Expression, Expression], list[tuple[Value, Value]]]:
    """Return the tangent kernels of what two functions are made of: of queries times that of keys."""
    which = (0, 0) if draws.alone else (0, 1)
    one, two = draws.rows[0], draws.rows[-1]
    a, b = one.scores, two.scores
    parts = []
    for kinds in (("tangent", "moment"), ("moment", "tangent")):
        queries = _pairwise(draws, kinds[0], a.left, b.left, which, part)
        keys = _pairwise(draws, kinds[1], a.right, b.right, which, part)
        if queries is not None and keys is not None:
            parts.append((queries * a.factor, keys))
    result: dict[tuple[Expression, Expression], list[tuple[Value, Value]]] = {(a, b): parts}
    for g in (*one.whole, *one.fixed):
        for h in (*two.whole, *two.fixed):
            value = _pairwise(draws, "tangent", g, h, which, part)
            if value is not None:
                result[g, h] = [(None, value)]
    return result


def _pairwise(
    draws: RowDraws, kind: str, a: Expression, b: Expression, which: tuple[int, int], part: slice
) -> Value:
    if which == (0, 1) and not draws.pairs.outer and draws.pairs.left is draws.pairs.right:
        which = (0, 0)  # two functions of the same sample
    return draws.cross(kind, a, b, which, part)


def _tangent(
    between: dict[tuple[Expression, Expression], list[tuple[Value, Value]]], left: Slopes, right: Slopes
) -> Value:
    """Return the sum over draws of sum_rs A[t, r] Theta(r, s) B[t', s] (times what queries add)."""
    terms = []
    for (a, b), parts in between.items():
        if a in left and b in right:
            for outer, inner in parts:
                through = torch.einsum("sbpr,brq->sbpq", left[a], inner) if inner is not None else None
                assert through is not None
                value = torch.einsum("sbpr,sbqr->bpq", through, right[b])
                terms.append(value if outer is None else value * outer)
    return add(terms)
