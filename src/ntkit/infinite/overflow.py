"""Kernels that overflow: refused with the line of the program where they do."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from ntkit.errors import BadValueError
from ntkit.infinite.program import Program
from ntkit.infinite.tiles import Tiles
from ntkit.inputs import Batch, take


class Evaluated(Protocol):
    """What evaluates the lines of a program."""

    program: Program

    def tiles(self, line: str | None, *batches: Batch) -> Tiles:
        """Return what evaluates a line of the program, or the output, of the samples of some batches."""
        ...


def refuse_overflow(
    kernel: Tensor, limit: Evaluated, kind: str, line: str | None, x1: Batch, x2: Batch
) -> None:
    """Refuse a kernel with entries that are infinite or not a number.

    Naming the first line whose kernel of these two samples, or of either with itself, is not finite.
    """
    total = kernel.sum()
    if torch.isfinite(total) or torch.isfinite(kernel).all():
        return
    place = (~torch.isfinite(kernel)).nonzero()[0].tolist()
    i, j = place[0], place[-1]
    one, two = take(x1, slice(i, i + 1)), take(x2, slice(j, j + 1))
    lines = [e for e in limit.program.lines if e.value is not None]
    known = [e.name for e in lines]
    for e in lines[: known.index(line) + 1] if line in known else lines:
        tiles, ntk = limit.tiles(e.name, one, two), kind == "ntk"
        found = [*tiles(ntk, one, two), *tiles.diagonal(ntk, one), *tiles.diagonal(ntk, two)]
        if not all(torch.isfinite(t).all() for t in found):
            module = f", module {e.path!r}" if e.path else ""
            where = f"at line {e.name} of the program ({e.text}{module})"
            break
    else:
        where = "in the last line of the program"
    largest = torch.finfo(kernel.dtype).max
    wider = " float64 holds more." if kernel.dtype != torch.float64 else ""
    raise BadValueError(
        f"The kernel of samples {i} and {j} overflows {where}: what it is made of is not below "
        f"{largest:.1e}, the largest number of {kernel.dtype}. Give smaller inputs, or a smaller sigma_w "
        f"and sigma_b.{wider}"
    )
