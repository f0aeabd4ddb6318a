"""Tiles of queries, each with a sweep of its own that fits in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as Folder
from typing import Any

import torch

from ntkit.network import batch_size, take
from ntkit.training.progress import progress
from ntkit.training.sweep import Columns, Path, sweep


@dataclass(frozen=True)
class Work:
    """How the work is done: bytes in all, processes, and where what is finished is kept."""

    budget: int
    jobs: int = 1
    keep: Folder | None = None


def sweep_tiles(path: Path, x: Any, work: Work, key: Any) -> Columns:
    """Return the sums of all queries, tile by tile."""
    o = path.net.outputs(path.run.weights(0), take(x, slice(0, 1))).shape[1]
    budget = work.budget // work.jobs
    size = max(1, budget // (8 * 6 * max(1, path.net.total) * o))
    tiles = torch.arange(batch_size(x)).split(size)
    with progress("Accounting", path.run.steps * len(tiles)) as done:
        parts = [sweep(path, take(x, tile.to(path.run.device)), budget, done) for tile in tiles]
    return together(parts)


def together(parts: list[Columns]) -> Columns:
    """Return the sums of several tiles as those of one."""
    sums = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in ("contributions", "decay", "start", "buffers", "rounding")
    }
    nodes = torch.stack([part.nodes for part in parts]).amax(0)
    return Columns(**sums, nodes=nodes, spent=sum(part.spent for part in parts))
