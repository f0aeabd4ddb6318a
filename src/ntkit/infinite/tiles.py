"""Blocks of a limit's kernels, tile by tile within a budget of memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ntkit.graph import Network
from ntkit.infinite.pairs import Pairs, Side
from ntkit.infinite.points import Points
from ntkit.infinite.program import Program
from ntkit.infinite.values import Wide


def kernels(pairs: Pairs, value: Wide, ntk: bool) -> tuple[Tensor | None, Tensor | None]:
    """Return K and Theta of a vector: the mean over positions, and over concatenated parts by width."""
    total = sum(width for width, _ in value.pieces)
    found: list[Tensor | None] = []
    for of in (pairs.moment, pairs.tangent) if ntk else (pairs.moment,):
        sum_ = None
        for width, e in value.pieces:
            k = of(e, e, "equal")
            if k is not None:
                axes = list(range(len(pairs.batch), k.ndim))
                k = (k.mean(axes) if axes else k) * (width / total)
                sum_ = k if sum_ is None else sum_ + k
        found.append(None if sum_ is None else sum_.expand(pairs.batch))
    return found[0], found[1] if ntk else None


class Tiles:
    """The evaluation of a program on batches of any size."""

    def __init__(self, program: Program, net: Network, points: Points, memory: Any, compile: Any) -> None:
        self.program, self.net, self.points = program, net, points
        self.memory, self.compile = memory, compile

    def __call__(self, kind: str, x1: Any, x2: Any = None) -> Tensor:
        """Return a block."""
        with torch.no_grad():
            left = Side(x1, self.points)
            right = left if x2 is None else Side(x2, self.points)
            pairs = Pairs(left, right, True)
            k, theta = kernels(pairs, self.program.output, kind == "ntk")
            value = k if kind == "nngp" else theta
            return self.points.zeros(*pairs.batch) if value is None else value.contiguous()

    def diagonal(self, kind: str, x: Any) -> Tensor:
        """Return the diagonal."""
        with torch.no_grad():
            side = Side(x, self.points)
            k, theta = kernels(side.own, self.program.output, kind == "ntk")
            value = k if kind == "nngp" else theta
            return self.points.zeros(side.n) if value is None else value.contiguous()

    def of(self, value: Wide) -> Callable[..., tuple[Tensor | None, Tensor | None]]:
        """Return K and Theta of any line."""

        def layer(x1: Any, x2: Any = None) -> tuple[Tensor | None, Tensor | None]:
            with torch.no_grad():
                left = Side(x1, self.points)
                right = left if x2 is None else Side(x2, self.points)
                return kernels(Pairs(left, right, True), value, True)

        return layer


