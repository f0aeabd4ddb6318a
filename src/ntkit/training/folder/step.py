"""One recorded step: its batches, how they went through the network, and its coefficients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.training.optimizers import Coefficients

Augment = Callable[[Any, Any], tuple[Any, Any]]
BatchLoss = Callable[[Any, Any], Tensor]


@dataclass
class Forward:
    """One forward pass of a batch: what its outputs depended on, besides weights, buffers and inputs.

    ``rng`` is the state of the generators as it began, if it drew random numbers; ``announced`` the state
    when the batch was announced, if numbers were drawn in between; ``autocast`` the dtype, if it was on;
    ``modes`` the names of the submodules in training mode, ``buffers`` those that had changed since the step
    before.
    """

    rng: Tensor | None = None
    announced: Tensor | None = None
    autocast: str | None = None
    modes: tuple[str, ...] = ()
    buffers: dict[str, Tensor] = field(default_factory=dict)


@contextmanager
def autocast(dtype: str | None, device: torch.device | str) -> Iterator[None]:
    """Compute in mixed precision, if a dtype is given."""
    if dtype is None:
        yield
        return
    with torch.autocast(torch.device(device).type, getattr(torch, dtype), cache_enabled=False):
        yield


class Part(NamedTuple):
    """A batch whose gradients went into a step, the factor of its loss, and how it went forward."""

    batch: Tensor
    weight: float
    forward: Forward


class Side(NamedTuple):
    """Where a matrix is among flat weights, its shape, and what multiplies its step on either side."""

    where: slice
    shape: torch.Size
    left: Tensor
    right: Tensor


@dataclass(frozen=True)
class Step:
    """One step: the indices of its batch, and its coefficients as numbers or flat tensors ``[P]``.

    ``parts`` are the sizes and weights of the batches that were added up, one after the other, and
    ``forwards`` how they went through the network. With a number ``kept``, it is not an optimizer's step: the
    weights went back (Lookahead) to that part of the way that they had come since the last such step.
    """

    batch: Tensor
    coefficients: Coefficients
    parts: tuple[tuple[int, float], ...]
    sides: tuple[Side, ...] = ()
    forwards: tuple[Forward, ...] = (Forward(),)
    kept: float | None = None

    def multiplied(self, v: Tensor, sizes: bool = False) -> Tensor:
        """Return vectors ``[..., P]`` with the blocks of matrices multiplied from their sides, or bounds."""
        if sizes:
            return self._over_blocks(v, lambda m, left, right: left.abs() @ m @ right.abs())
        return self._over_blocks(v, lambda m, left, right: left @ m @ right)

    def pulled(self, d: Tensor) -> Tensor:
        """Return rows ``[..., P]`` multiplied by the transpose of what `multiplied` does."""
        return self._over_blocks(d, lambda m, left, right: left.T @ m @ right.T)

    def _over_blocks(self, v: Tensor, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        if not self.sides:
            return v
        v = v.clone()
        for side in self.sides:
            block = v[..., side.where].unflatten(-1, side.shape)
            v[..., side.where] = function(block, side.left.to(v), side.right.to(v)).flatten(-2)
        return v

    def loss(self, loss: BatchLoss) -> BatchLoss:
        """Return the loss of the whole step: the weighted sum of those of its parts."""
        if len(self.parts) == 1:
            weight = self.parts[0][1]
            return loss if weight == 1 else lambda outputs, targets: weight * loss(outputs, targets)
        ends = list(accumulate((size for size, _ in self.parts), initial=0))

        def added(outputs: object, targets: object) -> Tensor:
            total: Any = 0
            for first, last, (_, weight) in zip(ends, ends[1:], self.parts, strict=False):
                part = slice(first, last)
                total = total + weight * loss(*pytree.tree_map(lambda t, p=part: t[p], (outputs, targets)))
            return total

        return added


class Trail(Protocol):
    """Weights that moved step by step: those of a run, or an average of them."""

    steps: int

    def weights(self, k: int) -> Tensor:
        """Return the weights before step k, after the last one for k = steps, ``[P]``."""
        ...
