"""Blocks of a limit's kernels, tile by tile within a budget of memory."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ntkit.compute.plan import format_bytes, parse_memory
from ntkit.compute.precision import exact
from ntkit.compute.threads import threads
from ntkit.errors import BadValueError, one_of
from ntkit.infinite.duals.correlation import fused_atan2
from ntkit.infinite.moments import expectation
from ntkit.infinite.moments.pairs import Pairs
from ntkit.infinite.moments.sides import PairSide
from ntkit.infinite.reading.values import Wide
from ntkit.infinite.variables.algebra import add, times
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.numerics import Numerics, Sampled
from ntkit.infinite.variables.order import Order
from ntkit.infinite.variables.positions import Shape
from ntkit.infinite.variables.vectors import Attended, behind
from ntkit.inputs import Batch, batch_size, take

WORTH_COMPILING = 30.0  # seconds of plain evaluation from which on compiling pays
SOME = 12  # samples of a batch, whose errors are found where tiles are compiled
FEW = 16  # pairs of samples whose memory is not measured where it cannot be much
HEAVY, DRAWN = (
    2**16,
    2**24,
)  # bytes of one array of a pair, and of its draws, from which sampling is expensive
# A symmetric block is then cut into so many parts along each side, to leave out its other half; into half as
# many where its arrays are large: threads share them evenly.
PARTS = 8
# A value that is read twice is not recomputed.
FUSION: dict[str, str | int | bool | Callable] = {"realize_reads_threshold": 1, "max_fusion_size": 1000}
CACHE = 2**22  # bytes of one array of a tile that stays near the processor: larger tiles are slower

_FUSED = {torch.ops.aten.atan2.default: fused_atan2}
_PAD = torch.ops.aten.constant_pad_nd.default  # computes what it is given again, at each place of a window

Corner = tuple[int, int]
Compile = bool | Literal["auto"]
Tile = Callable[[Batch, Batch], tuple[Tensor, ...]]


def kernels(pairs: Pairs, value: Wide, ntk: bool, positions: bool = False) -> tuple[Tensor, ...]:
    """Return K (and Theta) of a vector: the mean over concatenated parts by width, and over equal positions.

    With ``positions`` those of all pairs of positions, behind the axes of samples.
    """
    values = []
    shape = (*pairs.batch, *value.shape, *value.shape) if positions else pairs.batch
    for of in (pairs.tangent, pairs.moment) if ntk else (pairs.moment,):  # moments as tangents need them
        parts = []
        for width, e in value.pieces:
            k = of(e, e, "all" if positions else "equal")
            axes = [] if k is None or positions else list(range(len(pairs.batch), k.ndim))
            parts.append(times(k.mean(axes) if k is not None and axes else k, width / value.width))
        whole = add(parts)
        values.append((pairs.left.numerics.zeros(1) if whole is None else whole).expand(shape))
    return tuple(reversed(values))


@dataclass(frozen=True)
class Plan:
    """How a block of a limit's kernel is made: its tiles, what they hold, what is sampled and how.

    ``pair`` and ``sample`` are the bytes that a pair of samples and a sample alone hold at most.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    pair: int
    sample: int
    budget: int
    steps: int
    sampled: tuple[Sampled, ...]

    def __str__(self) -> str:
        """Show what is tiled, the bytes, the points."""
        rows = [
            f"kernel {list(self.shape)} in tiles of {self.tile[0]} x {self.tile[1]} samples, "
            f"{self.steps} steps",
            f"  a pair of samples holds at most {format_bytes(self.pair)}, a sample alone "
            f"{format_bytes(self.sample)}, of a budget of {format_bytes(self.budget)}",
        ]
        for s in self.sampled:
            rows.append(
                f"  {s.function}: {s.points} points, {s.how}; {s.at_once} at a time "
                f"({format_bytes(s.bytes)} a pair)"
            )
        return "\n".join(rows)


