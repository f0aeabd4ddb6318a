"""Composite rules for single queries along one step: cut at kinks, as many nodes as each piece needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ntkit.training.integrals.along_step import AlongStep
from ntkit.training.integrals.gauss import LEVELS, gauss
from ntkit.training.integrals.kinks import find_kinks

MOST = 256  # pieces of one query's step
_HOPELESS = 0.2  # nodes were added, and the error fell by less: a kink, or far too long a step


@dataclass(frozen=True)
class QueryRule:
    """Nodes s with their weights for the rows of a tile: ``rows``, sorted, says whose each node is."""

    rows: Tensor
    s: Tensor
    shares: Tensor

    @property
    def most(self) -> int:
        """The largest number of nodes of one query."""
        return int(torch.bincount(self.rows).max()) if len(self.rows) else 0

    @property
    def total(self) -> int:
        """The number of nodes of all queries."""
        return len(self.rows)


@dataclass
class _Pieces:
    """Pieces ``[a, b]`` of the step of queries, the outputs at their ends, their best rule and its error."""

    rows: Tensor
    a: Tensor
    b: Tensor
    fa: Tensor
    fb: Tensor
    error: Tensor
    level: Tensor

    @classmethod
    def new(cls, rows: Tensor, a: Tensor, b: Tensor, fa: Tensor, fb: Tensor) -> _Pieces:
        return cls(rows, a, b, fa, fb, torch.full_like(a, torch.inf), torch.zeros_like(rows))

    def take(self, index: Tensor) -> _Pieces:
        return _Pieces(**{name: value[index] for name, value in vars(self).items()})

    def join(self, other: _Pieces) -> _Pieces:
        both = {name: torch.cat([value, getattr(other, name)]) for name, value in vars(self).items()}
        return _Pieces(**both)


def query_rule(along: AlongStep, first: Tensor, last: Tensor, share: float) -> QueryRule:
    """Return the rule of a step for each query whose error, which is known, is at most ``share``.

    Nodes are added first. Queries that do not improve are cut at their kinks, where these can be found;
    then the worst pieces are halved, until each query is good or has as many pieces as allowed.
    """
    q, first, last = len(first), first.double(), last.double()
    rows = torch.arange(q, device=first.device)
    whole = _Pieces.new(rows, first.new_zeros(q), first.new_ones(q), first, last)
    done = _added(along, whole, torch.full_like(whole.a, share))
    good = done.error <= share
    finished, bad = done.take(good), done.take(~good)
    if len(bad.rows) and along.knows_kinks:
        bad = _cut(along, bad, share)
    finished = finished.join(_halved(along, bad, share))
    return _rule(finished)


def _added(along: AlongStep, pieces: _Pieces, allowed: Tensor, most: int = len(LEVELS)) -> _Pieces:
    """Add nodes to each piece until it is good, or more do not help."""
    active = torch.arange(len(pieces.rows), device=pieces.rows.device)
    for level, size in enumerate(LEVELS[:most]):
        if len(active) == 0:
            break
        rows, a, b = pieces.rows[active], pieces.a[active], pieces.b[active]
        nodes, shares = (torch.tensor(v, dtype=a.dtype, device=a.device) for v in gauss(size))
        at = a[:, None] + (b - a)[:, None] * nodes
        slopes = along.slopes(rows.repeat_interleave(size), at.reshape(-1)).unflatten(0, (-1, size))
        change = torch.einsum("i,s,iso->io", torch.ones_like(a), shares, slopes) * (b - a)[:, None]
        error = (change - (pieces.fb - pieces.fa)[active]).abs().amax(1)
        before = pieces.error[active]
        better = error < before
        pieces.error[active[better]], pieces.level[active[better]] = error[better], level
        hopeless = (error > _HOPELESS * before) & torch.isfinite(before)
        active = active[(error > allowed[active]) & ~hopeless]
    return pieces


def _cut(along: AlongStep, bad: _Pieces, share: float) -> _Pieces:
    rows, s = find_kinks(along.switches, bad.rows, MOST // 2)
    if len(s) == 0:
        return bad
    values = along.outputs(rows, s)
    order = torch.cat([bad.rows, rows, bad.rows]).argsort(stable=True)
    places = torch.cat([bad.a, s, bad.b])[order]
    owner = torch.cat([bad.rows, rows, bad.rows])[order]
    f = torch.cat([bad.fa, values, bad.fb])[order]
    left = (owner[1:] == owner[:-1]).nonzero()[:, 0]
    pieces = _Pieces.new(owner[left], places[left], places[left + 1], f[left], f[left + 1])
    counts = torch.bincount(pieces.rows)
    return _added(along, pieces, 0.5 * share / counts[pieces.rows])


def _halved(along: AlongStep, pieces: _Pieces, share: float) -> _Pieces:
    """Halve the worst piece of each query until the sum of its errors is good."""
    while len(pieces.rows):
        size = int(pieces.rows.max()) + 1
        total = pieces.error.new_zeros(size).index_add_(0, pieces.rows, pieces.error)
        worst = pieces.error.new_zeros(size).scatter_reduce_(0, pieces.rows, pieces.error, "amax")
        counts = torch.bincount(pieces.rows, minlength=size)
        open_ = (total > share) & (counts < MOST)
        split = open_[pieces.rows] & (pieces.error >= 0.5 * worst[pieces.rows])
        split &= pieces.b - pieces.a > 1e-14
        if not split.any():
            break
        old, rest = pieces.take(split), pieces.take(~split)
        middle = (old.a + old.b) / 2
        f = along.outputs(old.rows, middle)
        new = _Pieces.new(old.rows, old.a, middle, old.fa, f)
        new = new.join(_Pieces.new(old.rows, middle, old.b, f, old.fb))
        # pieces without a kink are good soon; those with one are only to get short
        pieces = rest.join(_added(along, new, 0.25 * share / counts[new.rows], most=3))
    return pieces


def _rule(pieces: _Pieces) -> QueryRule:
    rows, s, shares = [], [], []
    for level, size in enumerate(LEVELS):
        of_level = pieces.take(pieces.level == level)
        nodes, weights = (of_level.a.new_tensor(v) for v in gauss(size))
        way = of_level.b - of_level.a
        rows.append(of_level.rows.repeat_interleave(size))
        s.append((of_level.a[:, None] + way[:, None] * nodes).reshape(-1))
        shares.append((way[:, None] * weights).reshape(-1))
    order = torch.cat(s).argsort(stable=True)
    order = order[torch.cat(rows)[order].argsort(stable=True)]
    return QueryRule(torch.cat(rows)[order], torch.cat(s)[order], torch.cat(shares)[order])
