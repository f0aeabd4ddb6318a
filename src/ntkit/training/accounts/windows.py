"""Windows of a run, accounted for as soon as later steps have forgotten theirs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from ntkit.compute.surroundings import undisturbed
from ntkit.finite.jacobian.backward import quiet
from ntkit.inputs import take
from ntkit.network import network
from ntkit.training.accounts.balance import balanced, plan_of
from ntkit.training.accounts.columns import SUMS, Columns
from ntkit.training.accounts.request import Prepared, Request
from ntkit.training.accounts.result import Account
from ntkit.training.accounts.sweep import Sweep
from ntkit.training.accounts.tiles import together
from ntkit.training.folder.run import Run


class Windows:
    """Takes windows of a run as they come, one folder each, and adds up the columns of their accounts."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.forgotten = 0.01 * request.tol
        self._newest: Prepared | None = None  # whose check goes on in the next window
        self._waiting: Prepared | None = None
        self._sums: list[Columns] = []
        self._initial: Tensor | None = None
        self._began, self._tiles, self._bytes = time.monotonic(), 1, 0

    @torch.no_grad()
    def add(self, folder: Path, last: bool) -> None:
        """Take a window; account for the one before it, and if it is the last for both."""
        with quiet(), undisturbed(network(self.request.model)):
            self._add(folder, last)

    def _add(self, folder: Path, last: bool) -> None:
        first = self._waiting is None
        window, before = self._open(folder), self._waiting
        self._waiting = self._newest = window
        q, o = window.initial.shape
        size = max(1, self.request.budget // (8 * 6 * max(1, window.sweep.net.total) * o))
        self._tiles, self._bytes = -(-q // size), 8 * 6 * window.sweep.net.total * o * min(q, size)
        if before is not None or last:
            sums: list[list[Columns]] = []
            for tile in torch.arange(q).split(size):
                later = self._swept(window, tile, count=last)
                columns = [later.finish(first)] if last else []
                if before is not None:
                    earlier = self._swept(before, tile, later=later)
                    columns.insert(0, earlier.finish(not self._sums))
                sums.append(columns)
            for parts in zip(*sums, strict=True):
                self._sums.append(together(list(parts)))
        if before is not None:
            self._drop(before)
        if last:
            self.close()

    def close(self) -> None:
        """Drop the window that still waits."""
        if self._waiting is not None:
            self._drop(self._waiting)
        self._waiting = None

    def account(self) -> Account:
        """Return the account of all windows."""
        assert self._initial is not None and self._newest is not None
        sums = {name: sum(getattr(part, name) for part in self._sums) for name in ("contributions", *SUMS)}
        by_step = torch.cat([part.by_step for part in self._sums], dim=1)
        nodes, spent = torch.cat([part.nodes for part in self._sums]), sum(part.spent for part in self._sums)
        ways = torch.stack([part.ways for part in self._sums]).sum(0)
        columns = Columns(**sums, by_step=by_step, ways=ways, nodes=nodes, spent=spent)  # pyright: ignore
        plan = plan_of(
            self.request, self._newest, ways, self._tiles, time.monotonic() - self._began, self._bytes
        )
        return balanced(self.request, self._newest, self._initial, columns, plan)

    def _open(self, folder: Path) -> Prepared:
        run, first = Run(folder), self._initial is None
        try:
            earlier = None if self._newest is None else self._newest.check
            window = self.request.prepare(run, lambda _: None, earlier=earlier, first=first)
        except BaseException:
            run.close()
            raise
        begin, end = window.initial, window.prediction
        self._initial = begin if self._initial is None else self._initial
        moved = max(float((end - begin).abs().max()), float((end - self._initial).abs().max()) / 10)
        return window.within(0.1 * self.request.tol * moved)

    def _swept(self, window: Prepared, tile: Tensor, later: Sweep | None = None, count: bool = True) -> Sweep:
        queries = take(window.queries, tile.to(window.run.device))
        sweep = Sweep(window.sweep, queries, self.request.budget)
        if later is not None:
            sweep.go_on_from(later)
        for _ in sweep.blocks(count=count):
            pass
        return sweep

    def _drop(self, window: Prepared) -> None:
        window.run.close()
        shutil.rmtree(window.run.folder, ignore_errors=True)
