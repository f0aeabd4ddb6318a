"""Complex numbers of pairs of channels, as rotary embeddings make them: products with fixed ones alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ntkit.infinite.layers import rotary
from ntkit.infinite.layers.arithmetic import add, mul, neg
from ntkit.infinite.layers.selections import select
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Wide

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Complexes(Wide):
    """A vector whose last dimension, of channels, holds real and imaginary parts of complex numbers."""


def _complex(a: Wide) -> Complexes:
    return Complexes(a.pieces, a.shape, a.channels, a.dims)


@rule(aten.view_as_complex.default)
def view_as_complex(read: Reading, a: Wide) -> Complexes:
    """Take pairs of channels as complex numbers."""
    a = a.canonical()
    if a.dims[-1] != (-len(a.channels),) or a.sizes[-1] != 2:
        raise read.refuse("it makes complex numbers of other than pairs of channels.")
    return _complex(a)


def operation(read: Reading, op: object, args: tuple) -> Wide:
    """Return what an operation makes of complex vectors: a product with fixed numbers, or their parts."""
    if op == aten.view_as_real.default:
        (a,) = args
        return Wide(a.pieces, a.shape, a.channels, a.dims)
    if op == aten.mul.Tensor:
        a, b = args if isinstance(args[0], Complexes) else args[::-1]
        if isinstance(a, Complexes) and isinstance(b, Tensor) and b.is_complex():
            return _product(read, Wide(a.pieces, a.shape, a.channels, a.dims), b)
    raise read.refuse(
        "complex vectors are known in products with fixed complex numbers only (rotary embeddings)."
    )


def _product(read: Reading, a: Wide, numbers: Tensor) -> Complexes:
    """Return (x + iy)(c + is) = (cx - sy) + i(cy + sx)."""
    x, y = (select(read, a, -1, i) for i in (0, 1))
    assert isinstance(x, Wide) and isinstance(y, Wide)
    turned = rotary.rejoined(read, [neg(read, y), x], len(x.dims), True)
    if turned is None:
        raise read.refuse("it multiplies complex numbers whose parts are not parts of one vector.")
    real, imaginary = (t.unsqueeze(-1).expand(*t.shape, 2) for t in (numbers.real, numbers.imag))
    first, second = mul(read, a, real), mul(read, turned, imaginary)
    return _complex(add(read, first, second))
