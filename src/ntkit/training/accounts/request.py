"""What is asked of a recorded run, checked once, and made ready for a sweep over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.compute.plan import parse_memory
from ntkit.errors import BadTypeError, BadValueError
from ntkit.inputs import Batch, Inputs, Picked, batch_size, resolved, take
from ntkit.network import as_inputs, network, taking
from ntkit.training.accounts.averaged_account import Averages
from ntkit.training.accounts.checks import (
    Modes,
    check_given,
    mixing_modes,
    query_network,
    refuse_mixing_queries,
)
from ntkit.training.accounts.columns import SweepInput
from ntkit.training.accounts.target import Target, head_of
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment
from ntkit.training.functional.flat_network import FlatNetwork, cast
from ntkit.training.functional.losses import BatchLoss
from ntkit.training.integrals.gauss import QuadratureRule
from ntkit.training.integrals.quadrature import Nodes, fixed_rule
from ntkit.training.recording.train_data import Train, pair_of
from ntkit.training.replay.checkpointed import open_run
from ntkit.training.replay.steps import Replay
from ntkit.training.replay.verify import StepCheck, compare_steps

# Weights of a network, or with convolutions numbers in the gradients of all queries, up to which accounts are
# made as exact ones are: kinks are found at little cost, and many steps go through at once.
NARROW, SMALL = 2**16, 2**14
WHOLE = 1e-8  # tolerances above which nodes are chosen for the residual of the whole account
_LOOSE = 1e-4  # tolerances from which on a run in float32 is accounted for in float32
_NUDGE = 2.0**-26  # of each weight: its square is lost in float64
_ROUNDED = 0.05  # the part of the tolerance that rounding may take


@dataclass(frozen=True)
class Request:
    """A network, its loss and data, the queries, what of their predictions is asked for, and how exactly."""

    model: nn.Module
    loss: BatchLoss
    train: Train
    queries: Inputs
    target: Target = "outputs"
    labels: Inputs | None = None
    augment: Augment | None = None
    tol: float = 1e-8
    nodes: Nodes = "auto"
    memory: int | str = "1GiB"
    inputs: Picked = None
    targets: Picked = None
    select: str | int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.tol, bool) or not isinstance(self.tol, (int, float)) or not self.tol > 0:
            raise BadValueError(f"tol is {self.tol!r}, expected a positive number.")
        if self.augment is not None and (isinstance(self.augment, type) or not callable(self.augment)):
            raise BadTypeError(f"augment={self.augment!r}; expected a function of (x, y).")
        assert self.rule is None or self.budget > 0  # both are checked where they are read
        object.__setattr__(self, "train", pair_of(self.train, self.inputs, self.targets))
        if self.queries is not None:
            object.__setattr__(self, "queries", resolved(self.queries, "queries", self.inputs))

    @property
    def budget(self) -> int:
        """Bytes for the large arrays."""
        return parse_memory(self.memory)

    @property
    def rule(self) -> QuadratureRule | None:
        """The quadrature that all steps take, None if each takes its own."""
        return fixed_rule(self.nodes)

    def open(self, folder: str | os.PathLike[str]) -> Run:
        """Return the run of a folder, whose steps between checkpoints can be replayed."""
        data: Any = self.train
        if isinstance(data, (tuple, list)) and isinstance(self.model, nn.Module):
            net = network(self.model)
            names = ("train x", "train y")
            data = tuple(as_inputs(part, net, name) for part, name in zip(data, names, strict=False))
        run = open_run(folder, self.model, self.loss, data, self.augment, self.select)  # pyright: ignore[reportArgumentType]
        if run.every > 1 and (self.loss is None or self.train is None):
            run.close()
            raise BadValueError(
                f"The run in {folder} holds checkpoints, and the steps between them must be replayed: give "
                f"loss= and train=."
            )
        return run

    def prepare(
        self,
        run: Run,
        done: Callable[[int], None],
        *,
        averages: Averages | None = None,
        earlier: StepCheck | None = None,
        first: bool = True,
        whole: bool = False,
        checked: bool = True,
        together: bool = False,
    ) -> Prepared:
        """Check a run's steps, and return all that a sweep over it takes.

        ``earlier`` is the check of the steps before these; without ``first`` the queries are not checked.
        With ``whole``, the precision may be that of the run, where the tolerance allows it. Without
        ``checked`` no step is compared with the recorded one. With ``together`` batches are only passed whole
        through the network: it does not matter whether it mixes samples, nor how it rounds.
        """
        data, given = check_given(run, self.model, self.train, self.queries)
        x, part = cast(given, torch.float64), self.budget // 4
        net = query_network(run, self.model, select=self.select)
        weights = (run if averages is None else averages).weights
        if first:
            refuse_mixing_queries(net, weights(0), x)
        dtype = torch.float64
        large = whole and self._is_large(net, weights(0), x)
        if large and run.dtype == torch.float32 and self.tol >= _LOOSE:
            dtype = self._precision(run, net, (weights(0), weights(run.steps)), x)
        replay = Replay(run, self.model, data, self.loss, self.augment, self.select, dtype)
        if first and run.steps and self.augment is None:
            with taking(data[0]):
                replay.forward(weights(0), 0, next(replay.parts(run.step(0))))
        check = StepCheck(replay, earlier)
        differences = compare_steps(replay, part, done, check) if checked else None
        mixing = frozenset[Modes]() if together else mixing_modes(run, replay, part)
        net.take_buffers(run.buffers(run.steps))
        labels = None if self.labels is None else as_inputs(self.labels, replay.native.net, "labels")
        final = net.outputs(weights(run.steps), x)
        head, extra = head_of(self.target, self.loss, labels, final)
        if head is not None:
            net, x = query_network(run, self.model, head, self.select), (x, extra)
        initial, prediction = (outputs_at(run, net, k, weights(k), x) for k in (0, run.steps))
        noise = 0.0 if together else max(_rounded(run, net, k, weights(k), x) for k in (0, run.steps))
        if dtype != torch.float64:
            x, (head, extra) = cast(given, dtype), head_of(self.target, self.loss, labels, final.to(dtype))
            net = query_network(run, self.model, head, self.select, dtype)
            x = x if head is None else (x, extra)
        sweep = SweepInput(run, net, replay, self.rule, 0.0, differences, mixing, averages)
        integers = isinstance(extra, Tensor) and not extra.is_floating_point() and extra.numel() > 0
        chosen = extra.reshape(len(extra), -1).tolist() if integers else None
        return Prepared(sweep, x, initial, prediction, check, noise, large and self.tol > WHOLE, chosen)

    def _is_large(self, net: FlatNetwork, w: Tensor, x: Batch) -> bool:
        o = net.outputs(w, take(x, slice(0, 1))).numel() if self.target == "outputs" else 1
        return net.total * batch_size(x) * o > SMALL if net.convolves else net.total > NARROW

    def _precision(self, run: Run, net: FlatNetwork, ends: tuple[Tensor, Tensor], x: Batch) -> torch.dtype:
        """Return float32 if its rounding, measured at both ends of the run, is little of the tolerance."""
        single = query_network(run, self.model, select=self.select, dtype=torch.float32)
        places = list(zip((0, run.steps), ends, strict=True))
        wide = [outputs_at(run, net, k, w, x) for k, w in places]
        narrow = [outputs_at(run, single, k, w, cast(x, torch.float32)).double() for k, w in places]
        moved = float((wide[1] - wide[0]).abs().max())
        rounded = max(float((a - b).abs().max()) for a, b in zip(wide, narrow, strict=True))
        fits = rounded * max(1, run.steps) ** 0.5 <= _ROUNDED * self.tol * moved
        return torch.float32 if fits else torch.float64


@dataclass(frozen=True)
class Prepared:
    """The start of a sweep: its input, the queries, their outputs at both ends ``[q, o]`` in float64.

    ``check``: that of the steps, for those that follow them; ``noise``: how far rounding moves outputs: more
    than float64's where a network computes in less inside; ``whole``: nodes are chosen for the residual of
    the whole account, not for one of each step; ``chosen``: the numbers of the outputs that each query is
    about, None if all.
    """

    sweep: SweepInput
    queries: Batch
    initial: Tensor
    prediction: Tensor
    check: StepCheck | None
    noise: float = 0.0
    whole: bool = False
    chosen: list[list[int]] | None = None

    @property
    def run(self) -> Run:
        """The run."""
        return self.sweep.run

    def within(self, error: float, whole: float | None = None) -> Prepared:
        """Return the same, each step allowed its share of an error, or all together ``whole``."""
        share = max(error / max(1, self.run.steps), self._step_floor)
        allowed = None
        if self.whole and whole is not None:
            allowed = max(whole, self.floor)
        return replace(self, sweep=replace(self.sweep, share=share, allowed=allowed))

    @property
    def _step_floor(self) -> float:
        """What rounding leaves of a step's residual at best."""
        size = float(torch.maximum(self.initial.abs(), self.prediction.abs()).max())
        return max(8 * torch.finfo(torch.float64).eps * size, 8 * self.noise)

    @property
    def floor(self) -> float:
        """What rounding leaves of the residual at best, in the unit of the output; steps add up at random."""
        return self._step_floor * max(1, self.run.steps) ** 0.5


def outputs_at(run: Run, net: FlatNetwork, k: int, w: Tensor, x: Batch) -> Tensor:
    """Return the outputs of queries at weights, with the buffers before step k."""
    net.take_buffers(run.buffers(k))
    return net.outputs(w, x)


def _rounded(run: Run, net: FlatNetwork, k: int, w: Tensor, x: Batch) -> float:
    """Return how far rounding moves the outputs: their second difference over a small way.

    That of a smooth function is some 1e-16, that of one rounded to float32 inside a unit in its last place.
    Of three drawn ways the middle one counts, since there may be a kink on one of them.
    """
    draw, found, here = torch.Generator().manual_seed(k), [], outputs_at(run, net, k, w, x)
    for _ in range(3):
        way = _NUDGE * w * torch.randint(0, 2, w.shape, generator=draw).to(w).mul_(2).sub_(1)
        before, behind = (outputs_at(run, net, k, at, x) for at in (w - way, w + way))
        found.append((before - 2 * here + behind).abs())
    return float(torch.stack(found).median(0).values.max())
