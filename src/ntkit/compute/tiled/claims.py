"""Which builder makes which tile, where several work in one folder: claims that end with their builder."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from pathlib import Path
from uuid import uuid4

from ntkit.compute.tiled.store import Tile, TileStore
from ntkit.files import Json

CLAIMS, BUILDERS = "claims", "builders"
LEASE = 60.0  # seconds after the last sign of life from which a builder counts as dead
BEATS = 4  # signs of life during a lease


class Claims:
    """The tiles that this builder makes; others leave them alone for as long as it lives.

    A claim is a file with the builder's name, its sign of life another one, renewed by a thread. A builder
    that died on this machine is known at once, one elsewhere when its lease has run out. Should two make one
    tile after all (a process that slept, a store without exclusive creation), both write the same bytes.
    """

    def __init__(self, store: TileStore, lease: float = LEASE) -> None:
        self.store, self.lease, self.name = store, lease, uuid4().hex
        self._held: set[Tile] = set()
        self._over = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Claims:
        self._live()
        self._beating.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beating.join()
        for tile in list(self._held):
            self.release(tile)
        self.store.delete(f"{BUILDERS}/{self.name}")

    def take(self, tile: Tile) -> bool:
        """Return whether this builder has a tile from now on."""
        key, own = _key(tile), self.name.encode()
        if self.store.create(key, own):
            self._held.add(tile)
            return True
        holder = self.store.get(key)
        if holder is not None:
            if self._lives(holder.decode()):
                return False
            self.store.delete(key)
        if self.store.create(key, own):
            self._held.add(tile)
            return True
        return False

    def release(self, tile: Tile) -> None:
        """Give up a tile."""
        self._held.discard(tile)
        if self.store.get(_key(tile)) == self.name.encode():
            self.store.delete(_key(tile))

    def sweep(self) -> None:
        """Remove what dead builders left."""
        for key in list(self.store.names(CLAIMS)):
            holder = self.store.get(f"{CLAIMS}/{key}")
            if holder is not None and not self._lives(holder.decode()):
                self.store.delete(f"{CLAIMS}/{key}")
        for name in list(self.store.names(BUILDERS)):
            if name != self.name and not self._lives(name):
                self.store.delete(f"{BUILDERS}/{name}")

    def others(self) -> int:
        """Return how many other builders live."""
        return sum(name != self.name and self._lives(name) for name in list(self.store.names(BUILDERS)))

    def _lives(self, name: str) -> bool:
        return _alive(self.store, name) is not None

    def _live(self) -> None:
        pid = os.getpid()
        sign = {
            "host": socket.gethostname(),
            "pid": pid,
            "began": _began(pid),
            "until": time.time() + self.lease,
        }
        self.store.put(f"{BUILDERS}/{self.name}", json.dumps(sign).encode())

    def _beat(self) -> None:
        while not self._over.wait(self.lease / BEATS):
            self._live()


def builders(store: TileStore) -> list[str]:
    """Return who builds in a folder: processes and their machines."""
    found = (_alive(store, name) for name in list(store.names(BUILDERS)))
    return [f"process {sign['pid']} on {sign['host']}" for sign in found if sign is not None]


def _alive(store: TileStore, name: str) -> Json | None:
    """Return the sign of life of a builder, None of one that is dead."""
    data = store.get(f"{BUILDERS}/{name}")
    try:
        sign = json.loads(data) if data else {}
        until, host, pid, began = sign["until"], sign["host"], sign["pid"], sign["began"]
    except (ValueError, KeyError, TypeError):
        return None
    if host == socket.gethostname() and began is not None and _began(pid) != began:
        return None
    return sign if time.time() < until else None


def _key(tile: Tile) -> str:
    return f"{CLAIMS}/{tile[0]}.{tile[1]}"


def _began(pid: int) -> str | None:
    """Return when a process began, as Linux counts it: "" where there is none, None where nothing says."""
    if not Path("/proc/self/stat").exists():
        return None
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except OSError:
        return ""
