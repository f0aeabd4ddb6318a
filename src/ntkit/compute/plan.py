"""The one planner of chunks: how a matrix is cut up so that computing it stays within a budget."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ntkit.errors import BadValueError

_DECIMAL = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS = _DECIMAL | {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_memory(memory: int | float | str) -> int:
    """Return bytes from a number of bytes or a text such as ``"2GiB"`` or ``"500 MB"``.

    >>> parse_memory("1.5KiB")
    1536
    """
    match = re.fullmatch(r"\s*([0-9.]+(?:e[0-9]+)?)\s*([A-Za-z]*)\s*", str(memory))
    try:
        size = int(float(match[1]) * _UNITS[match[2].upper()]) if match else 0
    except (KeyError, ValueError):
        size = 0
    if size <= 0:
        raise BadValueError(
            f"memory={memory!r} is not a size; give bytes as a positive number, or a text such as '2GiB'."
        )
    return size


def format_bytes(size: float) -> str:
    """Return bytes as a text for people.

    >>> format_bytes(3 * 2**20)
    '3.0 MiB'
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def chunks(n: int, size: int) -> Iterator[slice]:
    """Cut ``range(n)`` into slices of at most ``size``, as even as they can be.

    >>> [(s.start, s.stop) for s in chunks(10, 4)]
    [(0, 4), (4, 7), (7, 10)]
    """
    count = max(1, -(-n // max(1, size)))
    small, larger = divmod(n, count)
    start = 0
    for i in range(count):
        stop = start + small + (i < larger)
        yield slice(start, stop)
        start = stop


@dataclass(frozen=True)
class Plan:
    """How a tangent kernel is made: chunks over samples, outputs and weights, and what they cost.

    ``samples`` and ``outputs`` are the sizes of the chunks that one backward pass serves,
    ``weights`` the groups of weights served one after the other, ``tile`` the samples of one product.
    ``peak`` counts bytes besides the result, ``flops`` floating-point operations.
    """

    shape: tuple[int, ...]
    symmetric: bool
    samples: int
    outputs: int
    tile: int
    weights: tuple[tuple[str, ...], ...]
    result: int
    peak: int
    budget: int
    flops: int

    def __str__(self) -> str:
        half = " (symmetric: half of the products)" if self.symmetric else ""
        n, o = self.shape[0], self.shape[2] if len(self.shape) > 2 else 1
        return "\n".join(
            [
                f"kernel {list(self.shape)}{half}",
                f"  samples a backward pass: {self.samples} of {n}, in tiles of {self.tile}",
                f"  outputs a backward pass: {self.outputs}" + (f" of {o}" if o > 1 else ""),
                f"  groups of weights: {len(self.weights)}",
                f"  result: {format_bytes(self.result)}; besides it at most about "
                f"{format_bytes(self.peak)} of a budget of {format_bytes(self.budget)}",
                f"  about {self.flops:.3g} floating-point operations",
            ]
        )

    __repr__ = __str__


def plan_chunks(n: int, o: int, per_sample: int, per_output: int, budget: int) -> tuple[int, int]:
    """Return the samples and outputs of a chunk whose bytes stay within a budget.

    A chunk of b samples and q outputs holds ``b (per_sample + q per_output)`` bytes: all outputs at once
    where they fit for a sample, else as many as do.

    >>> plan_chunks(100, 10, per_sample=20, per_output=8, budget=1000)
    (10, 10)
    >>> plan_chunks(100, 10, per_sample=20, per_output=8, budget=60)
    (1, 5)
    """
    q = max(1, min(o, (budget - per_sample) // max(1, per_output)))
    b = max(1, min(n, budget // max(1, per_sample + q * per_output)))
    return b, q
