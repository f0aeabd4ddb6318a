"""Tiles of queries, each with a sweep of its own that fits in memory: one after the other, or at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ntkit.compute.interrupts import held_interrupts
from ntkit.compute.progress import progress
from ntkit.compute.threads import passive_workers, threads
from ntkit.files import Json
from ntkit.finite.jacobian.backward import quiet
from ntkit.inputs import Batch, batch_size, take
from ntkit.training.accounts.columns import SUMS, Columns, SweepInput
from ntkit.training.accounts.store import PartStore
from ntkit.training.accounts.sweep import Sweep

_VECTORS = 6  # of the size of the weights, for each row of a sweep
PAUSE = 60.0  # seconds between two snapshots of a tile that is being worked on


@dataclass(frozen=True)
class Work:
    """How the work is done: bytes in all, processes, and where finished parts are kept."""

    budget: int
    jobs: int = 1
    keep: Path | None = None


def sweep_tiles(path: SweepInput, x: Batch, work: Work, key: Json) -> Columns:
    """Return the sums of all queries, tile by tile; ``key`` says what a kept part is a part of."""
    size, budget = _tile_size(path, x, work), work.budget // work.jobs
    tiles = list(enumerate(torch.arange(batch_size(x)).split(size)))
    store = None if work.keep is None else PartStore(work.keep, {**key, "tile": size, "budget": budget})
    if work.jobs > 1 and len(tiles) > 1:
        import joblib

        count, work_of = max(1, torch.get_num_threads() // work.jobs), joblib.delayed(_elsewhere)
        works = (work_of(path, x, tile, budget, store, number, count) for number, tile in tiles)
        with passive_workers():
            parts = list(joblib.Parallel(n_jobs=work.jobs)(works))
        return together(parts)  # pyright: ignore[reportArgumentType]
    with progress("Accounting", path.run.steps * len(tiles)) as step:
        return together([_tile(path, x, tile, budget, store, number, step) for number, tile in tiles])


def tiling(path: SweepInput, x: Batch, work: Work) -> tuple[int, int]:
    """Return how many tiles there are, and what the gradients of their queries take, in bytes."""
    size = _tile_size(path, x, work)
    return -(-batch_size(x) // size), size * _bytes_each(path, x) * work.jobs


def _bytes_each(path: SweepInput, x: Batch) -> int:
    o = path.net.outputs(path.run.weights(0), take(x, slice(0, 1))).shape[1]
    return path.net.dtype.itemsize * _VECTORS * max(1, path.net.total) * o


def _tile_size(path: SweepInput, x: Batch, work: Work) -> int:
    most = work.budget // work.jobs // _bytes_each(path, x)
    return max(1, min(most, -(-batch_size(x) // work.jobs)))


def together(parts: list[Columns]) -> Columns:
    """Return the sums of several tiles as those of one."""
    names = ("contributions", "by_step", *SUMS)
    sums = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    nodes = torch.stack([part.nodes for part in parts]).amax(0)
    ways = torch.stack([part.ways for part in parts]).sum(0)
    return Columns(**sums, ways=ways, nodes=nodes, spent=sum(part.spent for part in parts))


def _tile(
    path: SweepInput,
    x: Batch,
    tile: Tensor,
    budget: int,
    kept: PartStore | None,
    number: int,
    done: Callable[[int], None],
) -> Columns:
    steps = path.run.steps
    if kept is not None and (columns := kept.finished(number)) is not None:
        done(steps)
        return columns
    moving = Sweep(path, take(x, tile.to(path.run.device)), budget)
    if kept is not None and (snapshot := kept.snapshot(number)) is not None:
        moving.restore(*snapshot)
        done(steps - moving.position)
    moving.plan(lambda _: None)
    if kept is None:
        for count in moving.blocks():
            done(count)
        return moving.finish()
    saved = time.monotonic()
    with held_interrupts() as interrupted:
        for count in moving.blocks():
            done(count)
            if (time.monotonic() - saved > PAUSE or interrupted()) and moving.position > 0:
                kept.save_snapshot(number, *moving.state())
                saved = time.monotonic()
            if interrupted():
                raise KeyboardInterrupt
    columns = moving.finish()
    kept.save_finished(number, columns)
    return columns


def _elsewhere(
    path: SweepInput, x: Batch, tile: Tensor, budget: int, kept: PartStore | None, number: int, count: int
) -> Columns:
    with threads(count), torch.no_grad(), quiet():
        return _tile(path, x, tile, budget, kept, number, lambda _: None)
