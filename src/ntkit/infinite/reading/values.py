"""What flows through a graph in the limit: known numbers, weights, and vectors of infinite width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ntkit.infinite.moments.vectors import (
    Apply,
    Coefficient,
    Expression,
    Gain,
    Inner,
    Line,
    Mixed,
    Moved,
    Offset,
    Raw,
    Scaled,
    Shape,
    Stopped,
    Sum,
    Vector,
    permuted,
    reshaped,
)

if TYPE_CHECKING:
    from ntkit.infinite.moments.pairs import Side

Axis = int  # an axis of positions 0, 1, ...; an axis of channels -1, -2, ...


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers that depend on the sample alone: ``example`` is the tensor of the traced sample."""

    example: Tensor
    numbers: Coefficient  # [n, *example.shape]
    moments: bool = False  # made of moments of infinite vectors, in which no gradient flows


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight, or a view of it, times a number."""

    name: str
    tensor: Tensor  # a view of the weight's own storage
    shape: Shape  # of the weight itself
    factor: float = 1.0


@dataclass(frozen=True, eq=False)
class Wide:
    """A vector of infinite width: ``dims`` says which axes each dimension of the tensor is made of.

    ``shape`` are the sizes of the axes of positions, ``channels`` those of the channels (their nominal
    widths), ``pieces`` the vectors that are concatenated along the channels, each with its width.
    """

    pieces: tuple[tuple[int, Expression], ...]
    shape: Shape
    channels: Shape
    dims: tuple[tuple[Axis, ...], ...]

    @property
    def sizes(self) -> Shape:
        """The shape of the tensor that this stands for."""
        return tuple(prod(self.size(axis) for axis in dim) for dim in self.dims)

    def size(self, axis: Axis) -> int:
        """Return the size of an axis."""
        return self.shape[axis] if axis >= 0 else self.channels[-axis - 1]

    @property
    def only(self) -> Expression:
        """The vector, where it is one."""
        return self.pieces[0][1]

    def map(self, f: Callable[[Expression], Expression]) -> Wide:
        """Apply a function to each piece that leaves the positions as they are."""
        return replace(self, pieces=tuple((width, f(e)) for width, e in self.pieces))

    def canonical(self) -> Wide:
        """Return the same with positions and channels numbered in the order of the dimensions."""
        order = tuple(a for dim in self.dims for a in dim if a >= 0)
        channels = [-a - 1 for dim in self.dims for a in dim if a < 0]
        pieces = tuple((width, permuted(e, order)) for width, e in self.pieces)
        if channels != sorted(channels):
            index = torch.arange(prod(self.channels)).reshape(self.channels).permute(channels).reshape(-1)
            pieces = _narrowed(pieces, index)
        position, channel, dims = 0, -1, []
        for dim in self.dims:
            axes = []
            for a in dim:
                axes.append(position if a >= 0 else channel)
                position, channel = position + (a >= 0), channel - (a < 0)
            dims.append(tuple(axes))
        shape, widths = tuple(self.shape[i] for i in order), tuple(self.channels[j] for j in channels)
        return Wide(pieces, shape, widths, tuple(dims))

    def reshaped(self, shape: Shape, dims: Sequence[tuple[Axis, ...]]) -> Wide:
        """Return a canonical vector with its positions in another shape."""
        pieces = tuple((width, reshaped(e.expanded(self.shape), shape)) for width, e in self.pieces)
        return Wide(pieces, shape, self.channels, tuple(dims))

    def narrowed(self, index: Tensor, channels: Shape, dims: Sequence[tuple[Axis, ...]]) -> Wide:
        """Return some of the coordinates, by their numbers."""
        return Wide(_narrowed(self.pieces, index), self.shape, channels, tuple(dims))


def _narrowed(
    pieces: tuple[tuple[int, Expression], ...], index: Tensor
) -> tuple[tuple[int, Expression], ...]:
    found, start = [], 0
    for width, e in pieces:
        mine = index[(index >= start) & (index < start + width)] - start
        if len(mine):
            found.append((len(mine), narrow(e, mine)))
        start += width
    if len(found) > 1 and not torch.equal(index, index.sort().values):
        raise ValueError("a permutation of concatenated vectors")
    return tuple(found)


def narrow(e: Expression, index: Tensor) -> Expression:
    """Return some coordinates of a vector: other rows of the weights that made it."""
    known = e.__dict__.setdefault("narrowed", {})  # the same coordinates are the same vector
    key = tuple(index.tolist())
    if key not in known:
        known[key] = _narrow(e, index)
    return known[key]


def _narrow(e: Expression, index: Tensor) -> Expression:
    match e:
        case Line() | Vector():
            return replace(e, rows=e.rows[index])
        case Sum():
            return replace(e, terms=tuple(narrow(t, index) for t in e.terms))
        case Scaled() | Moved() | Mixed() | Stopped():
            return replace(e, inner=narrow(e.inner, index))
        case Gain():
            return replace(e, vector=narrow(e.vector, index), inner=narrow(e.inner, index))
        case Apply():
            parts = tuple(narrow(a, index) if isinstance(a, Expression) else a for a in e.arguments)
            return replace(e, arguments=parts)
        case Raw():
            data = Coefficient(e.data.shape, lambda side: e.data.value(side)[..., index])
            return replace(e, data=data)
        case Offset():
            return e
        case Inner():
            raise ValueError("some of the heads of an attention")
    raise AssertionError(e)


def rows_for(side: Side, value: Tensor) -> Tensor:
    """Return numbers of all samples: a tensor of the network's own has one row for all of them."""
    return value.expand(side.n, *value.shape[1:])


def numbers(value: Any) -> Known | None:
    """Return a tensor or Known as Known."""
    if isinstance(value, Known):
        return value
    if isinstance(value, Tensor):
        return Known(value, Coefficient(tuple(value.shape), lambda side: value.unsqueeze(0)))
    return None
