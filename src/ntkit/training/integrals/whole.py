"""Nodes for the steps of a whole account: more where the residual of the account gains most."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ntkit.inputs import Batch
from ntkit.training.folder.step import Trail
from ntkit.training.functional.flat_network import VMAP_LIMIT, FlatNetwork
from ntkit.training.integrals.adaptive import QueryRule, query_rule
from ntkit.training.integrals.along_step import AlongStep
from ntkit.training.integrals.gauss import NESTED, QuadratureRule, nested

_PIECES = 64  # of a step
_PATIENCE = 4  # refinements in a row that hardly help
_MARGIN = 0.8  # of what is allowed
_AT_ONCE = 3  # refinements of a step whose weights are at hand, before the other steps have theirs


@dataclass
class _Step:
    """A step under refinement: its rule, and what the slopes at its nodes say, ``[nodes, r]``."""

    true: Tensor
    level: int = 0
    pieces: int = 1
    stuck: int = 0
    cut: QueryRule | None = None
    slopes: list[Tensor] = field(default_factory=list)

    @property
    def rule(self) -> QuadratureRule | QueryRule:
        """The nested rule, on each piece of the step, or the one that is cut at kinks."""
        return self.nested if self.cut is None else self.cut

    @property
    def nested(self) -> QuadratureRule:
        """The nested rule, on each piece of the step."""
        nodes, shares = nested(self.level)
        count = self.pieces
        if count == 1:
            return nodes, shares
        places = tuple((i + s) / count for i in range(count) for s in nodes)
        return places, tuple(v / count for _ in range(count) for v in shares)

    @property
    def may_be_refined(self) -> bool:
        """Whether another rule may help."""
        return self.cut is None and self.pieces < _PIECES and self.stuck < _PATIENCE

    def refine(self) -> None:
        """Take the next rule, and keep the slopes that both share."""
        if self.level + 1 < len(NESTED):
            self.level += 1
        else:
            self.pieces, self.slopes = 2 * self.pieces, []

    def residual(self) -> Tensor:
        """Return the true change less the quadrature of the slopes, ``[r]``."""
        shares = self.true.new_tensor(self.nested[1])
        return self.true - shares @ torch.stack(self.slopes)


@dataclass(frozen=True)
class WholeRules:
    """The rules of all steps, and what they leave of the change of each step, ``residuals [steps, r]``."""

    rules: list[QuadratureRule | QueryRule]
    residuals: Tensor


def whole_rules(
    net: FlatNetwork,
    trail: Trail,
    queries: Batch,
    allowed: float,
    along: Callable[[Tensor, Tensor], AlongStep],
    changed: Callable[[int], None] | None,
    done: Callable[[int], None],
    in_turn: bool = False,
) -> WholeRules:
    """Choose rules so that the residuals r_k of all steps together are within ``allowed``.

    Each step begins with its middle. While abs(sum_k r_k) or sqrt(sum_k r_k^2) of any row exceeds what is
    allowed, the step of the largest abs(r_k) gets the next nested rule (Patterson, 1968), which keeps its
    nodes. Behind the last one the step is cut at its kinks ``along`` the way, or gets twice the pieces where
    these cannot be found or are many. With ``in_turn``, where weights must be made or read one after the
    other, steps are refined in their order: as many as would leave half of what is allowed if nothing were
    left of them, each until it has its part of the other half. ``changed(k)`` puts the network to the buffers
    behind step k, if they change.
    """
    steps = [_Step(true, slopes=[slope]) for true, slope in _first(net, trail, queries, changed, done)]
    if not steps:
        return WholeRules([], torch.zeros(0, 0))
    residuals = torch.stack([step.residual() for step in steps]).double()
    heap = [(-float(r.abs().max()), k) for k, r in enumerate(residuals)]
    heapq.heapify(heap)
    total, squares = residuals.sum(0), residuals.square().sum(0)

    def is_open(total: Tensor, squares: Tensor, part: float = 1.0) -> bool:
        return float(torch.maximum(total.abs(), squares.clamp_min(0).sqrt()).max()) > part * _MARGIN * allowed

    def next_steps() -> list[int]:
        if not in_turn:
            return [heapq.heappop(heap)[1]]
        chosen, left, left_squares = [], total.clone(), squares.clone()
        while heap and is_open(left, left_squares, 0.5):
            chosen.append(heapq.heappop(heap)[1])
            left -= residuals[chosen[-1]]
            left_squares -= residuals[chosen[-1]].square()
        return sorted(chosen)

    def refine(k: int, share: float) -> None:
        step = steps[k]
        if changed is not None:
            changed(k)
        start, end = (trail.weights(at).to(net.dtype) for at in (k, k + 1))
        for _ in range(_AT_ONCE if in_turn else 1):
            if step.level + 1 == len(NESTED) and (way := along(start, end - start)).has_few_kinks:
                new = _cut(net, step, way, start, end, queries, _MARGIN * allowed / len(steps)).double()
            else:
                step.refine()
                _evaluate(net, start, end - start, queries, step)
                new = step.residual().double()
            step.stuck = step.stuck + 1 if new.abs().max() > 0.7 * residuals[k].abs().max() else 0
            total.add_(new - residuals[k])
            squares.add_(new.square() - residuals[k].square())
            residuals[k] = new
            if not step.may_be_refined or float(new.abs().max()) <= share:
                break
        if step.may_be_refined:
            heapq.heappush(heap, (-float(residuals[k].abs().max()), k))

    while heap and is_open(total, squares):
        chosen = next_steps()
        for k in chosen:
            refine(k, 0.5 * _MARGIN * allowed / len(chosen) ** 0.5)
    return WholeRules([step.rule for step in steps], residuals)


def _first(
    net: FlatNetwork,
    trail: Trail,
    queries: Batch,
    changed: Callable[[int], None] | None,
    done: Callable[[int], None],
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the change of the queries over each step, and their slope in its middle, ``[r]`` each."""
    block = 1 if changed is not None else max(1, min(32, VMAP_LIMIT // (8 * max(1, net.total))))
    first = 0
    last: Tensor | None = None
    while first < trail.steps:
        size = min(block, trail.steps - first)
        path = torch.stack([trail.weights(first + t) for t in range(size + 1)]).to(net.dtype)
        if changed is not None:
            changed(first)
            last = None
        delta = path.diff(dim=0)
        if last is None:
            values = net.many_outputs(path, queries)
        else:
            values = torch.cat([last[None], net.many_outputs(path[1:], queries)])
        last = values[-1]
        slopes = net.slopes(path[:-1] + 0.5 * delta, delta, queries)
        yield from zip(values.diff(dim=0).flatten(1), slopes.flatten(1), strict=True)
        done(size)
        first += size


def _evaluate(net: FlatNetwork, start: Tensor, delta: Tensor, queries: Batch, step: _Step) -> None:
    """Add the slopes at the nodes of a step's rule that are not there yet."""
    nodes = step.nested[0][len(step.slopes) :]
    at = torch.tensor(nodes, dtype=net.dtype, device=start.device)
    size = max(1, VMAP_LIMIT // (8 * max(1, net.total)))
    for some in at.split(size):
        points = start + some[:, None] * delta
        step.slopes += net.slopes(points, delta.expand_as(points), queries).flatten(1)


def _cut(
    net: FlatNetwork, step: _Step, way: AlongStep, start: Tensor, end: Tensor, queries: Batch, share: float
) -> Tensor:
    """Give a step a rule for each query, cut at its kinks, and return what that leaves, ``[r]``."""
    first, last = (net.outputs(w, queries).double() for w in (start, end))
    step.cut = rule = query_rule(way, first, last, share)
    slopes = rule.shares[:, None] * way.slopes(rule.rows, rule.s)
    return (last - first - torch.zeros_like(first).index_add_(0, rule.rows, slopes)).flatten()
