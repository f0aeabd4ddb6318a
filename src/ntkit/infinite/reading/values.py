"""What flows through a graph in the limit: known numbers, weights, and vectors of infinite width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.positions import Move, Shape
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.rewrites import Inseparable, narrow
from ntkit.infinite.variables.vectors import Coefficient, Moved, expanded, permuted, reshaped

Axis = int  # an axis of positions 0, 1, ...; an axis of channels -1, -2, ...


@dataclass(frozen=True, eq=False)
class Known:
    """Numbers that depend on the sample alone: ``example`` is the tensor of the traced sample."""

    example: Tensor
    numbers: Coefficient  # [n, *example.shape]
    moments: bool = False  # made of moments of infinite vectors, in which no gradient flows

    def rows(self, side: SideValues) -> Tensor:
        """Return the numbers of all samples: a tensor of the network's own has one row for all of them."""
        value = self.numbers.value(side)
        return value.expand(side.n, *value.shape[1:])


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight, or a view of it, times a number, plus a number."""

    name: str
    tensor: Tensor  # a view of the weight's own storage
    shape: Shape  # of the weight itself
    factor: float = 1.0
    shift: float = 0.0

    def times(self, number: float) -> Weight:
        """Return a multiple."""
        return replace(self, factor=self.factor * number, shift=self.shift * number)

    def plus(self, number: float) -> Weight:
        """Return the same with a number added to each entry."""
        return replace(self, shift=self.shift + number)


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

    @property
    def width(self) -> int:
        """The nominal width: that of all pieces together."""
        return sum(width for width, _ in self.pieces)

    def size(self, axis: Axis) -> int:
        """Return the size of an axis."""
        return self.shape[axis] if axis >= 0 else self.channels[-axis - 1]

    @property
    def only(self) -> Expression:
        """The vector, where it is one."""
        return self.pieces[0][1]

    def map(self, f: Callable[[Expression], Expression], shape: Shape | None = None) -> Wide:
        """Apply a function to each piece; ``shape`` are the positions of what it returns, if they differ."""
        pieces = tuple((width, f(e)) for width, e in self.pieces)
        return replace(self, pieces=pieces, shape=self.shape if shape is None else shape)

    def moved(self, move: Move) -> Wide:
        """Return the same with the positions of each piece moved."""
        return self.map(lambda e: Moved(move.after, move, expanded(e, move.before)), move.after)

    def canonical(self) -> Wide:
        """Return the same with positions and channels numbered in the order of the dimensions."""
        order = tuple(a for dim in self.dims for a in dim if a >= 0)
        channels = [-a - 1 for dim in self.dims for a in dim if a < 0]
        pieces = tuple((width, permuted(e, order)) for width, e in self.pieces)
        if channels != sorted(channels):
            index = torch.arange(prod(self.channels)).reshape(self.channels).permute(channels).reshape(-1)
            pieces = _narrowed(pieces, index)
        shape, widths = tuple(self.shape[i] for i in order), tuple(self.channels[j] for j in channels)
        return Wide(pieces, shape, widths, numbered([[a >= 0 for a in dim] for dim in self.dims]))

    def merged(self) -> Wide:
        """Return a canonical vector with the axes of channels of each dimension as one."""
        if any(any(a < 0 for a in dim) and any(a >= 0 for a in dim) for dim in self.dims):
            return self
        groups = [[self.size(a) for a in dim if a < 0] for dim in self.dims]
        dims = numbered(
            [[False] if group else [True] * len(dim) for dim, group in zip(self.dims, groups, strict=True)]
        )
        return Wide(self.pieces, self.shape, tuple(prod(group) for group in groups if group), dims)

    def reshaped(self, shape: Shape, dims: Sequence[tuple[Axis, ...]]) -> Wide:
        """Return a canonical vector with its positions in another shape."""
        pieces = tuple((width, reshaped(expanded(e, self.shape), shape)) for width, e in self.pieces)
        return Wide(pieces, shape, self.channels, tuple(dims))

    def per_dimension(self) -> Wide:
        """Return the same with one axis of positions for each dimension that has any, but those of size 1."""
        a = self.canonical()
        sizes = [prod(a.size(x) for x in dim if x >= 0) for dim in a.dims]
        shape = tuple(size for size in sizes if size > 1)
        axis, dims = 0, []
        for dim, size in zip(a.dims, sizes, strict=True):
            dims.append((*([axis] if size > 1 else []), *(x for x in dim if x < 0)))
            axis += size > 1
        return a.reshaped(shape, dims)

    def narrowed(self, index: Tensor, channels: Shape, dims: Sequence[tuple[Axis, ...]]) -> Wide:
        """Return some of the coordinates, by their numbers."""
        return Wide(_narrowed(self.pieces, index), self.shape, channels, tuple(dims))


Operand = Wide | Known | Weight | Tensor  # what an operation of a graph works on
Argument = Operand | float | int


def numbered(positions: Sequence[Sequence[bool]]) -> tuple[tuple[Axis, ...], ...]:
    """Return dimensions whose axes, positions or channels, are numbered in their order."""
    position, channel, dims = 0, -1, []
    for dim in positions:
        axes = []
        for is_position in dim:
            axes.append(position if is_position else channel)
            position, channel = position + is_position, channel - (not is_position)
        dims.append(tuple(axes))
    return tuple(dims)


def _narrowed(
    pieces: tuple[tuple[int, Expression], ...], index: Tensor
) -> tuple[tuple[int, Expression], ...]:
    narrowed, start = [], 0
    for width, e in pieces:
        mine = index[(index >= start) & (index < start + width)] - start
        if len(mine):
            narrowed.append((len(mine), narrow(e, mine, width)))
        start += width
    if len(narrowed) > 1 and not torch.equal(index, index.sort().values):
        raise Inseparable("a permutation of concatenated vectors")
    return tuple(narrowed)


def per_channel(weight: Weight, after: int) -> Weight:
    """Return parameters with one entry for each channel, in front of ``after`` more dimensions."""
    return replace(weight, tensor=weight.tensor.reshape(-1, *(1 for _ in range(after))))


def numbers(value: object) -> Known | None:
    """Return a tensor or Known as Known."""
    if isinstance(value, Known):
        return value
    if isinstance(value, Tensor):
        return Known(value, Coefficient(tuple(value.shape), lambda side: value.unsqueeze(0)))
    return None


def compact(t: Tensor) -> Tensor:
    """Return a tensor with one entry along the dimensions along which it was expanded."""
    for d, (size, stride) in enumerate(zip(t.shape, t.stride(), strict=True)):
        t = t.narrow(d, 0, 1) if stride == 0 and size > 1 else t
    return t


def sizes_of(value: Operand) -> Shape:
    """Return the shape of the tensor that a value stands for."""
    if isinstance(value, Wide):
        return value.sizes
    tensor = value.example if isinstance(value, Known) else value
    return tuple((tensor.tensor if isinstance(tensor, Weight) else tensor).shape)
