"""A folder of tiles: a zarr array of one object a tile with its checksum, and small files beside it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import BadTypeError, TileError

if TYPE_CHECKING:
    from zarr.abc.store import Store

Tile = tuple[int, int]
ARRAY = "tiles"
CHECKSUM = 4  # bytes behind each tile


def open_store(folder: object) -> Store:
    """Return zarr's store at a path, at an address of fsspec (``s3://...``), or the one that was given."""
    from zarr.abc.store import Store
    from zarr.storage import FsspecStore, LocalStore

    if isinstance(folder, Store):
        return folder
    if isinstance(folder, str) and folder.startswith("file://"):
        folder = folder.removeprefix("file://")
    if isinstance(folder, str) and "://" in folder:
        return FsspecStore.from_url(folder)
    if isinstance(folder, str | os.PathLike):
        return LocalStore(Path(folder).absolute())
    raise BadTypeError(
        f"folder={folder!r}; expected a path, an address such as 's3://bucket/kernel', or a store of zarr."
    )


class DamagedTile(TileError):
    """A tile that does not match its checksum, or has not its size."""


@dataclass(frozen=True)
class Layout:
    """The matrix in the folder: its rows and columns, those of a tile, and its dtype."""

    shape: tuple[int, int]
    chunks: tuple[int, int]
    dtype: str

    @property
    def bytes(self) -> int:
        """The size of a stored tile (zarr fills up those at the edges)."""
        return self.chunks[0] * self.chunks[1] * np.dtype(self.dtype).itemsize + CHECKSUM


