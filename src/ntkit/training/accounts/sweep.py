"""The backward sweep over a path: every sample's contribution, without any sample's momentum."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ntkit.compute.threads import fitting_threads
from ntkit.files import Json
from ntkit.inputs import Batch, batch_size
from ntkit.training.accounts.columns import SUMS, WAYS, Columns, SweepInput
from ntkit.training.folder.step import Step
from ntkit.training.integrals.adaptive import QueryRule
from ntkit.training.integrals.averaged_gradients import averaged_jacobians, averaged_together
from ntkit.training.integrals.gauss import QuadratureRule, nested
from ntkit.training.integrals.quadrature import Chooser
from ntkit.training.integrals.whole import WholeRules, whole_rules
from ntkit.training.optimizers import Coefficients
from ntkit.training.replay.sample_gradients import Samples

BLOCK = 2**22  # numbers in the gradients of a block of steps, for small networks,
_FEW = 16  # or so many times that, for so many steps


@dataclass
class Sweep:
    """A sweep backwards over the steps, with D the integral of the queries' gradients along each of them.

    With R = 0 behind the last step, C and decay summed over the steps, and start at the end::

        R_k = b_k D_k + mu_{k+1} R_{k+1}        A_k = a_k D_k + nu_k R_k
        C(x, n) -= scale_k A_k . J(x_n; w_k)^T c_{n,k}
        decay   -= decay_k A_k . w_k + d_k D_k . w_k
        start    = -mu_0 R_0 . m_{-1}
        rounding += D_k . (the step as it was - the step as modelled)
        buffers += f(x; w_k, buffers after step k) - f(x; w_k, buffers before it)

    With matrices beside a step, a_k and b_k multiply left^T D_k right^T; decay and rounding take D_k itself.
    For an average v += tau_k (w_{k+1} - v), D is that of v's steps, and E takes the place of D above::

        E_k = tau_k D_k + (1 - tau_k) E_{k+1},  start += E_0 . (w_0 - v_0)

    Where Lookahead went back to a part alpha of the way, all steps of that way have D_k + (alpha - 1) D in
    the place of D_k, with D that of going back.
    """

    path: SweepInput
    queries: Batch
    budget: int
    columns: Columns = field(init=False)
    remembered: Tensor | None = None
    later: Tensor | None = None
    back: Tensor | None = None
    mu_next: float | Tensor = 0.0

    def __post_init__(self) -> None:
        path, run = self.path, self.path.run
        self.structure = path.net.structure(self.queries)
        self.outputs = path.net.outputs(run.weights(0), self.queries).shape[1]
        self.rows = batch_size(self.queries) * self.outputs
        self._samples = Samples(path.replay, self.budget // 4)
        chooser = Chooser(path.net, self.structure, self.queries, path.share, self.budget // 4)
        self._chooser = chooser

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=run.device)

        sums = {name: zeros(self.rows) for name in SUMS}
        nodes = torch.zeros(run.steps, dtype=torch.long)
        contributions, by_step = zeros(self.rows, path.samples), zeros(self.rows, run.steps)
        ways = torch.zeros(len(WAYS), dtype=torch.long)
        self.columns = Columns(contributions, by_step, **sums, ways=ways, nodes=nodes, spent=0)
        self.spent = 0
        self.position = run.steps
        self._room: Tensor | None = None
        self._whole: WholeRules | None = None

    def plan(self, done: Callable[[int], None]) -> None:
        """Choose the nodes of all steps, if they are chosen for the whole account."""
        path, run = self.path, self.path.run
        if path.allowed is None or path.rule is not None or self._whole is not None:
            return

        def changed(k: int) -> None:
            path.net.take_buffers(run.buffers(k + 1))

        trail = run if path.average is None else path.average
        change = changed if run.changes_buffers else None
        along = self._chooser.along
        apart = run.every > 1
        self._whole = whole_rules(path.net, trail, self.queries, path.allowed, along, change, done, apart)

    def with_one_node(self) -> None:
        """Take the middle of each step: what a sweep costs at least."""
        rules: list[QuadratureRule | QueryRule] = [nested(0)] * self.path.run.steps
        self._whole = WholeRules(rules, torch.zeros(0, 0))

    def blocks(self, first: int = 0, count: bool = True) -> Iterator[int]:
        """Go backwards over the steps down to ``first``, and yield how many were just done.

        With ``count=False`` they only leave to earlier steps what they must: nothing is added to the sums.
        """
        for begin, steps in self._blocks(first, self.position):
            with fitting_threads():
                self._block(begin, steps, count)
            self.position = begin
            yield len(steps)

    def state(self) -> tuple[dict[str, Tensor], Json]:
        """Return all that `restore` needs to resume from here, to the same result bit for bit."""
        tensors = {k: v for k, v in vars(self.columns).items() if isinstance(v, Tensor)}
        for name in ("remembered", "later", "back", "mu_next"):
            if isinstance(value := getattr(self, name), Tensor):
                tensors[name] = value
        mu = None if isinstance(self.mu_next, Tensor) else self.mu_next
        scalars = {"position": self.position, "spent": self.spent, "level": self._chooser.level, "mu": mu}
        return tensors, scalars

    def restore(self, tensors: Mapping[str, Tensor], scalars: Mapping[str, Any]) -> None:
        """Resume where the sweep with this state was."""
        device = self.path.run.device
        for name, value in vars(self.columns).items():
            if isinstance(value, Tensor):
                value.copy_(tensors[name])
        for name in ("remembered", "later", "back"):
            setattr(self, name, tensors[name].to(device) if name in tensors else None)
        self.mu_next = tensors["mu_next"].to(device) if scalars["mu"] is None else scalars["mu"]
        self.position, self.spent = scalars["position"], scalars["spent"]
        self._chooser.level = scalars["level"]

    def _block(self, first: int, steps: list[Step], count: bool) -> None:
        path, run, net = self.path, self.path.run, self.path.net
        average, sums = path.average, self.columns
        places = range(first, first + len(steps) + 1)
        weights = torch.stack([run.weights(k).to(net.dtype) for k in places])
        along = weights
        if average is not None:
            along = torch.stack([average.weights(k).to(net.dtype) for k in places])
        if run.changes_buffers:
            before = self._at(first, along[0])
            net.take_buffers(run.buffers(first + 1))
            if count:
                sums.buffers.add_((net.outputs(along[0], self.queries) - before).reshape(-1))
        rules: list[QuadratureRule | QueryRule]
        if self._whole is not None:
            rules = [*self._whole.rules[first : first + len(steps)]]
        elif path.rule is not None:
            rules = [path.rule] * len(steps)
        else:
            rules = self._chooser.rules(along)
        changes = net.many_outputs(along, self.queries).diff(dim=0).flatten(1) if count else None
        averaged = self._averaged(along, rules, first, count)
        gradients = self._gradients(first, weights[:-1], steps) if count else None
        for t in reversed(range(len(steps))):
            d, w, c = averaged(t), weights[t], steps[t].coefficients.to(net.dtype)
            if changes is not None:
                sums.unsigned.add_((changes[t] - d @ (along[t + 1] - along[t])).abs())
            if average is not None:
                if first + t == run.steps - 1 and count:
                    sums.rounding.add_(d @ average.rounding.to(d))
                tau = average.taus[first + t + 1]
                self.later = d = tau * d if self.later is None else tau * d + (1 - tau) * self.later
            kept = steps[t].kept
            if self.back is not None and kept is None:
                d = d + self.back
            if kept is not None:
                self.back = (kept - 1) * d
            pulled = steps[t].pulled(d)
            self._remember(pulled, c.b)
            self.mu_next = c.mu
            if not count:
                continue
            both = (c.a, pulled), (c.nu, self.remembered)
            directions = [
                (f, direction) for f, direction in both if direction is not None and not _is_zero(f)
            ]
            if gradients is None:
                self._contribute(w, first + t, steps[t], c, directions)
            else:
                self.columns.ways[WAYS.index("backward passes")] += 1
            for factor, direction in directions:
                if gradients is not None:
                    self._add(first + t, steps[t].batch, direction @ (-factor * c.scale * gradients[t]).T)
                if not _is_zero(c.decay):
                    sums.decay.sub_(direction @ (factor * c.decay * w))
            if not _is_zero(c.d):
                sums.decay.sub_(d @ (c.d * w))
            if path.differences is not None:
                sums.rounding.add_(d @ path.differences[first + t].to(d))

    def go_on_from(self, later: Sweep) -> None:
        """Take over what a sweep of the steps behind these has left."""
        self.remembered, self.mu_next, self.back = later.remembered, later.mu_next, later.back

    def finish(self, start_counts: bool = True) -> Columns:
        """Return the sums, with what was there before the first step unless that is counted elsewhere."""
        run, average, start = self.path.run, self.path.average, self.columns.start
        if not start_counts:
            return Columns(**{**vars(self.columns), "spent": self.spent})
        buffer = run.momentum()
        if self.remembered is not None and buffer is not None:
            start.sub_(self.remembered @ (self.mu_next * buffer).to(self.remembered))
        if self.later is not None and average is not None:
            start.add_(self.later @ average.lag.to(self.later))
        return Columns(**{**vars(self.columns), "spent": self.spent})

    def _remember(self, pulled: Tensor, b: float | Tensor) -> None:
        """R_k = b_k D_k + mu_{k+1} R_{k+1}."""
        if self.remembered is not None:
            self.remembered *= self.mu_next
        if _is_zero(b):
            return
        if self.remembered is None:
            self.remembered = pulled * b
        elif isinstance(b, Tensor):
            self.remembered.addcmul_(pulled, b)
        else:
            self.remembered.add_(pulled, alpha=b)

    def _contribute(
        self, w: Tensor, k: int, step: Step, c: Coefficients, directions: list[tuple[Any, Tensor]]
    ) -> None:
        scale = c.scale
        if not directions:
            return
        (factor, a), *others = directions
        number = 1.0
        if not others and not isinstance(factor, Tensor) and not isinstance(scale, Tensor):
            number = float(factor) * float(scale)
        else:
            a = a * (factor * scale)
            for factor, direction in others:
                a.add_(direction * (factor * scale))
        for index, product in self._samples.products(w, k, step, self.path.mixes(step)):
            self._add(k, index, product(a).mul_(-number))
        self.columns.ways[WAYS.index(self._samples.way)] += 1

    def _add(self, k: int, samples: Tensor, shares: Tensor) -> None:
        """Add what samples contributed at step k, ``[r, n]``."""
        shares = shares.double()
        self.columns.contributions.index_add_(1, samples, shares)  # ten times slower with a factor
        self.columns.by_step[:, k].add_(shares.sum(1))

    def _averaged(
        self, path: Tensor, rules: list[QuadratureRule | QueryRule], first: int, count: bool
    ) -> Callable[[int], Tensor]:
        """Return D of each step of a block, ``[r, P]``."""
        q = batch_size(self.queries)
        for t, rule in enumerate(rules):
            queries = isinstance(rule, QueryRule)
            if count:
                self.columns.nodes[first + t] = rule.most if queries else len(rule[0])
            self.spent += rule.total if queries else len(rule[0]) * q
        delta = path.diff(dim=0)
        made: dict[int, Tensor] = {}
        net, structure, used = self.path.net, self.structure, 0
        if self._room is None or len(self._room) < len(rules):  # to get new room each time is slow
            self._room = path.new_empty(len(rules), q, self.outputs, net.total)
        room = self._room
        for rule in {rule for rule in rules if not isinstance(rule, QueryRule)}:
            if not self._is_small(len(rule[0])):
                continue
            some = [t for t, r in enumerate(rules) if r == rule]
            start, way = path[some], delta[some]
            if structure is not None and structure.together:
                jacobians, used = room[used : used + len(some)], used + len(some)
                averaged_together(net, structure, self.queries, start, way, rule, jacobians)
            else:
                jacobians = averaged_jacobians(net, start, way, rule, self.queries)
            made |= dict(zip(some, jacobians.flatten(1, 2), strict=True))

        def one(t: int) -> Tensor:
            if t in made:
                return made[t]
            rule = rules[t]
            if not isinstance(rule, QueryRule):
                nodes, shares = (path.new_tensor(v).repeat(q) for v in rule)
                rows = torch.arange(q, device=path.device).repeat_interleave(len(rule[0]))
                rule = QueryRule(rows, nodes, shares)
            along = self._chooser.along(path[t], delta[t])
            along.averaged(rule.rows, rule.s, rule.shares, room[used])  # one step after the other
            return room[used].flatten(0, 1)

        return one

    def _gradients(self, first: int, weights: Tensor, steps: list[Step]) -> Tensor | None:
        """Return the gradients of all samples of a block of steps, ``[T, n, P]``, if that is little."""
        replay, path = self.path.replay, self.path
        little = 0 < len(steps[0].batch) * path.net.total <= BLOCK // 16 and replay.net.batchable
        if not little or any(path.mixes(step) for step in steps) or replay.augment:
            return None
        replay.go_to(first, steps[0].forwards[0])
        x, y = replay.batches(steps)
        weights = weights.to(replay.dtype)
        losses = [step.loss(replay.loss) for step in steps]
        return replay.net.sample_gradients(weights, x, replay.net.cotangents(weights, x, y, losses))

    def _is_small(self, nodes: int) -> bool:
        limit = min(BLOCK, self.budget // 32)
        little = self.path.net.total * self.rows * nodes <= limit and self.path.net.batchable
        return little or self.structure is None

    def _blocks(self, first: int, last: int) -> Iterator[tuple[int, list[Step]]]:
        """Yield steps from the last to the first, those together whose batches have one size and kind."""
        run, rule = self.path.run, self.path.rule
        nodes = 3 if rule is None else len(rule[0])
        limit = min(BLOCK, self.budget // 32)
        end = last
        while end > first:
            steps = [run.step(end - 1)]
            size = len(steps[0].batch)
            each = max(1, self.path.net.total * max(self.rows * nodes, size))
            most = max(limit // each, min(_FEW, _FEW * limit // each, self.budget // 32 // each))
            if run.changes_buffers or not self.path.net.batchable or self.path.mixes(steps[0]):
                most = 1
            while len(steps) < most and end - len(steps) > first:
                step = run.step(end - len(steps) - 1)
                alike = len(step.batch) == size and step.forwards[0].modes == steps[0].forwards[0].modes
                if not alike or self.path.mixes(step):
                    break
                steps.insert(0, step)
            end -= len(steps)
            yield end, steps

    def _at(self, k: int, w: Tensor) -> Tensor:
        self.path.net.take_buffers(self.path.run.buffers(k))
        return self.path.net.outputs(w, self.queries)


def _is_zero(coefficient: float | Tensor) -> bool:
    return not isinstance(coefficient, Tensor) and coefficient == 0
