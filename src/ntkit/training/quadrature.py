"""Where along each step the network's gradient is taken: Gauss-Legendre nodes, as many as needed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from heapq import heappop, heappush
from itertools import count
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import NtkitError
from ntkit.training.flat import FlatNetwork, Rule
from ntkit.training.run import Trail

Nodes = int | Literal["left", "auto"]

_LEVELS = (1, 2, 3, 5, 8)
_PIECES = 16  # that one step may be halved into
_BLOCK = 2**21  # numbers in the weights of a block of steps


@cache
def gauss(size: int) -> Rule:
    """Return the Gauss-Legendre rule on [0, 1], exact for polynomials of degree 2 size - 1."""
    nodes, weights = np.polynomial.legendre.leggauss(size)
    return tuple((nodes + 1) / 2), tuple(weights / 2)


LEFT: Rule = ((0.0,), (1.0,))  # Theorem 2 of "Can neural networks extrapolate?", Eq. 9


def choose_rules(
    run: Trail, net: FlatNetwork, queries: Any, nodes: Nodes, tol: float, done: Callable[[int], None]
) -> list[Rule]:
    """Return a rule for each step.

    With ``"auto"`` the error of a rule is known, since the true change of the predictions is: nodes are
    added, then the step halved, until it is within the step's share of ``tol`` times the largest movement.
    """
    if nodes == "left":
        return [LEFT] * run.steps
    if nodes != "auto":
        if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 1:
            raise NtkitError(f'nodes is {nodes!r}, expected a positive number, "left" or "auto".')
        return [gauss(nodes)] * run.steps
    if run.steps == 0:
        return []
    first, last = (net.outputs(run.weights(k), queries) for k in (0, run.steps))
    size = float(torch.maximum(first.abs(), last.abs()).max())
    share = max(
        0.5 * tol * float((last - first).abs().max()) / run.steps, 8 * torch.finfo(torch.float64).eps * size
    )
    return _Chooser(run, net, queries, share).all(done)


class _Chooser:
    def __init__(self, run: Trail, net: FlatNetwork, queries: Any, share: float) -> None:
        self.run, self.net, self.queries, self.share = run, net, queries, share
        self.rules: list[Rule] = [LEFT] * run.steps

    def all(self, done: Callable[[int], None]) -> list[Rule]:
        width = max(1, min(32, _BLOCK // (8 * max(self.net.total, 1))))
        level = 1
        for start in range(0, self.run.steps, width):
            steps = range(start, min(start + width, self.run.steps))
            path = torch.stack([self.run.weights(k) for k in (*steps, steps[-1] + 1)])
            level = max(self._block(steps, path, max(level - 1, 0)), 0)
            done(len(steps))
        return self.rules

    def _block(self, steps: range, path: Tensor, level: int) -> int:
        values = self.net.many_outputs(path, self.queries)
        true, delta = values.diff(dim=0), path.diff(dim=0)
        left = torch.arange(len(steps))
        while len(left) and level < len(_LEVELS):
            rule = gauss(_LEVELS[level])
            error = (self._changes(path[left], delta[left], rule) - true[left]).abs().amax((1, 2))
            for i in left[error <= self.share].tolist():
                self.rules[steps[i]] = rule
            left = left[error > self.share]
            level += 1
        for i in left.tolist():
            self.rules[steps[i]] = self._halved(path[i], delta[i], values[i], values[i + 1])
        return level - 1

    def _changes(self, start: Tensor, delta: Tensor, rule: Rule) -> Tensor:
        nodes, weights = (torch.tensor(r, dtype=start.dtype, device=start.device) for r in rule)
        points = start[:, None] + nodes[:, None] * delta[:, None]
        flat = delta[:, None].expand_as(points).reshape(-1, points.shape[-1])
        slopes = self.net.slopes(points.reshape_as(flat), flat, self.queries)
        return torch.einsum("s,tsno->tno", weights, slopes.unflatten(0, points.shape[:2]))

    def _halved(self, start: Tensor, delta: Tensor, first: Tensor, last: Tensor) -> Rule:
        """Halve the worst piece of a step until the whole is good, or the pieces are as many as may be."""
        made = count()  # so that equal errors compare
        first_piece = self._piece(start, delta, 0.0, 1.0, first, last)
        pieces = [(-first_piece[0], next(made), *first_piece[1:])]
        while -sum(piece[0] for piece in pieces) > self.share and len(pieces) < _PIECES:
            _, _, a, b, f_a, f_b = heappop(pieces)
            middle = (a + b) / 2
            f_middle = self.net.outputs(start + middle * delta, self.queries)
            for ends in ((a, middle, f_a, f_middle), (middle, b, f_middle, f_b)):
                piece = self._piece(start, delta, *ends)
                heappush(pieces, (-piece[0], next(made), *piece[1:]))
        ends = sorted((a, b) for _, _, a, b, _, _ in pieces)
        nodes, weights = gauss(_LEVELS[-2])
        return (
            tuple(a + (b - a) * node for a, b in ends for node in nodes),
            tuple((b - a) * weight for a, b in ends for weight in weights),
        )

    def _piece(
        self, start: Tensor, delta: Tensor, a: float, b: float, f_a: Tensor, f_b: Tensor
    ) -> tuple[float, float, float, Tensor, Tensor]:
        change = self._changes((start + a * delta)[None], (b - a) * delta[None], gauss(_LEVELS[-2]))[0]
        return float((change - (f_b - f_a)).abs().max()), a, b, f_a, f_b
