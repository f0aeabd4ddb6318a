"""Where along each step the network's gradient is taken: as many nodes as the tolerance needs."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ntkit.errors import BadValueError, nearest
from ntkit.inputs import Batch, batch_size
from ntkit.training.functional.flat_network import FlatNetwork
from ntkit.training.functional.structure import Structure
from ntkit.training.integrals.adaptive import QueryRule, query_rule
from ntkit.training.integrals.along_step import AlongStep
from ntkit.training.integrals.gauss import LEFT, LEVELS, QuadratureRule, gauss

Nodes = int | Literal["left", "auto"]

_BLOCK = 2**21  # numbers in the weights of a block of steps


def fixed_rule(nodes: Nodes) -> QuadratureRule | None:
    """Return the rule that all steps take, None if each takes its own."""
    if nodes == "left":
        return LEFT
    if nodes == "auto":
        return None
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
        near = nearest(nodes, ("left", "auto"))
        raise BadValueError(f'nodes is {nodes!r}, expected a positive number, "left" or "auto".{near}')
    return gauss(nodes)


class Chooser:
    """Chooses rules for steps, such that the error of each, which is measured, is at most ``share``.

    The error is known, since the true change of the predictions is: nodes are added; a step that they do
    not improve gets a rule for each query, cut at its kinks and halved where it must be.
    """

    def __init__(
        self, net: FlatNetwork, structure: Structure | None, queries: Batch, share: float, budget: int
    ) -> None:
        self.net, self.structure, self.queries = net, structure, queries
        self.share, self.budget = share, budget
        self.level = 1
        rows = batch_size(queries)
        by_block = min(_BLOCK // (8 * max(net.total, 1)), _BLOCK // max(1, rows * net.total // 8))
        self.together = max(1, min(32, by_block))
        much = rows * net.total > _BLOCK // 8
        self._alone = structure is not None and (much or not net.batchable)

    def rules(self, path: Tensor) -> list[QuadratureRule | QueryRule]:
        """Return the rules of the steps between neighboring weights ``[t + 1, P]``."""
        delta = path.diff(dim=0)
        if self._alone:
            return [self._alone_rule(path[i], delta[i]) for i in range(len(delta))]
        values = self.net.many_outputs(path, self.queries)
        true = values.diff(dim=0)
        rules: list[QuadratureRule | QueryRule] = [LEFT] * len(delta)
        left = torch.arange(len(delta))
        level = max(self.level - 1, 0)
        before = torch.full((len(delta),), torch.inf, dtype=path.dtype)
        hopeless: list[int] = []
        while len(left) and level < len(LEVELS):
            rule = gauss(LEVELS[level])
            error = (self._changes(path[left], delta[left], rule) - true[left]).abs().amax((1, 2)).cpu()
            for i in left[error <= self.share].tolist():
                rules[i] = rule
            stuck = (error > self.share) & (error > 0.2 * before[left])
            hopeless += left[stuck].tolist()
            before[left] = error
            left = left[(error > self.share) & ~stuck]
            level += 1
        self.level = max(level - 1, 0) if not hopeless else self.level
        for i in [*hopeless, *left.tolist()]:
            along = self.along(path[i], delta[i])
            rules[i] = query_rule(along, values[i], values[i + 1], self.share)
        return rules

    def along(self, start: Tensor, delta: Tensor) -> AlongStep:
        """Return the queries along one step."""
        return AlongStep(self.net, self.structure, self.queries, start, delta, self.budget)

    def _alone_rule(self, start: Tensor, delta: Tensor) -> QueryRule:
        first, last = (self.net.outputs(w, self.queries) for w in (start, start + delta))
        return query_rule(self.along(start, delta), first, last, self.share)

    def _changes(self, start: Tensor, delta: Tensor, rule: QuadratureRule) -> Tensor:
        nodes, weights = (torch.tensor(r, dtype=start.dtype, device=start.device) for r in rule)
        points = start[:, None] + nodes[:, None] * delta[:, None]
        flat = delta[:, None].expand_as(points).reshape(-1, points.shape[-1])
        slopes = self.net.slopes(points.reshape_as(flat), flat, self.queries)
        return torch.einsum("s,tsno->tno", weights, slopes.unflatten(0, points.shape[:2]))
