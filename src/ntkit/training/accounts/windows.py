"""Segments of a run that are accounted for as soon as the steps behind them have forgotten theirs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.network import as_inputs, batch_size, take
from ntkit.training.accounts.checks import check_given, mixing_modes, query_network, refuse_mixing_queries
from ntkit.training.accounts.columns import Columns, SweepInput
from ntkit.training.accounts.sweep import Sweep
from ntkit.training.accounts.target import Target, head_of
from ntkit.training.accounts.tiles import together
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment
from ntkit.training.functional.flat_network import FlatNetwork, Loss, cast
from ntkit.training.functional.transforms import quiet
from ntkit.training.integrals.quadrature import Nodes, fixed_rule
from ntkit.training.replay.steps import Replay
from ntkit.training.replay.verify import StepCheck, compare_steps


@dataclass
class _Segment:
    path: SweepInput
    queries: Any
    first: bool


class Segments:
    """Takes segments of a run as they come, one folder each, and adds up the columns of their accounts."""

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: Any,
        queries: Any,
        target: tuple[Target, Any],
        augment: Augment | None,
        tol: float,
        nodes: Nodes,
        budget: int,
    ) -> None:
        self.model, self.loss, self.train, self.queries = model, loss, train, queries
        self.target, self.augment, self.tol, self.budget = target, augment, tol, budget
        self.nodes: Nodes = nodes
        self.forgotten = 0.01 * tol
        self.rule = fixed_rule(nodes)
        self._check: StepCheck | None = None
        self._waiting: _Segment | None = None
        self._sums: list[Columns] = []
        self._initial: Tensor | None = None
        self._final: Tensor | None = None

    @torch.no_grad()
    def add(self, folder: Path, last: bool) -> None:
        """Take a segment; account for the one before it, and if it is the last for both."""
        with quiet():
            self._add(folder, last)

    def _add(self, folder: Path, last: bool) -> None:
        segment = self._open(folder)
        before, self._waiting = self._waiting, segment
        q, o = batch_size(segment.queries), self._outputs(segment.path, 0, segment.queries).shape[1]
        size = max(1, self.budget // (8 * 6 * max(1, segment.path.net.total) * o))
        tiles = torch.arange(q).split(size)
        if before is not None or last:
            sums: list[list[Columns]] = []
            for tile in tiles:
                later = self._swept(segment, tile, count=last)
                columns = [later.finish(segment.first)] if last else []
                if before is not None:
                    earlier = self._swept(before, tile, later=later)
                    columns.insert(0, earlier.finish(before.first))
                sums.append(columns)
            for parts in zip(*sums, strict=True):
                self._sums.append(together(list(parts)))
        if before is not None:
            self._drop(before)
        if last:
            self._final = self._outputs(segment.path, segment.path.run.steps, segment.queries)
            self.close()

    def close(self) -> None:
        """Let go of the segment that still waits."""
        if self._waiting is not None:
            self._drop(self._waiting)
        self._waiting = None

    def result(self) -> tuple[Tensor, Tensor, dict[str, Tensor], list[int], int, float, Nodes]:
        """Return what an account is made of."""
        assert self._initial is not None and self._final is not None
        q, o = self._initial.shape
        names = ("decay", "start", "buffers", "rounding", "contributions")
        sums: dict[str, Any] = {n: sum(getattr(part, n) for part in self._sums) for n in names}
        sums["by_step"] = torch.cat([part.by_step for part in self._sums], dim=1)
        columns = {name: value.reshape(q, o, *value.shape[1:]).cpu() for name, value in sums.items()}  # pyright: ignore
        nodes = [count for part in self._sums for count in part.nodes.tolist()]
        spent = sum(part.spent for part in self._sums)
        return self._initial.cpu(), self._final.cpu(), columns, nodes, spent, self.tol, self.nodes

    def _open(self, folder: Path) -> _Segment:
        run = Run(folder)
        try:
            return self._prepared(run)
        except BaseException:
            run.log.close()
            raise

    def _prepared(self, run: Run) -> _Segment:
        data, x = check_given(run, self.model, self.train, self.queries)
        x = cast(x, torch.float64)
        replay = Replay(run, self.model, data, self.loss, self.augment)
        net = query_network(run, self.model)
        target, labels = self.target
        labels = None if labels is None else as_inputs(labels, replay.native.net, "labels")
        if self._initial is None:
            refuse_mixing_queries(net, run.weights(0), x)
        head, extra = head_of(target, replay.loss, labels, net.outputs(run.weights(0), x))
        if head is not None:
            net, x = query_network(run, self.model, head), (x, extra)
        self._check = StepCheck(replay, self._check)
        differences = compare_steps(replay, self.budget // 4, lambda _: None, self._check)
        mixing = mixing_modes(run, replay, self.budget // 4)
        path = SweepInput(run, net, replay, self.rule, 0.0, differences, mixing)
        begin, end = (self._outputs(path, k, x) for k in (0, run.steps))
        first = self._initial is None
        self._initial = begin if self._initial is None else self._initial
        floor = 8 * torch.finfo(torch.float64).eps * float(torch.maximum(begin.abs(), end.abs()).max())
        moved = max(float((end - begin).abs().max()), float((end - self._initial).abs().max()) / 10)
        share = max(0.1 * self.tol * moved / max(1, run.steps), floor)
        path = SweepInput(run, net, replay, self.rule, share, differences, mixing)
        return _Segment(path, x, first)

    def _swept(
        self, segment: _Segment, tile: Tensor, later: Sweep | None = None, count: bool = True
    ) -> Sweep:
        moving = Sweep(segment.path, take(segment.queries, tile.to(segment.path.run.device)), self.budget)
        if later is not None:
            moving.go_on_from(later)
        for _ in moving.blocks(count=count):
            pass
        return moving

    def _outputs(self, path: SweepInput, k: int, x: Any) -> Tensor:
        net: FlatNetwork = path.net
        net.take_buffers(path.run.buffers(k))
        return net.outputs(path.run.weights(k), x)

    def _drop(self, segment: _Segment) -> None:
        segment.path.run.log.close()
        shutil.rmtree(segment.path.run.folder, ignore_errors=True)
