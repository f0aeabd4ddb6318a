"""What solving with a kernel matrix costs, on paper: operations, bytes, seconds on a machine."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

ITERATIONS = 30  # of preconditioned conjugate gradients to 1e-8, as a rule
RANK = 10.0  # columns of a preconditioner or an approximation, in units of the root of n
DISK = 4e8  # bytes a second, where nothing was measured
WIDTH = 1024  # columns that Cholesky finishes together


@dataclass(frozen=True)
class Machine:
    """What a machine does in a second: operations of matrix products, bytes of memory and of its disk."""

    name: str
    float32: float
    float64: float
    memory: float
    read: float = DISK
    write: float = DISK

    def rate(self, itemsize: int) -> float:
        """Return the operations a second in a dtype of so many bytes."""
        return self.float64 if itemsize == 8 else self.float32


@dataclass(frozen=True)
class Cost:
    """Operations in the dtype of the matrix and in float64, bytes that pass through memory and the disk.

    ``held`` are the bytes that are in memory at once.
    """

    flops: float = 0.0
    flops64: float = 0.0
    moved: float = 0.0
    read: float = 0.0
    written: float = 0.0
    held: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.flops64 + other.flops64,
            self.moved + other.moved,
            self.read + other.read,
            self.written + other.written,
            max(self.held, other.held),
        )

    def seconds(self, machine: Machine, itemsize: int) -> float:
        """Return the seconds that they take one after the other."""
        return (
            self.flops / machine.rate(itemsize)
            + self.flops64 / machine.float64
            + self.moved / machine.memory
            + self.read / machine.read
            + self.written / machine.write
        )


@dataclass(frozen=True)
class Values:
    """What a kernel's values cost: operations for each sample, and for each of the n (n + 1) / 2 pairs."""

    name: str
    sample: float
    pair: float

    def matrix(self, n: int, itemsize: int) -> Cost:
        """Return the cost of the upper triangle of tiles, written once."""
        size = stored(n, itemsize)
        return Cost(flops=self.sample * n + self.pair * n * (n + 1) / 2, written=size)

    @classmethod
    def fitted(cls, name: str, few: tuple[int, float], many: tuple[int, float]) -> Values:
        """Return what two counts of operations say: n and the operations of k(x) for n samples."""
        (n, one), (m, two) = few, many
        pair = 2 * (two / m - one / n) / (m - n)
        return cls(name, one / n - pair * (n + 1) / 2, pair)


def stored(n: int, itemsize: int) -> float:
    """Return the bytes of the upper triangle in tiles."""
    return itemsize * n * (n + 1) / 2


def product(n: int, itemsize: int, columns: int, memory: float) -> Cost:
    """Return the cost of K v in float64 from tiles, of which ``memory`` bytes are kept."""
    away = max(0.0, stored(n, itemsize) - memory)
    moved = stored(n, itemsize) + 2 * stored(n, 8) * (itemsize < 8)
    return Cost(
        flops64=2.0 * n * n * columns,
        moved=moved,
        read=away,
        held=min(memory, stored(n, itemsize)) + 8.0 * n * columns * 5,
    )


def cholesky_in_place(n: int, itemsize: int, columns: int, steps: int = 3) -> Cost:
    """Return the cost of `InPlaceCholesky`: one buffer, refined in so many steps."""
    whole, half = float(itemsize) * n * n, stored(n, itemsize)
    factor = Cost(
        flops=n**3 / 3,
        moved=2 * whole,
        read=half,
        written=half,
        held=whole + 2.0 * min(n, WIDTH) * n * itemsize,
    )
    once = Cost(flops=2.0 * n * n * columns, flops64=2.0 * n * n * columns, moved=2 * half + whole)
    return _repeated(once, steps) + factor


def cholesky_from_disk(n: int, itemsize: int, columns: int, memory: float, steps: int = 3) -> Cost:
    """Return the cost of `BlockedCholesky`: n^3 / (6 w) numbers are read for panels of w columns."""
    half = stored(n, itemsize)
    width = max(1.0, min(n, 0.7 * memory / (n * itemsize)))
    factor = Cost(flops=n**3 / 3, read=half + itemsize * n**3 / (6 * width), written=half, held=memory)
    once = Cost(flops=2.0 * n * n * columns, read=2 * half) + product(n, itemsize, columns, 0.0)
    return _repeated(once, steps) + factor


def conjugate_gradients(
    n: int, itemsize: int, columns: int, memory: float, iterations: float = ITERATIONS, entry: float = 0.0
) -> Cost:
    """Return the cost of preconditioned conjugate gradients; ``entry`` operations make a kernel's value."""
    rank = int(RANK * n**0.5)
    rest = max(0.0, memory - 8.0 * n * rank)
    low = Cost(flops64=3.0 * n * rank**2 + entry * n * rank, held=16.0 * n * rank)
    apply = Cost(flops64=4.0 * n * rank * columns, moved=16.0 * n * rank)
    first = Cost(read=min(rest, stored(n, itemsize)))
    return _repeated(product(n, itemsize, columns, rest) + apply, iterations) + low + first


def eigendecomposition(n: int) -> Cost:
    """Return the cost of all eigenvalues and eigenvectors, in float64."""
    return Cost(flops64=9.0 * n**3, held=24.0 * n * n)


def normal_equations(n: int, m: int, columns: int, map_flops: float) -> Cost:
    """Return the cost of primal ridge on m features: ``map_flops`` for a sample, half of m^2 products."""
    return Cost(
        flops=n * (map_flops + float(m) * m + 2.0 * m * columns),
        flops64=m**3 / 3,
        held=3 * 8.0 * m * m + 4.0 * 2**13 * m,
    )


def _repeated(cost: Cost, times: float) -> Cost:
    return Cost(
        times * cost.flops,
        times * cost.flops64,
        times * cost.moved,
        times * cost.read,
        times * cost.written,
        cost.held,
    )


@functools.cache
def this_machine(threads: int = 1) -> Machine:
    """Return what this machine does in so many threads, measured in a fraction of a second.

    The disk is not measured.
    """
    rates = [_products(dtype) for dtype in (torch.float32, torch.float64)]
    values = torch.ones(2**23)
    return Machine("this machine", *rates, memory=values.nbytes / min(_took(values.sum) for _ in range(4)))


def _products(dtype: torch.dtype, n: int = 1024) -> float:
    a = torch.ones(n, n, dtype=dtype)
    return 2 * n**3 / min(_took(lambda: a @ a) for _ in range(4))


def _took(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
