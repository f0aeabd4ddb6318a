"""Blocks of a limit's kernels, tile by tile within a budget of memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ntkit.compute.plan import parse_memory
from ntkit.compute.precision import exact
from ntkit.errors import NtkitError
from ntkit.graph import batch_size, take
from ntkit.infinite.duals.correlation import fused_atan2
from ntkit.infinite.moments import expectation
from ntkit.infinite.moments.numerics import Numerics
from ntkit.infinite.moments.pairs import Pairs, Side, add, times
from ntkit.infinite.moments.vectors import Apply, Line, walk
from ntkit.infinite.reading.values import Wide

PATIENCE = 30.0  # seconds of plain evaluation from which on compiling pays
HEAVY = 2**16  # bytes of one array of a pair of samples from which sampling is dear: a symmetric block
PARTS = 8  # is then cut into so many parts along each side, to leave out its other half
# A value that is read twice is not computed anew.
FUSION: dict[str, Any] = {"realize_reads_threshold": 1, "max_fusion_size": 1000}
CACHE = 2**22  # bytes of one array of a tile that stays near the processor: larger tiles are slower

_FUSED: Any = {torch.ops.aten.atan2.default: fused_atan2}
_PAD = torch.ops.aten.constant_pad_nd.default  # computes what it is given again, at each place of a window

Tile = Callable[[Any, Any], tuple[Tensor, ...]]


def kernels(pairs: Pairs, value: Wide, ntk: bool) -> tuple[Tensor, ...]:
    """Return K (and Theta) of a vector: the mean over positions, and over concatenated parts by width."""
    total = sum(width for width, _ in value.pieces)
    found = []
    for of in (pairs.moment, pairs.tangent) if ntk else (pairs.moment,):
        parts = []
        for width, e in value.pieces:
            k = of(e, e, "equal")
            axes = [] if k is None else list(range(len(pairs.batch), k.ndim))
            parts.append(times(k.mean(axes) if k is not None and axes else k, width / total))
        whole = add(parts)
        found.append((pairs.left.numerics.zeros(1) if whole is None else whole).expand(pairs.batch))
    return tuple(found)


class Tiles:
    """The evaluation of a vector of a program on batches of any size.

    A tile is a block of samples by samples whose values fit into the budget. Tiles of one call have one
    shape (the last ones are filled up), so that they are compiled once.
    """

    def __init__(self, value: Wide, numerics: Numerics, memory: Any, compile: bool | str) -> None:
        if compile not in (True, False, "auto"):
            raise NtkitError(f"compile={compile!r}; give True, False or 'auto'.")
        self.value, self.numerics, self.compile = value, numerics, compile
        self.budget = parse_memory(memory)
        numerics.budget = min(numerics.budget, self.budget // 4)
        self.plain = all(_traceable(e) for e in _everything(value))
        self._compiled: dict[Any, Tile] = {}
        self._bytes: dict[bool, tuple[int, int]] = {}

    def __call__(self, ntk: bool, x1: Any, x2: Any = None, *, last: bool = False) -> tuple[Tensor, ...]:
        """Return the blocks of K (and Theta); with ``last`` only the last of them."""
        with exact(self.numerics.kind["device"]), torch.no_grad():
            return self._blocks(ntk, x1, x2, last)

    def _blocks(self, ntk: bool, x1: Any, x2: Any, last: bool) -> tuple[Tensor, ...]:
        symmetric = x2 is None
        x2 = x1 if symmetric else x2
        n1, n2 = batch_size(x1), batch_size(x2)
        rows, columns = self.sizes(x1, n1, n2, ntk) if n1 * n2 > 16 else (n1, n2)
        dear = n1 > 4 and not self.plain and self.bytes(x1, ntk)[1] > HEAVY
        if symmetric and dear:  # nearly half of the work
            rows = columns = min(rows, columns, -(-n1 // PARTS))
        elif symmetric and (rows < n1 or columns < n2):
            rows = columns = min(rows, columns)
        blocks = tuple(_room(n1, n2, **self.numerics.kind) for _ in range(1 if last else 1 + ntk))
        corners = [
            (i, j) for i in range(0, n1, rows) for j in range(0, n2, columns) if i <= j or not symmetric
        ]

        sides = _Sides(self.numerics, self.budget // 4)

        def fill(corner: tuple[int, int], compiled: Tile | None = None) -> None:
            i, j = corner
            with torch.no_grad():
                if compiled is not None:
                    values = compiled(_filled(x1, i, rows), _filled(x2, j, columns))
                else:
                    left = sides.get(x1, slice(i, i + rows))
                    right = sides.get(x2, slice(j, j + columns))
                    values = kernels(Pairs(left, right, True, ntk), self.value, ntk)
            for block, value in zip(blocks, values[-1:] if last else values, strict=True):
                part = value[: n1 - i, : n2 - j]
                block[i : i + rows, j : j + columns] = part
                if symmetric and i != j:
                    block[j : j + columns, i : i + rows] = part.T

        if len(corners) == 1 and self.compile is not True:
            fill(corners[0])
        else:
            with _threads(self.numerics.kind["device"]) as workers:
                compiled = self._first(fill, corners, (ntk, last, x1, rows, columns), workers)
                _each(lambda corner: fill(corner, compiled), corners, workers)
        if symmetric:  # a correlation of exactly one, whatever the order of summation was
            exact = self.diagonal(ntk, x1)
            for block, value in zip(blocks, exact[-1:] if last else exact, strict=True):
                block.diagonal().copy_(value)
        return blocks

    def _first(self, fill: Callable, corners: list, tile: tuple, workers: int) -> Tile | None:
        """Return a compiled tile where that was asked for, or pays as the first tile shows."""
        if self.compile is True:
            return self._tile(*tile)
        if self.compile == "auto" and self.plain:
            start = time.perf_counter()
            fill(corners.pop(0))
            if len(corners) * (time.perf_counter() - start) / workers > PATIENCE:
                return self._tile(*tile)
        return None

    def diagonal(self, ntk: bool, x: Any) -> tuple[Tensor, ...]:
        """Return the diagonals of K (and Theta)."""
        n = batch_size(x)
        with exact(self.numerics.kind["device"]), torch.no_grad():
            rows = max(1, min(n, self.budget // 2 // self.bytes(x, ntk)[0]))
            parts = [
                kernels(Side(take(x, slice(i, i + rows)), self.numerics).own, self.value, ntk)
                for i in range(0, n, rows)
            ]
            return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def bytes(self, x: Any, ntk: bool) -> tuple[int, int]:
        """Return the bytes of all values of a single pair of samples, and of the largest, measured on one."""
        if ntk not in self._bytes:
            pairs = Pairs(
                Side(take(x, slice(0, 1)), self.numerics), Side(take(x, slice(0, 1)), self.numerics), True
            )
            kernels(pairs, self.value, ntk)
            self._bytes[ntk] = pairs.bytes
        return self._bytes[ntk]

    def sizes(self, x: Any, n1: int, n2: int, ntk: bool) -> tuple[int, int]:
        """Return the samples of a tile: as even as they can be within the budget."""
        held, largest = self.bytes(x, ntk)
        most = max(1, min(self.budget // 2 // torch.get_num_threads() // held, CACHE // largest))
        if n1 * n2 <= most:
            return n1, n2
        side = max(1, int(most**0.5))
        return tuple(-(-n // -(-n // side)) for n in (n1, n2))  # pyright: ignore

    def _evaluate(self, ntk: bool, last: bool = False) -> Tile:
        def tile(x1: Any, x2: Any) -> tuple[Tensor, ...]:
            values = kernels(
                Pairs(Side(x1, self.numerics), Side(x2, self.numerics), True, ntk), self.value, ntk
            )
            return values[-1:] if last else values

        return tile

    def _tile(self, ntk: bool, last: bool, x: Any, rows: int, columns: int) -> Tile | None:
        """Return a compiled tile, or None where there is no compiler or nothing to compile."""
        if not self.plain:
            return None
        x = take(x, slice(0, 1))
        key = (ntk, last, rows, columns)
        if key not in self._compiled:
            example = [
                pytree.tree_map(lambda t, n=n: t.expand(n, *t.shape[1:]).contiguous(), x)
                for n in (rows, columns)
            ]
            try:
                with torch.no_grad():
                    graph = make_fx(self._evaluate(ntk, last))(*example)
                    if all(node.target is not _PAD for node in graph.graph.nodes):
                        graph = make_fx(graph, decomposition_table=_FUSED)(*example)
                    compiled = torch.compile(graph, dynamic=False, options=FUSION)
                    compiled(*example)
            except Exception as error:
                warnings.warn(
                    f"torch.compile failed, ntkit goes on without it: {error}", RuntimeWarning, stacklevel=2
                )
                self.plain = False
                return None
            self._compiled[key] = compiled
        return self._compiled[key]


class _Sides:
    """The last few batches of samples, with what was found out about each sample alone."""

    def __init__(self, numerics: Numerics, budget: int) -> None:
        self.numerics, self.budget = numerics, budget
        self._kept: dict[tuple[int, int, int], Side] = {}
        self._lock = Lock()

    def get(self, x: Any, part: slice) -> Side:
        """Return some samples of a batch."""
        key = (id(x), part.start, part.stop)
        with self._lock:
            side = self._kept.pop(key, None) or Side(take(x, part), self.numerics)
            held = sum(other.bytes for other in self._kept.values())
            while held > self.budget and self._kept:
                held -= self._kept.pop(next(iter(self._kept))).bytes
            self._kept[key] = side
        return side


def _room(n1: int, n2: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return an empty matrix; NumPy asks for large pages, which are several times faster to fill at first."""
    if device.type == "cpu" and dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.empty((n1, n2), str(dtype).removeprefix("torch.")))
    return torch.empty(n1, n2, dtype=dtype, device=device)


@contextmanager
def _threads(device: torch.device) -> Iterator[int]:
    """Give each tile a thread of its own: several threads in one operation wait for each other."""
    threads = torch.get_num_threads()
    if device.type != "cpu":
        yield 1
        return
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def _each(work: Callable[[Any], None], items: list, workers: int) -> None:
    if min(workers, len(items)) <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(work, items):
            pass


def _filled(x: Any, start: int, count: int) -> Any:
    """Return samples from ``start`` on, the last one repeated where there are too few."""
    n = batch_size(x)
    if start + count <= n:
        return take(x, slice(start, start + count))
    return take(x, torch.arange(start, start + count).clamp(max=n - 1))


def _everything(value: Wide) -> list:
    """Return all expressions behind a vector, through the products with weights."""
    found: dict[Any, None] = {}
    stack = [e for _, e in value.pieces]
    while stack:
        for e in walk(stack.pop()):
            if e not in found:
                found[e] = None
                stack += [part for _, part in e.inputs] if isinstance(e, Line) else []
    return list(found)


def _traceable(e: Any) -> bool:
    dual = expectation.closed(e) if isinstance(e, Apply) else None
    return not isinstance(e, Apply) or (dual is not None and dual.traceable)
