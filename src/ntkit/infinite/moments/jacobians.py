"""Derivatives between all pairs of positions: rows that no position sees together come from one pass."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from ntkit.infinite.variables.expression import Expression, walk
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.positions import Shape, expand
from ntkit.infinite.variables.vectors import Gain, Moved, Multiple, Stopped, VectorSum

Leaves = dict[Expression, Tensor]


@dataclass(frozen=True)
class Pattern:
    """Which positions of its basis a function depends on, and its positions in groups that share none.

    ``sees[b]`` is ``[P, Q]``; ``copies`` are the shapes to which vectors of one number are repeated, so
    that each position of the function has a copy of its own.
    """

    sees: dict[Expression, Tensor]
    groups: tuple[Tensor, ...]
    copies: dict[Expression, Shape]

    def repeated(self, leaves: Leaves) -> Leaves:
        """Return draws with those that are repeated."""
        found = {}
        for b, t in leaves.items():
            shape = self.copies.get(b)
            found[b] = (
                t
                if shape is None
                else t.reshape(*t.shape[:2], *(1,) * len(shape)).expand(*t.shape[:2], *shape)
            )
        return found


def pattern(u: Apply) -> Pattern:
    """Return what a function depends on, position by position: found once."""
    if "pattern" not in u.__dict__:
        copies = _copies(u)
        sees = _sees(u, {b: copies.get(b, b.shape) for b in u.basis})
        u.__dict__["pattern"] = Pattern(sees, _groups(list(sees.values())), copies)
    return u.__dict__["pattern"]


def jacobians(u: Apply, value: Tensor, leaves: Leaves) -> Leaves:
    """Return d value / d leaf for all pairs of positions, ``[S, B, P, Q]``, of `Pattern.repeated` leaves."""
    of = pattern(u)
    lead = value.shape[: value.ndim - len(u.shape)]
    flat = value.expand(*lead, *u.shape).reshape(*lead, -1)
    ends = list(leaves.values())
    sees = {b: s.to(flat.device) for b, s in of.sees.items()}
    sizes = {b: 1 if b in of.copies else s.shape[1] for b, s in sees.items()}
    found = {b: flat.new_zeros(*lead, flat.shape[-1], sizes[b]) for b in leaves}
    for group in of.groups:
        rows = group.to(flat.device)
        gradients = torch.autograd.grad(flat[..., rows].sum(), ends, retain_graph=True, allow_unused=True)
        for (b, t), g in zip(leaves.items(), gradients, strict=True):
            if g is None:
                continue
            g = g.expand(*lead, *t.shape[len(lead) :]).reshape(*lead, -1)
            mask = sees[b][rows].to(g.dtype)
            found[b][..., rows, :] = (g @ mask.T)[..., None] if b in of.copies else g[..., None, :] * mask
    return found


def _copies(u: Apply) -> dict[Expression, Shape]:
    """Return the vectors of one number that only meet others position by position, in one shape."""
    shapes: dict[Expression, set[Shape]] = {b: set() for b in u.basis if prod(b.shape) == 1}
    for e in walk(u, below=lambda e: e not in u.basis):
        if e in u.basis:
            continue
        local = isinstance(e, VectorSum | Gain) or (isinstance(e, Apply) and e.function.local)
        for part in e.parts:
            if part in shapes:
                shapes[part].add(e.shape if local else ())
    return {b: found.pop() for b, found in shapes.items() if len(found) == 1 and prod(next(iter(found))) > 1}


def _sees(u: Apply, sizes: dict[Expression, Shape]) -> dict[Expression, Tensor]:
    """Return for each vector of the basis which of its positions each position depends on, ``[P, Q]``."""
    known: dict[Expression, dict[Expression, Tensor]] = {}  # [Q, *shape]
    for b, shape in sizes.items():
        known[b] = {b: torch.eye(prod(shape)).reshape(-1, *shape) > 0}
    for e in walk(u, below=lambda e: e not in sizes):
        if e not in known:
            merged: dict[Expression, Tensor] = {}
            for part in e.parts:
                for b, seen in _through(e, part, known[part]).items():
                    merged[b] = merged[b] | seen if b in merged else seen
            known[e] = merged
    rows = {}
    for b, shape in sizes.items():
        seen = known[u].get(b)
        seen = torch.zeros(prod(shape), *u.shape, dtype=torch.bool) if seen is None else seen
        rows[b] = expand(seen, u.shape).reshape(seen.shape[0], -1).T
    return rows


def _through(e: Expression, part: Expression, seen: dict[Expression, Tensor]) -> dict[Expression, Tensor]:
    if isinstance(e, VectorSum | Gain | Multiple | Stopped) or (isinstance(e, Apply) and e.function.local):
        return {b: expand(s, s.shape[1:]) for b, s in seen.items()}
    if isinstance(e, Apply) and e.function.rows:
        return {b: s.any(-1) for b, s in seen.items()}
    if isinstance(e, Moved):  # what one position takes of several may cancel, but for odd numbers
        odd = 1 + torch.rand(e.move.before, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        return {b: e.move.apply(expand(s, e.move.before) * odd) != 0 for b, s in seen.items()}
    return {b: s.flatten(1).any(1).reshape(-1, *(1,) * len(e.shape)) for b, s in seen.items()}


def _groups(sees: list[Tensor]) -> tuple[Tensor, ...]:
    """Return positions in groups, none of which sees what another one of its group sees."""
    count = sees[0].shape[0]
    near = torch.zeros(count, count)
    for s in sees:
        near += s.float() @ s.float().T
    conflicts = (near > 0).numpy()
    group = np.full(count, -1)
    for p in range(count):
        taken = np.unique(group[conflicts[p] & (group >= 0)])
        free = np.setdiff1d(np.arange(len(taken) + 1), taken)
        group[p] = free[0]
    return tuple(torch.from_numpy(np.flatnonzero(group == g)) for g in range(group.max() + 1))
