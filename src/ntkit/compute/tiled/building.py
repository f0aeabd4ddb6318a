"""The making of missing tiles: claimed, handed to whoever makes them, tried again where a process died."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence

from ntkit.compute.plan import format_bytes
from ntkit.compute.progress import progress
from ntkit.compute.tiled.claims import LEASE, Claims
from ntkit.compute.tiled.making import rows_in_words
from ntkit.compute.tiled.store import Tile
from ntkit.compute.tiled.work import Executor, Work
from ntkit.errors import TileError

TRIES = 3  # of a tile at which processes die
TORN = 2.0  # seconds from which on a half-written file is nobody's, where nobody else builds
WAIT = 0.25  # seconds between two looks at what other builders make


def build(work: Work, executor: Executor, tiles: Sequence[Tile], lease: float = LEASE) -> None:
    """Make tiles that are missing; return when they all are there, whoever made them."""
    with Claims(work.store, lease) as claims, progress("Tiles", len(tiles)) as step:
        claims.sweep()
        if claims.others() == 0:
            _check_room(work, len(tiles))
            work.store.clear_torn(TORN)
        _Building(work, executor, claims, step).run(list(tiles))


class _Building:
    def __init__(self, work: Work, executor: Executor, claims: Claims, step: Callable[[int], None]) -> None:
        self.work, self.executor, self.claims, self.step = work, executor, claims, step
        self.tries: dict[Tile, int] = {}

    def run(self, pending: list[Tile]) -> None:
        while pending:
            suspects = [] if self.executor.alone else [tile for tile in pending if tile in self.tries]
            rounds = [[tile] for tile in suspects] + [[tile for tile in pending if tile not in suspects]]
            left: list[Tile] = []
            before = len(pending)
            for some in filter(None, rounds):
                left += self._round(some)
            if len(left) == before and not any(tile in self.tries for tile in left):
                time.sleep(WAIT)  # others have them all
            pending = left

    def _round(self, pending: list[Tile]) -> list[Tile]:
        """Make what no other builder has; return what is left."""
        left: list[Tile] = []
        stored = self.work.store.stored()
        for made in self.executor.run(self.work, self._claimed(pending, stored, left)):
            self.claims.release(made.tile)
            if made.death is None:
                self.step(1)
                continue
            if self.work.store.has(made.tile):
                self.step(1)
                continue
            left.append(made.tile)
            self._blame(made.tile, made.death)
        return left

    def _claimed(self, pending: list[Tile], stored: set[Tile], left: list[Tile]) -> Iterator[Tile]:
        for tile in pending:
            if tile in stored:
                self.step(1)
            elif not self.claims.take(tile):
                left.append(tile)
            elif self.work.store.has(tile):  # another builder finished it meanwhile
                self.claims.release(tile)
                self.step(1)
            else:
                yield tile

    def _blame(self, tile: Tile, death: str) -> None:
        self.tries[tile] = self.tries.get(tile, 0) + 1
        if self.tries[tile] >= TRIES:
            rows, columns = self.work.maker.samples(tile)
            raise TileError(
                f"A process died {TRIES} times at the tile {tile}, of {rows_in_words(rows)} by "
                f"{rows_in_words(columns)} ({death}). It may lack memory (give a smaller tile=, or memory= "
                f"to the kernel), or one of these samples ends the process: try kernel(x[rows], x[columns])."
            )


def _check_room(work: Work, count: int) -> None:
    root = work.store.root
    if root is None:
        return
    needed, free = count * work.store.layout.bytes, shutil.disk_usage(root).free
    if needed > free:
        raise TileError(
            f"The {count} tiles that are missing take {format_bytes(needed)}, and {root} has "
            f"{format_bytes(free)} left. Make room, give another folder, or dtype='float32'."
        )
