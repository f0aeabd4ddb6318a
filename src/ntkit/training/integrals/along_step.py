"""A network along one step of training: rows of queries, each at its own place s between its ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.inputs import Batch, take
from ntkit.training.functional.flat_network import FlatNetwork
from ntkit.training.functional.structure import Structure
from ntkit.training.integrals.averaged_gradients import write_sums

_FEW = 2**13  # numbers that one row holds on its way through the network


class AlongStep:
    """The queries x of one tile along the step ``start + s delta``; rows are numbers of queries.

    Outputs and slopes are float64, whatever the network is.
    """

    def __init__(
        self,
        net: FlatNetwork,
        structure: Structure | None,
        x: Batch,
        start: Tensor,
        delta: Tensor,
        budget: int,
    ) -> None:
        self._net, self._x, self._start, self._delta = net, x, start, delta
        self._place, self._width = None, 0
        size = net.dtype.itemsize
        per_row = 5 * size * net.total  # the weights of a row, their tangents, and what is saved for both
        if structure is not None:
            first, last = net.unflatten(start), net.unflatten(start + delta)
            self._place = structure.at(first, last, net.buffers)
            per_row, self._width = 6 * size * structure.width, structure.width
        self._most = max(1, budget // per_row)

    @property
    def knows_kinks(self) -> bool:
        """Whether `switches` can be asked."""
        return self._place is not None

    @property
    def has_few_kinks(self) -> bool:
        """Whether it pays to look for each: there are at most about as many as numbers on the way."""
        return self.knows_kinks and self._width <= _FEW

    def outputs(self, rows: Tensor, s: Tensor) -> Tensor:
        """Return the outputs of rows, ``[m, o]``."""
        if self._place is not None:
            return self._by_rows(self._place.outputs, rows, s)
        return self._by_rows(self._net.mapped(self._one), rows, s)

    def slopes(self, rows: Tensor, s: Tensor) -> Tensor:
        """Return d outputs / d s, ``[m, o]``."""
        if self._place is not None:
            return self._by_rows(self._place.slopes, rows, s)
        one = self._net.mapped(lambda x, s: self._net.slope(lambda at: self._one(x, at), s))
        return self._by_rows(one, rows, s)

    def switches(self, rows: Tensor, s: Tensor) -> Tensor:
        """Return the numbers ``[m, u]`` at whose changes of sign the outputs have a kink."""
        assert self._place is not None
        return self._by_rows(self._place.switches, rows, s)

    def averaged(self, rows: Tensor, s: Tensor, shares: Tensor, out: Tensor) -> None:
        """Write sum_i shares_i d f(x) / d w at s_i, over the rows of each query, into ``out [q, o, P]``.

        Rows are sorted.
        """
        q, o, _ = out.shape
        s, shares = s.to(out.dtype), shares.to(out.dtype)
        counts = torch.bincount(rows, minlength=q)
        ends = counts.cumsum(0)
        place = torch.arange(len(rows), device=rows.device) - (ends - counts)[rows]
        first = 0
        while first < q:
            least = int(ends[first] - counts[first])
            last = max(first + 1, int((ends - least <= self._most // o).sum()))
            part = slice(least, int(ends[last - 1]))
            self._add(out[first:last], rows[part], s[part], shares[part], place[part], first)
            first = last

    def _add(self, out: Tensor, rows: Tensor, s: Tensor, shares: Tensor, place: Tensor, first: int) -> None:
        o = out.shape[1]
        x = take(self._x, rows)
        if self._place is None:
            out.zero_()
            for i in range(len(rows)):  # one after the other: each is as large as what is returned
                row = pytree.tree_map(lambda t, i=i: t[i], x)
                weights = self._start + s[i] * self._delta
                jacobian = self._net.jacobian(
                    lambda w, row=row: self._net.sample(self._net.unflatten(w), row), weights
                )
                out[rows[i] - first].add_(jacobian, alpha=float(shares[i]))
            return
        eye = torch.eye(o, dtype=out.dtype, device=out.device)
        jacobian = self._place.jacobian(x, s, eye[:, None].expand(o, len(rows), o))
        write_sums(jacobian, self._net, shares, rows - first, place, out)

    def _one(self, x: Batch, s: Tensor) -> Tensor:
        return self._net.sample(self._net.unflatten(self._start + s * self._delta), x)

    def _by_rows(self, function: Callable[[Any, Tensor], Tensor], rows: Tensor, s: Tensor) -> Tensor:
        pieces = zip(rows.split(self._most), s.to(self._start.dtype).split(self._most), strict=True)
        return torch.cat([function(take(self._x, i), at) for i, at in pieces]).double()
