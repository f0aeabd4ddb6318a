"""A matrix in tiles as the solvers see it, and its products with as many tiles in memory as fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Protocol

import torch
from torch import Tensor

from ntkit.compute.threads import threads
from ntkit.compute.tiled.kernel import TiledKernel
from ntkit.errors import BadValueError

Place = tuple[int, int]  # the row and the column of a tile
STRIP = 64  # rows of a tile that are turned into float64 at once
AHEAD = 2  # tiles that a thread reads while it multiplies one


class Tiles(Protocol):
    """A matrix in tiles; of a symmetric one those with i <= j are stored. `TiledKernel` is one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The rows and columns of the whole."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of what is stored."""
        ...

    @property
    def symmetric(self) -> bool:
        """Whether the tiles below the diagonal are those above it, transposed."""
        ...

    @property
    def tiles(self) -> Iterable[Place]:
        """The tiles that are stored."""
        ...

    def block(self, i: int, j: int) -> Tensor:
        """Return a tile, its checksum checked."""
        ...

    def rows(self, i: int) -> slice:
        """Return the rows of the tiles (i, .)."""
        ...

    def cols(self, j: int) -> slice:
        """Return the columns of the tiles (., j)."""
        ...


def fingerprint(tiled: TiledKernel) -> str:
    """Return a hash of what a matrix is of and how it is cut: kernel, data, dtype, tiles."""
    kept = ("kernel", "data", "samples", "tile", "dtype", "device")
    text = json.dumps([tiled.manifest.get(name) for name in kept], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class TiledMatrix:
    """A matrix in tiles, with its products; a `Matrix` for the iterative solvers where it is symmetric.

        A v = sum over tiles of A_ij v_j (and A_ij^T v_i for i < j)      in float64, whatever is stored

    As many tiles as fit into ``memory`` bytes are read (and checked) once and then kept; the others are read
    for each product, while the one before is multiplied. Each of torch's threads multiplies whole tiles, and
    the sums of the threads are added in order.

    Parameters
    ----------
    source : Tiles
        A `TiledKernel`, say.
    memory : int
        Bytes of the tiles that are kept.
    columns_of : callable, optional
        ``columns_of(index)`` gives columns ``[n, k]`` without the tiles: the kernel between all samples and
        some, which costs less than to read all tiles. None: they are taken from the tiles.

    Attributes
    ----------
    streamed : int
        Bytes of tiles that were read again, or did not fit, so far.
    """

    def __init__(
        self,
        source: Tiles,
        memory: int = 2**30,
        columns_of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.source, self.memory, self._columns_of = source, memory, columns_of
        self.n = source.shape[0]
        self.streamed = self._held = 0
        self._kept: dict[Place, Tensor] = {}
        self._places = sorted(source.tiles)
        self._keeping = Lock()

    @property
    def kept(self) -> int:
        """The number of tiles that are in memory."""
        return len(self._kept)

    def __matmul__(self, v: Tensor) -> Tensor:
        v = v.double()
        if len(v) != self.source.shape[1]:
            raise BadValueError(
                f"A matrix {list(self.source.shape)} times columns of {len(v)} rows; "
                f"expected {self.source.shape[1]}."
            )
        places = [p for p in self._places if p in self._kept] + [
            p for p in self._places if p not in self._kept
        ]
        with threads(1) as most:  # of small products, in which several threads wait for each other
            shares = [share for share in (places[t::most] for t in range(most)) if share]
            with ThreadPoolExecutor(len(shares)) as workers:
                first, *others = workers.map(lambda share: self._product(share, v), shares)
        for other in others:
            first += other
        return first

    def _product(self, places: list[Place], v: Tensor) -> Tensor:
        """Return what some tiles give of the product, by strips that stay in the cache."""
        out = v.new_zeros(self.n, v.shape[1])
        transposed = v.new_zeros(v.shape[1], self.n if self.source.symmetric else 0)
        strips = torch.empty(0, dtype=torch.float64)
        for (i, j), tile in self._each(places):
            rows, cols = self.source.rows(i), self.source.cols(j)
            if strips.numel() < STRIP * tile.shape[1]:
                strips = torch.empty(STRIP * tile.shape[1], dtype=torch.float64)
            for start in range(0, len(tile), STRIP):
                part = tile[start : start + STRIP]
                strip = strips[: part.numel()].view_as(part).copy_(part)
                these = slice(rows.start + start, rows.start + start + len(part))
                out[these].addmm_(strip, v[cols])
                if self.source.symmetric and i != j:  # several times as fast as columns with strip.T are
                    transposed[:, cols].addmm_(v[these].T, strip)
        return out.add_(transposed.T) if self.source.symmetric else out

    def diag(self) -> Tensor:
        """Return the diagonal ``[n]``."""
        self._square()
        parts = [self._tile((i, i)).diagonal() for i, j in self._places if i == j]
        return torch.cat(parts).double()

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns ``[n, len(index)]``."""
        self._square()
        if self._columns_of is not None:
            return self._columns_of(index).double()
        out = torch.zeros(self.n, len(index), dtype=torch.float64)
        for (i, j), tile in self._each(self._places):
            rows, cols = self.source.rows(i), self.source.cols(j)
            inside = (index >= cols.start) & (index < cols.stop)
            out[rows, inside.nonzero()[:, 0]] = tile[:, index[inside] - cols.start].double()
            if i != j:
                inside = (index >= rows.start) & (index < rows.stop)
                out[cols, inside.nonzero()[:, 0]] = tile[index[inside] - rows.start].T.double()
        return out

    def submatrix(self, index: Tensor) -> Tensor:
        """Return the entries between some samples ``[k, k]`` in float64; reads the tiles that they touch."""
        self._square()
        out = torch.zeros(len(index), len(index), dtype=torch.float64)
        for i, j in self._places:
            rows, cols = self.source.rows(i), self.source.cols(j)
            left = ((index >= rows.start) & (index < rows.stop)).nonzero()[:, 0]
            right = ((index >= cols.start) & (index < cols.stop)).nonzero()[:, 0]
            if not len(left) or not len(right):
                continue
            tile = self._tile((i, j))
            part = tile[(index[left] - rows.start)[:, None], index[right] - cols.start].double()
            out[left[:, None], right] = part
            if i != j:
                out[right[:, None], left] = part.T
        return out

    def _square(self) -> None:
        if not self.source.symmetric:
            raise BadValueError(
                f"The tiles are those of k(x1, x2), {list(self.source.shape)}; expected a symmetric kernel "
                "matrix: build it with x2=None."
            )

    def _tile(self, place: Place) -> Tensor:
        found = self._kept.get(place)
        return self._keep(place, self.source.block(*place)) if found is None else found

    def _keep(self, place: Place, tile: Tensor) -> Tensor:
        size = tile.numel() * tile.element_size()
        with self._keeping:
            if self._held + size <= self.memory:
                self._kept[place], self._held = tile, self._held + size
            else:
                self.streamed += size
        return tile

    def _each(self, places: list[Place]) -> Iterator[tuple[Place, Tensor]]:
        """Yield tiles, those that are not in memory read ahead."""
        absent = [place for place in places if place not in self._kept]
        present = [place for place in places if place in self._kept]
        if not absent:
            yield from ((place, self._kept[place]) for place in present)
            return
        with ThreadPoolExecutor(1) as reader:
            coming = {place: reader.submit(self.source.block, *place) for place in absent[:AHEAD]}
            yield from ((place, self._kept[place]) for place in present)
            for at, place in enumerate(absent):
                tile = coming.pop(place).result()
                for later in absent[at + AHEAD : at + AHEAD + 1]:
                    coming[later] = reader.submit(self.source.block, *later)
                yield place, self._keep(place, tile)
