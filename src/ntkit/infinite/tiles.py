"""Blocks of a limit's kernels, tile by tile within a budget of memory."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ntkit.compute.plan import parse_memory
from ntkit.errors import NtkitError
from ntkit.graph import batch_size, take
from ntkit.infinite import expectation
from ntkit.infinite.expressions import Apply, Line, walk
from ntkit.infinite.pairs import Pairs, Side
from ntkit.infinite.points import Points
from ntkit.infinite.values import Wide

PATIENCE = 30.0  # seconds of plain evaluation from which on compiling pays
LARGEST = 2048  # samples of a tile: beyond, larger tiles are no faster

Tile = Callable[[Any, Any], tuple[Tensor, ...]]


def kernels(pairs: Pairs, value: Wide, ntk: bool) -> tuple[Tensor, ...]:
    """Return K (and Theta) of a vector: the mean over positions, and over concatenated parts by width."""
    total = sum(width for width, _ in value.pieces)
    found = []
    for of in (pairs.moment, pairs.tangent) if ntk else (pairs.moment,):
        whole = pairs.left.points.zeros(*(1 for _ in pairs.batch))
        for width, e in value.pieces:
            k = of(e, e, "equal")
            if k is not None:
                axes = list(range(len(pairs.batch), k.ndim))
                whole = whole + (k.mean(axes) if axes else k) * (width / total)
        found.append(whole.expand(pairs.batch))
    return tuple(found)


class Tiles:
    """The evaluation of a vector of a program on batches of any size.

    A tile is a block of samples by samples whose values fit into the budget. Tiles of one call have one
    shape (the last ones are filled up), so that they are compiled once.
    """

    def __init__(self, value: Wide, points: Points, memory: Any, compile: bool | str) -> None:
        if compile not in (True, False, "auto"):
            raise NtkitError(f"compile={compile!r}; give True, False or 'auto'.")
        self.value, self.points, self.compile = value, points, compile
        self.budget = parse_memory(memory)
        points.budget = min(points.budget, self.budget // 4)
        self.plain = all(_traceable(e) for e in _everything(value))
        self._compiled: dict[Any, Tile] = {}
        self._bytes: dict[Any, int] = {}

    def __call__(self, ntk: bool, x1: Any, x2: Any = None) -> tuple[Tensor, ...]:
        """Return the blocks of K (and Theta)."""
        symmetric = x2 is None
        x2 = x1 if symmetric else x2
        n1, n2 = batch_size(x1), batch_size(x2)
        with torch.no_grad():
            rows, columns = self.sizes(x1, n1, n2, ntk)
            if symmetric and (rows < n1 or columns < n2):
                rows = columns = min(rows, columns)
            blocks = tuple(torch.empty(n1, n2, **self.points.kind) for _ in range(1 + ntk))
            corners = [(i, j) for i in range(0, n1, rows) for j in range(0, n2, columns)]
            if symmetric:
                corners = [(i, j) for i, j in corners if i <= j]
            tile = self._tile(ntk, take(x1, slice(0, 1)), rows, columns) if self.compile is True else None
            for done, (i, j) in enumerate(corners):
                start = time.perf_counter()
                left, right = _filled(x1, i, rows), _filled(x2, j, columns)
                same = symmetric and i == j
                values = self._evaluate(ntk, same)(left, right) if tile is None else tile(left, right)
                for block, value in zip(blocks, values, strict=True):
                    part = value[: n1 - i, : n2 - j]
                    block[i : i + rows, j : j + columns] = part
                    if symmetric and i != j:
                        block[j : j + columns, i : i + rows] = part.T
                left_over = (len(corners) - done - 1) * (time.perf_counter() - start)
                if tile is None and self.compile == "auto" and left_over > PATIENCE:
                    tile = self._tile(ntk, take(x1, slice(0, 1)), rows, columns)
            return blocks

    def diagonal(self, ntk: bool, x: Any) -> tuple[Tensor, ...]:
        """Return the diagonals of K (and Theta)."""
        n = batch_size(x)
        with torch.no_grad():
            rows = max(1, min(n, self.budget // 2 // self.bytes(x, ntk)))
            parts = [
                kernels(Side(take(x, slice(i, i + rows)), self.points).own, self.value, ntk) for i in range(0, n, rows)
            ]
            return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def bytes(self, x: Any, ntk: bool) -> int:
        """Return what the values of a single pair of samples hold, measured on one."""
        shapes = (*(tuple(t.shape[1:]) for t in pytree.tree_leaves(x)), ntk)
        if shapes not in self._bytes:
            pairs = Pairs(Side(take(x, slice(0, 1)), self.points), Side(take(x, slice(0, 1)), self.points), True)
            kernels(pairs, self.value, ntk)
            self._bytes[shapes] = pairs.bytes
        return self._bytes[shapes]

    def sizes(self, x: Any, n1: int, n2: int, ntk: bool) -> tuple[int, int]:
        """Return the samples of a tile: as even as they can be within the budget."""
        most = max(1, self.budget // 2 // self.bytes(x, ntk))
        if n1 * n2 <= most and max(n1, n2) <= LARGEST:
            return n1, n2
        side = max(1, min(LARGEST, int(most**0.5)))
        return tuple(-(-n // -(-n // side)) for n in (n1, n2))  # pyright: ignore

    def _evaluate(self, ntk: bool, same: bool = False) -> Tile:
        def tile(x1: Any, x2: Any) -> tuple[Tensor, ...]:
            left = Side(x1, self.points)
            return kernels(Pairs(left, left if same else Side(x2, self.points), True), self.value, ntk)

        return tile

    def _tile(self, ntk: bool, x: Any, rows: int, columns: int) -> Tile | None:
        """Return a compiled tile, or None where there is no compiler or nothing to compile."""
        if not self.plain:
            return None
        key = (ntk, rows, columns)
        if key not in self._compiled:
            example = [pytree.tree_map(lambda t, n=n: t.expand(n, *t.shape[1:]).contiguous(), x) for n in (rows, columns)]
            traced = make_fx(self._evaluate(ntk))(*example)
            try:
                compiled = torch.compile(traced, dynamic=False)
                compiled(*example)
            except Exception as error:
                warnings.warn(f"torch.compile failed, ntkit goes on without it: {error}", RuntimeWarning, stacklevel=2)
                self.plain = False
                return None
            self._compiled[key] = compiled
        return self._compiled[key]


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
