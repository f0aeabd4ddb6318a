"""Positions of a vector: their shapes, and linear maps of them."""

from __future__ import annotations

from dataclasses import InitVar, dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Move:
    """A linear map of positions: ``apply`` acts on the last axes of a tensor ``[..., *before]``.

    ``key`` is the function and what it takes after the tensor. ``selects``: each position takes at most
    one, so that equal positions stay equal. (``fills`` is no longer needed; it may still be given.)
    """

    key: tuple
    before: Shape
    after: Shape
    selects: bool
    fills: InitVar[bool] = False

    def apply(self, t: Tensor) -> Tensor:
        """Map the last axes of a tensor."""
        return self.key[0](expand(t, self.before), *self.key[1:])


def reshape(t: Tensor, before: int, after: Shape) -> Tensor:
    """Give the last ``before`` axes of a tensor new sizes."""
    return t.reshape(*t.shape[: t.ndim - before], *after)


def permute(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """Permute the last axes of a tensor."""
    lead = t.ndim - len(order)
    return t.permute(*range(lead), *(lead + i for i in order))


def expand(t: Tensor, shape: Shape) -> Tensor:
    """Repeat the last axes of a tensor to a shape."""
    return t.expand(*t.shape[: t.ndim - len(shape)], *shape)


@dataclass(frozen=True, eq=False)
class Windows:
    """Positions that belong together: ``places [*after, k]`` in the flat positions before, -1 for none."""

    places: Tensor

    @property
    def inside(self) -> Tensor:
        """Which places there are."""
        return self.places >= 0


def at_windows(t: Tensor, rank: int, windows: Windows) -> Tensor:
    """Return the last axes of a tensor at the places of windows, zero where there is none."""
    places = windows.places.to(t.device)
    flat = (
        t.flatten(t.ndim - rank).index_select(-1, places.clamp(min=0).flatten()).unflatten(-1, places.shape)
    )
    return flat if bool((places >= 0).all()) else flat * (places >= 0)


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape that several broadcast to."""
    return tuple(torch.broadcast_shapes(*shapes))


def matvec(matrices: Tensor, t: Tensor) -> Tensor:
    """Return the products of matrices with the vectors along the last axis."""
    return (matrices @ t.unsqueeze(-1)).squeeze(-1)