class Tiles:
    """The evaluation of a vector of a program on batches of any size.

    A tile is a block of samples by samples whose values fit into the budget. Tiles of one call have one
    shape (the last ones are filled up), so that they are compiled once. With ``positions`` blocks are
    ``[n1, n2, *positions, *positions]``.
    """

    def __init__(
        self,
        value: Wide,
        numerics: Numerics,
        memory: int | float | str,
        compile: Compile,
        positions: bool = False,
    ) -> None:
        self.value = value.per_dimension() if positions else value
        self.numerics, self.positions = numerics, positions
        self.compile: Compile = one_of("compile", compile, (True, False, "auto"))
        self.budget = parse_memory(memory)
        every = list(behind(*(e for _, e in value.pieces)))
        self.plain = all(_traceable(e) for e in every)
        entries = sum(math.prod(e.shape) ** 2 for e in every)
        self._guess = 16 * numerics.zeros(1).element_size() * entries  # bytes of a pair, generously
        self._compiled: dict[tuple, Tile] = {}
        self._known: dict[bool, tuple[Order, int]] = {}
        self._drawn = 0  # bytes that are drawn for a pair of samples

    def __call__(
        self, ntk: bool, x1: Batch, x2: Batch | None = None, *, last: bool = False
    ) -> tuple[Tensor, ...]:
        """Return the blocks of K (and Theta); with ``last`` only the last of them."""
        self.numerics.tangents = ntk
        with exact(self.numerics.device), torch.no_grad(), memory_told():
            return self._blocks(ntk, x1, x2, last)

    def _blocks(self, ntk: bool, x1: Batch, x2: Batch | None, last: bool) -> tuple[Tensor, ...]:
        symmetric = x2 is None
        x2 = x1 if symmetric else x2
        n1, n2 = batch_size(x1), batch_size(x2)
        rows, columns = self.sizes(x1, n1, n2, ntk, symmetric)
        behind = (*self.value.shape, *self.value.shape) if self.positions else ()
        blocks = tuple(_room((n1, n2, *behind), self.numerics) for _ in range(1 if last else 1 + ntk))
        every = ((i, j) for i in range(0, n1, rows) for j in range(0, n2, columns))
        # The diagonal of a symmetric block is made by itself.
        corners = [(i, j) for i, j in every if i + (rows == 1) <= j or not symmetric]
        sides = _Sides(self.numerics, self.budget // 4)

        def fill(corner: Corner, compiled: Tile | None = None) -> None:
            i, j = corner
            with torch.no_grad():
                if compiled is not None:
                    values = compiled(_filled(x1, i, rows), _filled(x2, j, columns))
                else:
                    left = sides.get(x1, slice(i, i + rows))
                    right = sides.get(x2, slice(j, j + columns))
                    values = self.evaluated(Pairs(left, right, True, ntk), ntk)
            for block, value in zip(blocks, values[-1:] if last else values, strict=True):
                part = value[: n1 - i, : n2 - j]
                block[i : i + rows, j : j + columns] = part
                if symmetric and i != j:
                    block[j : j + columns, i : i + rows] = _turned(part)

        if len(corners) < 2 and self.compile is not True:
            _each(fill, corners, 1)
        else:
            with _threads(self.numerics.device) as workers:
                compiled = self._first(fill, corners, (ntk, last, x1, rows, columns), workers)
                if compiled is not None:
                    self._tell(ntk, x1, x2)
                _each(lambda corner: fill(corner, compiled), corners, workers)
        if symmetric:  # a correlation of exactly one, whatever the order of summation was
            exact = self.diagonal(ntk, x1)
            every = torch.arange(n1)
            for block, value in zip(blocks, exact[-1:] if last else exact, strict=True):
                block[every, every] = value
        return blocks

    def _first(
        self, fill: Callable[[Corner], None], corners: list[Corner], tile: tuple, workers: int
    ) -> Tile | None:
        """Return a compiled tile where that was asked for, or pays as the first tile shows."""
        if self.compile is True:
            return self._tile(*tile)
        if self.compile == "auto" and self.plain:
            start = time.perf_counter()
            fill(corners.pop(0))
            if len(corners) * (time.perf_counter() - start) / workers > WORTH_COMPILING:
                return self._tile(*tile)
        return None

    def _tell(self, ntk: bool, x1: Batch, x2: Batch) -> None:
        """Find the errors of a few pairs of samples: compiled tiles tell of none."""
        few = [take(x, torch.linspace(0, batch_size(x) - 1, SOME).long().unique()) for x in (x1, x2)]
        with torch.no_grad():
            one, two = (PairSide(x, self.numerics) for x in few)
            kernels(Pairs(one, two, True, ntk), self.value, ntk)

    def diagonal(self, ntk: bool, x: Batch) -> tuple[Tensor, ...]:
        """Return the diagonals of K (and Theta)."""
        n = batch_size(x)
        self.numerics.tangents = ntk
        with exact(self.numerics.device), torch.no_grad(), memory_told():
            rows = max(1, min(n, self.budget // 2 // self.side(x, ntk)))
            sides = (PairSide(take(x, slice(i, i + rows)), self.numerics) for i in range(0, n, rows))
            parts = [kernels(side.itself, self.value, ntk, self.positions) for side in sides]
            return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def order(self, x: Batch, ntk: bool) -> Order:
        """Return the order in which values are made, and their bytes, found on a single pair of samples."""
        return self._measured(x, ntk)[0]

    def side(self, x: Batch, ntk: bool) -> int:
        """Return the bytes of all that is known of a single sample alone."""
        return self._measured(x, ntk)[1]

    def _measured(self, x: Batch, ntk: bool) -> tuple[Order, int]:
        if ntk not in self._known:
            few = self.numerics.probe()
            one, other = (PairSide(take(x, slice(0, 1)), few) for _ in range(2))
            pairs = Pairs(one, other, True, ntk)
            kernels(pairs, self.value, ntk, self.positions)
            kernels(one.itself, self.value, ntk, self.positions)
            self._known[ntk] = pairs.order, max(1, one.bytes)
            each = max((s.bytes // s.at_once for s in few.plan.values()), default=0)
            self._drawn = each * self.numerics.count
        return self._known[ntk]

    def evaluated(self, pairs: Pairs, ntk: bool) -> tuple[Tensor, ...]:
        """Return K (and Theta) of pairs, with no value in memory longer than it is needed."""
        if ntk in self._known:
            pairs.follow(self._known[ntk][0])
        return kernels(pairs, self.value, ntk, self.positions)

    def sizes(self, x: Batch, n1: int, n2: int, ntk: bool, symmetric: bool) -> tuple[int, int]:
        """Return the samples of a tile: as even as they can be within the budget, squares where symmetric."""
        if n1 * n2 <= FEW and FEW * self._guess <= self.budget:
            return n1, n2
        order, workers = self.order(x, ntk), torch.get_num_threads()
        if n1 * n2 <= FEW and max(n1 * n2 * order.held, (n1 + n2) * self.side(x, ntk)) <= self.budget // 2:
            return n1, n2
        most = max(1, min(self.budget // 2 // workers // order.held, CACHE // order.largest))
        rows, columns = n1, n2
        if n1 * n2 > most:
            side = max(1, min(int(most**0.5), self.budget // 8 // workers // self.side(x, ntk)))
            rows, columns = (-(-n // -(-n // side)) for n in (n1, n2))
        parts = 1
        if n1 > 4 and not self.plain and (order.largest > HEAVY or self._drawn > DRAWN):
            parts = PARTS
        elif n1 * n2 * order.largest > CACHE // 4:
            parts = PARTS // 2
        if symmetric and (parts > 1 or rows < n1 or columns < n2):
            rows = columns = min(rows, columns, -(-n1 // parts))
        return rows, columns

    def plan(self, ntk: bool, x: Batch, n1: int, n2: int, symmetric: bool) -> Plan:
        """Return how a block is made."""
        tile = self.sizes(x, n1, n2, ntk, symmetric)
        order, sample = self._measured(x, ntk)
        if not self.plain and not self.numerics.plan:  # a pair of samples shows what is drawn for it
            one, other = (PairSide(take(x, slice(0, 1)), self.numerics) for _ in range(2))
            kernels(Pairs(one, other, True, ntk), self.value, ntk, self.positions)
        sampled = tuple(self.numerics.plan.values())
        return Plan((n1, n2), tile, order.held, sample, self.budget, len(order.steps), sampled)

    def _tile(self, ntk: bool, last: bool, x: Batch, rows: int, columns: int) -> Tile | None:
        """Return a compiled tile, or None where there is no compiler or nothing to compile."""
        if not self.plain:
            return None
        x = take(x, slice(0, 1))
        self.order(x, ntk)
        key = (ntk, last, rows, columns)
        if key not in self._compiled:

            def tile(x1: Batch, x2: Batch) -> tuple[Tensor, ...]:
                pairs = Pairs(PairSide(x1, self.numerics), PairSide(x2, self.numerics), True, ntk)
                return self.evaluated(pairs, ntk)[-1 if last else 0 :]

            example = [take(x, torch.zeros(n, dtype=torch.long)) for n in (rows, columns)]
            with torch.no_grad():
                graph = make_fx(tile)(*example)
                if all(node.target is not _PAD for node in graph.graph.nodes):
                    graph = make_fx(graph, decomposition_table=_FUSED)(*example)
            try:
                with torch.no_grad():
                    compiled = torch.compile(graph, dynamic=False, options=FUSION)
                    compiled(*example)
            except (RuntimeError, OSError, ImportError) as error:  # no compiler, or one that fails
                text = f"torch.compile failed; ntkit continues without it: {error}"
                warnings.warn(text, RuntimeWarning, stacklevel=2)
                self.plain = False
                return None
            self._compiled[key] = compiled
        return self._compiled[key]


class _Sides:
    """The last few batches of samples, with what is known of each sample alone."""

    def __init__(self, numerics: Numerics, budget: int) -> None:
        self.numerics, self.budget = numerics, budget
        self._recent: dict[tuple[int, int, int], PairSide] = {}
        self._lock = Lock()

    def get(self, x: Batch, part: slice) -> PairSide:
        """Return some samples of a batch."""
        key = (id(x), part.start, part.stop)
        with self._lock:
            side = self._recent.pop(key, None) or PairSide(take(x, part), self.numerics)
            held = sum(other.bytes for other in self._recent.values())
            while held > self.budget and self._recent:
                held -= self._recent.pop(next(iter(self._recent))).bytes
            self._recent[key] = side
        return side


def _room(shape: Shape, like: Numerics) -> Tensor:
    """Return an empty block; NumPy asks for large pages, which are several times faster to fill at first."""
    if like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.empty(shape, str(like.dtype).removeprefix("torch.")))
    return torch.empty(shape, dtype=like.dtype, device=like.device)


@contextmanager
def memory_told() -> Iterator[None]:
    """Refuse by name what a machine has no memory for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's allocator raises a RuntimeError on a CPU
        lacking = isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
        if not lacking:
            raise
        raise BadValueError(
            f"There is not enough memory for this kernel ({str(error).splitlines()[0][:200]}). Where "
            f"positions are mixed, it takes all pairs of positions of a pair of samples, which memory= does "
            f"not cut: give smaller pictures or shorter sequences, or select a coarser part of the network."
        ) from error


def _turned(block: Tensor) -> Tensor:
    """Return a block with both samples in each other's place, and their positions."""
    rank = (block.ndim - 2) // 2
    return block.permute(1, 0, *range(2 + rank, 2 + 2 * rank), *range(2, 2 + rank))


@contextmanager
def _threads(device: torch.device) -> Iterator[int]:
    """Give each tile a thread of its own: several threads in one operation wait for each other."""
    if device.type != "cpu":
        yield 1
        return
    with threads(1) as workers:
        yield workers


def _each(work: Callable[[Corner], None], items: list[Corner], workers: int) -> None:
    if min(workers, len(items)) <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        for _ in pool.map(work, items):
            pass


def _filled(x: Batch, start: int, count: int) -> Batch:
    """Return samples from ``start`` on, the last one repeated where there are too few."""
    n = batch_size(x)
    if start + count <= n:
        return take(x, slice(start, start + count))
    return take(x, torch.arange(start, start + count).clamp(max=n - 1))


def _traceable(e: Expression) -> bool:
    if isinstance(e, Apply):
        dual = expectation.closed(e)
        return dual is not None and dual.traceable
    return not isinstance(e, Attended)
