"""Kernels that overflow: refused with the line of the program where they do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ntkit.errors import BadValueError


class Line(Protocol):
    """A line of a tensor program."""

    name: str
    text: str
    path: str


def refuse_overflow(
    kernel: Tensor, lines: Sequence[Line], at: Callable[[str, int, int], Tensor], line: str | None
) -> None:
    """Refuse a kernel with entries that are infinite or not a number; ``at`` gives those of lines.

    Naming the first line whose kernel of these two samples, or of either with itself, is not finite.
    """
    total = kernel.sum()
    if torch.isfinite(total) or torch.isfinite(kernel).all():
        return
    place = (~torch.isfinite(kernel)).nonzero()[0].tolist()
    i, j = place[0], place[-1]
    known = [e.name for e in lines]
    for e in lines[: known.index(line) + 1] if line in known else lines:
        if not torch.isfinite(at(e.name, i, j)).all():
            module = f", module {e.path!r}" if e.path else ""
            where = f"at line {e.name} of the program ({e.text}{module})"
            break
    else:
        where = "in the last line of the program"
    limit = torch.finfo(kernel.dtype)
    wider = " float64 holds more." if kernel.dtype != torch.float64 else ""
    raise BadValueError(
        f"The kernel of samples {i} and {j} overflows {where}: what it is made of is not below "
        f"{limit.max:.1e}, the largest number of {kernel.dtype}. Give smaller inputs, or a smaller sigma_w "
        f"and sigma_b.{wider}"
    )
