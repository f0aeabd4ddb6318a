"""What is handed to who makes tiles, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol
from uuid import uuid4

from ntkit.compute.tiled.making import Maker
from ntkit.compute.tiled.store import Tile, TileStore


@dataclass(frozen=True)
class Made:
    """A tile that is written; or, with ``death``, one at which a process died, and what is known of that."""

    tile: Tile
    death: str | None = None


class Work:
    """What a process needs to make tiles and to write them."""

    def __init__(self, maker: Maker, store: TileStore) -> None:
        self.maker, self.store, self.token = maker, store, uuid4().hex

    def make(self, tile: Tile) -> None:
        """Make and write a tile."""
        self.store.write(tile, self.maker.make(tile).numpy())


class Executor(Protocol):
    """What makes tiles, in whatever order.

    ``alone`` says whether it knows at which tile a process died that made several; ``device`` where tiles are
    computed, None for where the kernel is.
    """

    alone: ClassVar[bool]

    @property
    def device(self) -> str | None:
        """The type of device that tiles are computed on."""
        ...

    def run(self, work: Work, tiles: Iterator[Tile]) -> Iterator[Made]:
        """Make tiles, asked for one by one as processes become free, and yield each that is written."""
        ...


_known: dict[str, Work] = {}  # of a process that makes tiles: what it was handed


def known(token: str, load: object) -> Work:
    """Return the work of a token, loaded once in a process; ``load`` is a function, or the work itself."""
    if token not in _known:
        _known.clear()
        _known[token] = load() if callable(load) else load  # pyright: ignore[reportArgumentType]
    return _known[token]
