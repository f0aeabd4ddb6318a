"""Where along a step the outputs of single queries have kinks: units that change sides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Switches = Callable[[Tensor, Tensor], Tensor]  # rows [m], s [m] -> numbers [m, u] that change sign at kinks

_ROUNDS = 16
_PRECISE = 1e-12  # of a step: nearer than this, two places are one
_ZERO = 16 * _PRECISE  # more than that, as the slope of a number is not the same everywhere


def find_kinks(switches: Switches, rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the kinks between s = 0 and 1 as pairs (row, s), at most so many for a row; sorted.

    Where a number changes its sign between two places, the zero of the line through both is the next place:
    exact in one evaluation for a first layer (its numbers are linear in s), and since steps are short, in
    few for all others. Rows with more changes than ``most`` are left out: halving serves them as well.
    """
    few = torch.ones_like(rows, dtype=torch.bool)
    zero = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    start, end = switches(rows, zero), switches(rows, zero + 1)
    few = ((start * end) < 0).sum(1) <= most
    own, a, b, za, zb = rows[few], zero[few], zero[few] + 1, start[few], end[few]
    found_rows, found_s = [own[:0]], [a[:0]]
    for _ in range(_ROUNDS):
        way = (b - a)[:, None]
        slope = (zb - za).abs()
        crossing = (za * zb < 0) & (way * torch.minimum(za.abs(), zb.abs()) > _PRECISE * slope)
        place, unit = crossing.nonzero(as_tuple=True)
        if len(place) == 0:
            break
        left, right = za[place, unit], zb[place, unit]
        at = a[place] + (b[place] - a[place]) * left / (left - right)
        z = switches(own[place], at)
        off = (b[place] - a[place]) * z[torch.arange(len(place)), unit].abs()
        is_zero = off <= _ZERO * (left - right).abs()
        found_rows.append(own[place[is_zero]])
        found_s.append(at[is_zero])
        busy = crossing.any(1)
        own, a, b, za, zb = _cut(
            torch.cat([own[busy], own[busy], own[place]]),
            torch.cat([busy.nonzero()[:, 0]] * 2 + [place]),
            torch.cat([a[busy], b[busy], at]),
            torch.cat([za[busy], zb[busy], z]),
        )
    return _distinct(torch.cat(found_rows), torch.cat(found_s))


def _cut(
    own: Tensor, interval: Tensor, s: Tensor, z: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the intervals between neighboring places of each interval, with the numbers at their ends."""
    order = s.argsort(stable=True)
    order = order[interval[order].argsort(stable=True)]
    own, interval, s, z = own[order], interval[order], s[order], z[order]
    next_to = (interval[1:] == interval[:-1]) & (s[1:] - s[:-1] > _PRECISE)
    left = next_to.nonzero()[:, 0]
    return own[left], s[left], s[left + 1], z[left], z[left + 1]


def _distinct(rows: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    order = s.argsort(stable=True)
    order = order[rows[order].argsort(stable=True)]
    rows, s = rows[order], s[order]
    new = torch.ones_like(rows, dtype=torch.bool)
    new[1:] = (rows[1:] != rows[:-1]) | (s[1:] - s[:-1] > _PRECISE)
    inside = new & (s > _PRECISE) & (s < 1 - _PRECISE)
    return rows[inside], s[inside]
