"""Draws of the G-variables of two samples from their joint Gaussian, at fixed points."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ntkit.compute.plan import chunks
from ntkit.infinite.moments.evaluate import Lift
from ntkit.infinite.variables.algebra import Need
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.expression import apart as independent
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.positions import Shape, broadcast
from ntkit.infinite.variables.protocols import PairValues
from ntkit.infinite.variables.vectors import Moved, Vector

Variable = tuple[int, Expression]  # the side that a vector belongs to, and the vector
Factors = tuple[int, list[tuple[list[Variable], list[int], Tensor]]]  # dimensions, and groups of variables

FEW = 1024  # pairs of positions of two samples up to which each is drawn on its own: fewer dimensions,
BLOCKS = 8  # of points, whose spread gives the standard error
SOME = 64  # smaller error; with fewer points from this number of pairs on


def parts_of(points: int, most: int) -> list[slice]:
    """Return all points, or parts of each of `BLOCKS` equal blocks, of at most so many."""
    if points <= most:
        return [slice(0, points)]
    size = points // BLOCKS
    ends = [(b * size, (b + 1) * size) for b in range(BLOCKS)]
    return [slice(i, min(i + most, high)) for low, high in ends for i in range(low, high, most)]


def random(b: Expression) -> bool:
    """Return whether a vector varies between coordinates (parameters that are all equal do not)."""
    return not (isinstance(b, Vector) and not b.law.variance)


def basis(e: Expression) -> tuple[Expression, ...]:
    """Return the Gaussian vectors and the parameters that a vector is a function of."""
    return e.basis if isinstance(e, Apply) else (e,)


def _others(a: Expression, b: Expression) -> bool:
    """Return whether two are other entries of the kernels of one depthwise convolution."""
    if not (isinstance(a, Vector) and isinstance(b, Vector)) or a.average or b.average:
        return False
    return not a.shares(b)


def is_local(e: Expression) -> bool:
    """Return whether a vector depends on its basis position by position."""
    return not isinstance(e, Apply) or e.local


def root(b: Expression) -> Expression:
    """Return the vector of which some positions make a vector, each of them drawn once."""
    while isinstance(b, Moved) and b.move.selects:
        b = b.inner
    return b


def moved(b: Expression, drawn: Tensor) -> Tensor:
    """Return draws of a vector from those of its root."""
    if isinstance(b, Moved) and b.move.selects:
        return b.move.apply(moved(b.inner, drawn))
    return drawn


class JointDraws:
    """What is drawn together for two vectors: each pair of positions ``apart``, or all positions at once.

    Apart, where both depend on their basis position by position and positions are few: a few dimensions,
    so that few points suffice, with the same error for the same covariances.

    Variables are the random vectors of the basis of the left vector (side 0) and of the right one (1);
    those without a common weight are drawn independently of each other.
    """

    def __init__(self, pairs: PairValues, u: Expression, v: Expression, need: Need) -> None:
        self.pairs, self.vectors = pairs, (u, v)
        self.sides = (pairs.left, pairs.right)
        self.numerics = pairs.left.numerics
        places = prod(u.shape) * prod(v.shape) if need == "all" else 1
        self.apart = is_local(u) and is_local(v) and places <= FEW
        self.need: Need = need if self.apart else "all"
        self.bases = [[b for b in basis(e) if random(b)] for e in (u, v)]
        self.roots = [[b if self.apart else root(b) for b in bases] for bases in self.bases]
        same = pairs.left is pairs.right and not pairs.outer and (need == "equal" or not self.apart)
        self.alone = u is v and same
        parts = (8 if places > SOME else 1) if self.apart else 2  # half of the points, in both orders
        self.samples = max(BLOCKS, self.numerics.count // parts // BLOCKS * BLOCKS)
        joint = broadcast(u.shape, v.shape) if need == "equal" else (*u.shape, *v.shape)
        positions: Shape = joint if self.apart else ()
        self.shape = (*pairs.batch, *positions)
        self.count = prod(self.shape)
        index = torch.arange(prod(pairs.batch))
        self.index = (index // pairs.right.n, index % pairs.right.n) if pairs.outer else (index, index)

    def bytes(self, derive: bool) -> int:
        """Return the bytes of one draw for one pair, derivatives between all positions included."""
        each = sum(self.size(b) + prod(b.shape) * (root(b) is not b) for bases in self.bases for b in bases)
        numbers = 4 * max(1, each)
        for e, vectors in zip(self.vectors, self.bases, strict=True):
            if derive and isinstance(e, Apply) and e.axes is None:
                numbers += 4 * prod(e.shape) * sum(prod(b.shape) for b in vectors)
        return numbers * self.numerics.zeros(1).element_size()

    def chunks(self, derive: bool) -> tuple[list[slice], list[slice]]:
        """Return pairs that are drawn at a time, and points: all at a time, or parts of blocks of them."""
        most = max(1, self.numerics.budget // self.bytes(derive))
        pairs = max(1, min(self.count, most // self.samples))
        return list(chunks(self.count, pairs)), parts_of(self.samples, max(1, most // pairs))

    def size(self, b: Expression) -> int:
        """Return how many numbers a vector has at each draw."""
        return 1 if self.apart else prod(b.shape)

    def flat(self, value: Tensor, a: Expression, b: Expression) -> Tensor:
        """Return a value of pairs as ``[count]`` (apart) or ``[count, size of a, size of b]``."""
        if self.apart:
            return value.expand(self.shape).reshape(-1)
        shape = (*self.pairs.batch, *a.shape, *b.shape)
        return value.expand(shape).reshape(-1, prod(a.shape), prod(b.shape))

    def lift(self, which: int, chunk: slice) -> Lift:
        """Return how values of a side broadcast with the draws of a chunk of pairs."""
        if self.apart:
            rank = len(self.vectors[1 - which].shape)

            def spread(value: Tensor) -> Tensor:
                lifted = self.pairs.lift(value, "right" if which else "left", self.need, rank)
                return lifted.expand(self.shape).reshape(-1)[chunk]

            return spread
        index = self.index[which][chunk]
        return lambda value: value[index] if value.shape[0] > 1 else value

    def factors(self, order: tuple[int, int], chunk: slice) -> Factors:
        """Return which dimensions each group of variables is drawn by, and the factor of its covariance."""
        x, y = order
        variables = [(x, b) for b in self.roots[x]] + ([] if self.alone else [(y, b) for b in self.roots[y]])
        variables = list(dict.fromkeys(variables))
        places, start = {}, 0
        for variable in variables:
            size = self.size(variable[1])
            places[variable] = range(start, start + size)
            start += size
        groups: list[tuple[list[Variable], list[int]]] = []
        alike: dict[int, list[tuple[int, Tensor]]] = {}  # by size, which are factored at once
        for group in self._groups(variables):
            columns = [i for variable in group for i in places[variable]]
            rows = [torch.cat([self._block(a, b, chunk) for b in group], -1) for a in group]
            alike.setdefault(len(columns), []).append((len(groups), torch.cat(rows, -2)))
            groups.append((group, columns))
        factor: dict[int, Tensor] = {}
        for some in alike.values():
            parts = self.numerics.factor(torch.cat([matrix for _, matrix in some])).chunk(len(some))
            factor |= {i: part for (i, _), part in zip(some, parts, strict=True)}
        return 2 * start if self.alone else start, [(*g, factor[i]) for i, g in enumerate(groups)]

    def draw(
        self, order: tuple[int, int], chunk: slice, points: slice, factors: Factors
    ) -> list[dict[Expression, Tensor]]:
        """Return draws ``[S, B, *shape]`` of both bases, the first of the order by the first dimensions."""
        dimensions, groups = factors
        z = self.numerics.points(dimensions, points)
        drawn: list[dict[Expression, Tensor]] = [self._fixed(0, chunk), self._fixed(1, chunk)]
        whole: dict[Variable, Tensor] = {}
        for group, columns, factor in groups:
            values = torch.einsum("sm,bkm->sbk", z[:, columns], factor)
            parts = values.split([self.size(b) for _, b in group], -1)
            whole |= dict(zip(group, parts, strict=True))
        for which in (order[0],) if self.alone else (0, 1):
            for b, drawn_as in zip(self.bases[which], self.roots[which], strict=True):
                part = whole[which, drawn_as]
                g = part.reshape(*part.shape[:2], *(() if self.apart else drawn_as.shape))
                g = g if self.apart else moved(b, g)
                average = self.sides[which].mean(b)
                drawn[which][b] = g if average is None else g + self.lift(which, chunk)(average)
        if self.alone:
            drawn[order[1]] = drawn[order[0]]
        return drawn

    def _fixed(self, which: int, chunk: slice) -> dict[Expression, Tensor]:
        """Return the parameters of the basis that are all equal, as draws."""
        count = len(range(*chunk.indices(self.count)))
        fixed: dict[Expression, Tensor] = {}
        for b in basis(self.vectors[which]):
            if not random(b):
                assert isinstance(b, Vector)
                shape = () if self.apart else b.shape
                fixed[b] = self.numerics.zeros(1, count, *shape) + b.average
        return fixed

    def _groups(self, variables: list[Variable]) -> list[list[Variable]]:
        """Return the variables in groups that are independent of each other."""
        groups: list[list[Variable]] = []
        for variable in variables:
            tied = [g for g in groups if any(self._value(variable, other) is not None for other in g)]
            groups = [g for g in groups if g not in tied] + [[v for g in tied for v in g] + [variable]]
        return [sorted(group, key=variables.index) for group in groups]

    def _value(self, a: Variable, b: Variable) -> Tensor | None:
        if independent(a[1], b[1]) or _others(a[1], b[1]):
            return None
        if a[0] == b[0]:
            return self.sides[a[0]].itself.covariance(a[1], b[1], "equal" if self.apart else "all")
        if a[0] == 1:
            a, b = b, a
        return self.pairs.covariance(a[1], b[1], self.need)

    def _block(self, a: Variable, b: Variable, chunk: slice) -> Tensor:
        """Return the covariances of two variables, ``[B, m, m']``."""
        value = self._value(a, b)
        size = (self.size(a[1]), self.size(b[1]))
        count = len(range(*chunk.indices(self.count)))
        if value is None:
            return self.numerics.zeros(count, *size)
        if a[0] != b[0]:
            first, second = (a, b) if a[0] == 0 else (b, a)
            block = self.flat(value, first[1], second[1])[chunk]
            block = block.reshape(count, self.size(first[1]), self.size(second[1]))
            return block if a[0] == 0 else block.mT
        if self.apart:
            return self.lift(a[0], chunk)(value)[:, None, None]
        shape = (*value.shape[: value.ndim - len(a[1].shape) - len(b[1].shape)], *a[1].shape, *b[1].shape)
        value = value.expand(shape).reshape(shape[0], *size)
        return self.lift(a[0], chunk)(value).expand(count, *size)
