"""The backward sweep over a path: every sample's contribution, without any sample's momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.network import batch_size
from ntkit.training.averaging import Averages
from ntkit.training.flat import FlatNetwork, Loss, Rule, gather
from ntkit.training.rows import Rows
from ntkit.training.run import Run, Step, Trail

_BLOCK = 2**22  # numbers in the gradients of a block of steps, for small networks


@dataclass(frozen=True)
class Columns:
    """Sums over the path for r = queries times outputs rows: ``contributions [r, n]``, the rest ``[r]``."""

    contributions: Tensor
    decay: Tensor
    start: Tensor
    rounding: Tensor


@dataclass(frozen=True)
class Path:
    """A run with all that a sweep over it needs; ``average`` if predictions are those of an average."""

    run: Run
    net: FlatNetwork
    data: Any
    loss: Loss
    rules: Sequence[Rule]
    differences: Rows
    average: Averages | None = None


def sweep(path: Path, queries: Any, budget: int, done: Callable[[int], None]) -> Columns:
    """Go backwards over the steps, with D the integral of the queries' gradients along each step.

    With R = 0 behind the last step, C and decay summed over the steps, and start at the end::

        R_k = b_k D_k + mu_{k+1} R_{k+1}        A_k = a_k D_k + nu_k R_k
        C(x, n) -= scale_k A_k . J(x_n; w_k)^T c_{n,k}
        decay   -= decay_k A_k . w_k + d_k D_k . w_k
        start    = -mu_0 R_0 . m_{-1}
        rounding += D_k . (the step as it was - the step as modelled)

    With matrices beside a step, a_k and b_k multiply left^T D_k right^T; decay and rounding take D_k itself.
    For an average v += tau_k (w_{k+1} - v), D is that of v's steps, and E takes the place of D above::

        E_k = tau_k D_k + (1 - tau_k) E_{k+1},  start += E_0 . (w_0 - v_0)
    """
    run, net = path.run, path.net
    average = path.average
    trail: Trail = run if average is None else average
    o = net.outputs(run.weights(0), queries).shape[1]
    rows = batch_size(queries) * o

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.float64, device=run.device)

    contributions, decay, rounding = zeros(rows, batch_size(path.data[0])), zeros(rows), zeros(rows)
    remembered: Tensor | None = None
    later: Tensor | None = None
    mu_next: float | Tensor = 0.0
    for first, steps in _blocks(path, rows, budget):
        weights = torch.stack([run.weights(k) for k in range(first, first + len(steps) + 1)])
        rules = path.rules[first : first + len(steps)]
        along = weights
        if average is not None:
            along = torch.stack([trail.weights(k) for k in range(first, first + len(steps) + 1)])
        averaged = net.averaged_jacobians(along[:-1], along.diff(dim=0), rules, queries).flatten(1, 2)
        gradients = _sample_gradients(path, weights[:-1], steps)
        for t in reversed(range(len(steps))):
            d, g, w, c = averaged[t], gradients[t], weights[t], steps[t].coefficients
            if average is not None:
                if first + t == run.steps - 1:
                    rounding += d @ average.rounding
                tau = average.taus[first + t + 1]
                later = d = tau * d if later is None else tau * d + (1 - tau) * later
            pulled = steps[t].pulled(d)
            if remembered is not None:
                remembered *= mu_next
            if isinstance(c.b, Tensor) or c.b != 0:
                if remembered is None:
                    remembered = pulled * c.b
                elif isinstance(c.b, Tensor):
                    remembered.addcmul_(pulled, c.b)
                else:
                    remembered.add_(pulled, alpha=c.b)
            for factor, direction in ((c.a, pulled), (c.nu, remembered)):
                if direction is None or (not isinstance(factor, Tensor) and factor == 0):
                    continue
                share = direction @ (factor * c.scale * g).T
                contributions.index_add_(1, steps[t].batch, share, alpha=-1)
                if isinstance(c.decay, Tensor) or c.decay != 0:
                    decay -= direction @ (factor * c.decay * w)
            if isinstance(c.d, Tensor) or c.d != 0:
                decay -= d @ (c.d * w)
            rounding += d @ path.differences[first + t].to(d.device)
            mu_next = c.mu
        done(len(steps))
    start, buffer = zeros(rows), run.momentum()
    if remembered is not None and buffer is not None:
        start -= remembered @ (mu_next * buffer)
    if later is not None and average is not None:
        start += later @ average.lag
    return Columns(contributions, decay, start, rounding)


def _blocks(path: Path, rows: int, budget: int) -> Iterator[tuple[int, list[Step]]]:
    """Yield steps from the last to the first, those together that have rules and batches of one size."""
    limit = min(_BLOCK, budget // 32)
    end = path.run.steps
    while end > 0:
        steps = [path.run.step(end - 1)]
        nodes, size = len(path.rules[end - 1][0]), len(steps[0].batch)
        most = limit // max(1, path.net.total * max(rows * nodes, size))
        while len(steps) < most and end - len(steps) > 0:
            step = path.run.step(end - len(steps) - 1)
            if len(step.batch) != size or len(path.rules[end - len(steps) - 1][0]) != nodes:
                break
            steps.insert(0, step)
        end -= len(steps)
        yield end, steps


def _sample_gradients(path: Path, weights: Tensor, steps: list[Step]) -> Tensor:
    batches = [step.batch for step in steps]
    x, y = gather(path.data[0], batches), gather(path.data[1], batches)
    c = [
        path.net.cotangents(weights[t], _row(x, t), _row(y, t), step.loss(path.loss))
        for t, step in enumerate(steps)
    ]
    return path.net.sample_gradients(weights, x, torch.stack(c))


def _row(data: Any, t: int) -> Any:
    return pytree.tree_map(lambda v: v[t], data)
