"""A line of a tensor program with its kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkit.infinite.limit import LimitKernel


@dataclass(frozen=True, eq=False)
class Layer:
    """A line of a tensor program with the kernels of its vector: E[h h'] and its tangent kernel.

    Means over equal positions; concatenated vectors count by their widths.
    """

    name: str
    kind: str
    text: str
    path: str
    nngp: LimitKernel
    ntk: LimitKernel

    def __repr__(self) -> str:
        return f"Layer({self.name}: {self.kind} {self.text}{f', module {self.path!r}' if self.path else ''})"