class TileStore:
    """Reads and writes the objects of a folder; what it writes is there as a whole or not at all."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._layout: Layout | None = None

    def __str__(self) -> str:
        if self.root is not None:
            return str(self.root)
        system, path = getattr(self.store, "fs", None), getattr(self.store, "path", "")
        return str(self.store) if system is None else system.unstrip_protocol(path)

    @property
    def root(self) -> Path | None:
        """The folder on this machine, None where it is elsewhere."""
        from zarr.storage import LocalStore

        return self.store.root if isinstance(self.store, LocalStore) else None

    def get(self, key: str) -> bytes | None:
        """Return what is held under a key, None where there is nothing."""
        from zarr.core.buffer import default_buffer_prototype
        from zarr.core.sync import sync

        found = sync(self.store.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def put(self, key: str, data: bytes) -> None:
        """Hold something under a key, in one go."""
        from zarr.core.buffer import cpu
        from zarr.core.sync import sync

        with self._told():
            sync(self.store.set(key, cpu.Buffer.from_bytes(data)))

    def create(self, key: str, data: bytes) -> bool:
        """Hold something under a key unless there is something already; return whether it is this."""
        from zarr.core.buffer import cpu
        from zarr.core.sync import sync

        with self._told():
            sync(self.store.set_if_not_exists(key, cpu.Buffer.from_bytes(data)))
        return self.get(key) == data

    def delete(self, key: str) -> None:
        """Hold nothing under a key."""
        from zarr.core.sync import sync

        sync(self.store.delete(key))

    def names(self, prefix: str) -> Iterator[str]:
        """Return the keys that begin with a prefix (and a slash), without it."""
        from zarr.core.sync import sync

        async def listed() -> list[str]:
            return [key async for key in self.store.list_prefix(f"{prefix}/")]

        for key in sync(listed()):
            yield key.removeprefix(f"{prefix}/")

    def make(self, layout: Layout) -> None:
        """Make the empty array; what is not yet written reads as NaN."""
        import zarr
        from zarr.codecs import Crc32cCodec
        from zarr.errors import ContainsArrayError

        self._layout = layout
        try:
            zarr.create_array(
                self.store,
                name=ARRAY,
                shape=layout.shape,
                chunks=layout.chunks,
                dtype=layout.dtype,
                compressors=[Crc32cCodec()],
                fill_value=float("nan"),
            )
        except ContainsArrayError:  # by another builder, from the same manifest
            pass

    @property
    def layout(self) -> Layout:
        """The matrix that the folder is for."""
        assert self._layout is not None
        return self._layout

    def stored(self) -> set[Tile]:
        """Return the tiles that are there, whether or not they match their checksums."""
        found = set[Tile]()
        for name in self.names(f"{ARRAY}/c"):
            parts = name.split("/")
            if len(parts) == 2 and all(p.isdigit() for p in parts):
                found.add((int(parts[0]), int(parts[1])))
        return found

    def times(self) -> list[float]:
        """Return when tiles were written, in seconds since the epoch; of a folder on this machine."""
        if self.root is None:
            return []
        return [path.stat().st_mtime for path in self.root.glob(f"{ARRAY}/c/*/*") if path.name.isdigit()]

    def has(self, tile: Tile) -> bool:
        """Return whether a tile is there, whether or not it matches its checksum."""
        from zarr.core.sync import sync

        return sync(self.store.exists(_key(tile)))

    def clear_torn(self, age: float) -> None:
        """Remove what writers left that were killed, from so many seconds on."""
        if self.root is not None:
            for path in self.root.glob(f"{ARRAY}/c/*/*.partial"):
                if time.time() - path.stat().st_mtime > age:
                    path.unlink(missing_ok=True)

    def remove(self, tile: Tile) -> None:
        """Remove a tile."""
        self.delete(_key(tile))

    def read(self, tile: Tile) -> Tensor | None:
        """Return a tile as it is stored, None where there is none; refuse one that is damaged.

        A tile at the edge is as large as the others, filled up.
        """
        data = self._bytes(_key(tile))
        if data is None:
            return None
        layout = self.layout
        if len(data) != layout.bytes:
            raise DamagedTile(f"Tile {tile} of {self} has {len(data)} bytes, not {layout.bytes}.")
        if crc32c(data[:-CHECKSUM]) != int.from_bytes(data[-CHECKSUM:].tobytes(), "little"):
            raise DamagedTile(f"Tile {tile} of {self} does not match its checksum.")
        values = data[:-CHECKSUM].view(np.dtype(layout.dtype).newbyteorder("<"))
        return torch.from_numpy(values.astype(layout.dtype, copy=False).reshape(layout.chunks))

    def write(self, tile: Tile, block: np.ndarray) -> None:
        """Write a tile, as zarr's codecs "bytes" and "crc32c" would, without their copies of it.

        At any moment the old tile is there or the whole new one.
        """
        from zarr.core.buffer import cpu
        from zarr.core.sync import sync

        layout = self.layout
        data = np.empty(layout.bytes, np.uint8)
        values = data[:-CHECKSUM].view(np.dtype(layout.dtype).newbyteorder("<")).reshape(layout.chunks)
        rows, columns = block.shape
        values[:rows, :columns] = block
        values[rows:], values[:rows, columns:] = np.nan, np.nan
        data[-CHECKSUM:] = np.frombuffer(crc32c(data[:-CHECKSUM]).to_bytes(CHECKSUM, "little"), np.uint8)
        with self._told():
            sync(self.store.set(_key(tile), cpu.Buffer.from_bytes(data.data)))

    def _bytes(self, key: str) -> np.ndarray | None:
        """Return what is held under a key as an array of bytes of its own."""
        if self.root is None:
            data = self.get(key)
            return None if data is None else np.frombuffer(bytearray(data), np.uint8)
        try:
            return np.fromfile(self.root / key, np.uint8)
        except FileNotFoundError:
            return None

    def _told(self) -> _Told:
        return _Told(str(self))


def crc32c(data: np.ndarray) -> int:
    """Return the checksum of an array of bytes."""
    import google_crc32c

    return google_crc32c.value(cast("bytes", data))  # it takes any bytes, and memory views only if read-only


class _Told:
    """Tells what a disk refuses."""

    def __init__(self, where: str) -> None:
        self.where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise TileError(
                f"{self.where} cannot be written ({error}). What is finished stays: make room, and "
                f"build() goes on from there."
            ) from error


def _key(tile: Tile) -> str:
    return f"{ARRAY}/c/{tile[0]}/{tile[1]}"
