"""Tiles of rows of a counterfactual: one after the other or at once, and kept where they were."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ntkit.compute.interrupts import held_interrupts
from ntkit.compute.plan import chunks
from ntkit.compute.progress import progress
from ntkit.compute.threads import passive_workers, threads
from ntkit.files import Json
from ntkit.finite.jacobian.backward import quiet
from ntkit.inputs import Batch
from ntkit.training.accounts.store import PartStore
from ntkit.training.accounts.tiles import PAUSE, Work
from ntkit.training.counterfactuals.sweep import DerivativeSweep
from ntkit.training.functional.flat_network import FlatNetwork

_VECTORS = 12  # of the size of the weights, that a row holds on its way through a step


def derivatives(
    sweep: DerivativeSweep, net: FlatNetwork, queries: Batch, sums: Tensor, work: Work, key: Json
) -> Tensor:
    """Return d f / d eps for sums of the outputs of queries, ``sums [r, q o]``: ``[r, n]``.

    ``key`` says what a kept tile is a tile of.
    """
    steps, each = sweep.run.steps, 8 * max(1, net.total) * (_VECTORS + 2 * sweep.pull.states)
    size = max(1, min(work.budget // 2 // work.jobs // each, -(-len(sums) // work.jobs)))
    tiles = [*enumerate(chunks(len(sums), size))]
    store = None if work.keep is None else PartStore(work.keep, {**key, "tile": size})
    if work.jobs > 1 and len(tiles) > 1:
        import joblib

        apart = copy.copy(sweep)
        apart.gradients = None  # a copy of it would not come back
        count, work_of = max(1, torch.get_num_threads() // work.jobs), joblib.delayed(_elsewhere)
        works = (work_of(apart, net, queries, sums[tile], store, number, count) for number, tile in tiles)
        with passive_workers():
            parts = list(joblib.Parallel(n_jobs=work.jobs)(works))
        return torch.cat(parts)  # pyright: ignore[reportArgumentType]
    with progress("Through training backwards", steps * len(tiles)) as done:
        return torch.cat(
            [_tile(sweep, net, queries, sums[tile], store, number, done) for number, tile in tiles]
        )


def _tile(
    sweep: DerivativeSweep,
    net: FlatNetwork,
    queries: Batch,
    sums: Tensor,
    store: PartStore | None,
    number: int,
    done: Callable[[int], None],
) -> Tensor:
    held = None if store is None else store.snapshot(number)
    if held is not None and held[1]["position"] == 0:
        done(sweep.run.steps)
        return held[0]["by_eps"]
    rows = sweep.begin(net, queries, sums)
    if held is not None:
        rows.restore(held[0], held[1]["position"])
        done(sweep.run.steps - rows.position)
    saved = time.monotonic()
    with held_interrupts() as interrupted, sweep.going():
        while rows.position:
            sweep.back(rows)
            done(1)
            if store is not None and (time.monotonic() - saved > PAUSE or interrupted()) and rows.position:
                store.save_snapshot(number, rows.tensors(), {"position": rows.position})
                saved = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt
    if store is not None:
        store.save_snapshot(number, {"by_eps": rows.by_eps}, {"position": 0})
    return rows.by_eps.cpu()


def _elsewhere(
    sweep: DerivativeSweep,
    net: FlatNetwork,
    queries: Batch,
    sums: Tensor,
    store: PartStore | None,
    number: int,
    count: int,
) -> Tensor:
    with threads(count), quiet():
        return _tile(sweep, net, queries, sums, store, number, lambda _: None)
