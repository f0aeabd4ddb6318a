"""Tables of parameters in the scores of attention: relative positions, each entry at many queries and keys.

With z_ts = ... + b_m(t, s) the entries of b are drawn with the scores, and add to the tangent kernel

    step sum_m E[(d out_t / d b_m) (d out'_u / d b_m)],
    d out_t / d b_m = sum_r A_tr (V_r - out_t) over the keys r with m(t, r) = m
"""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.positions import expand
from ntkit.infinite.variables.vectors import Line, Moved, Multiple, Raw, Stopped, Table, Vector

MET = 2**22  # numbers of a part of what meets in two sums over keys


def table_of(e: Expression, number: float, trained: bool) -> Table | None:
    """Return parameters at fixed places of queries and keys; None for another vector."""
    moves = []
    leaf, whole = e, number
    while isinstance(leaf, Moved | Multiple | Stopped):
        if isinstance(leaf, Moved):
            if not leaf.move.selects:
                return None
            moves.append(leaf)
        elif isinstance(leaf, Stopped):
            trained = False
        elif isinstance(leaf.factor, float | int):
            whole *= leaf.factor
        else:
            return None
        leaf = leaf.inner
    match leaf:
        case Vector():
            average, law, rows, name = leaf.average, leaf.law, leaf.rows, leaf.name
            at = torch.arange(1, 1 + int(torch.Size(leaf.shape).numel())).reshape(leaf.shape)
        case Line(inputs=((1.0, Raw(places=Tensor() as places)),)):
            average, law, rows, name = 0.0, leaf.matrix.law, leaf.rows, leaf.matrix.name
            at = places + 1
        case _:
            return None
    count = int(at.max())
    for moved in reversed(moves):  # zero where there is none
        at = moved.move.apply(at.double())
    if len(e.shape) < 2 or any(s != 1 for s in e.shape[:-2]):
        return None
    places = expand(at, e.shape).reshape(e.shape[-2:]).long() - 1
    return Table(e, number, name, rows, average, law, count, places, whole, trained)


def through(
    a: Tensor,
    b: Tensor,
    k: Tensor,
    ak: Tensor,
    kb: Tensor,
    out: Tensor,
    left: Tensor,
    right: Tensor,
    count: int,
) -> Tensor:
    """Return the sum over draws and entries of D K D'.

    Of weights ``a [n, B, w, t, s]`` and ``b [n, B, v, u, r]``, and of products with the kernel K of values.
    ``left [t, s]`` and ``right [u, r]`` are the places of the entries, ``count`` where there is none.
    """
    one, two = _summed(a, left, count), _summed(b, right, count)
    at_keys = _at(one, right)  # [n, B, w, t, u, r]
    total = (out * torch.einsum("nbwtm,nbvum->nbwtvu", one, two)).sum(0)
    total = total - torch.einsum("nbwtur,nbwtvr,nbvur->bwtvu", at_keys, ak, b)
    total = total - torch.einsum("nbvuts,nbwts,nbwsvu->bwtvu", _at(two, left), a, kb)
    return total + _met(a, b, k, left, right, count)


def _met(a: Tensor, b: Tensor, k: Tensor, left: Tensor, right: Tensor, count: int) -> Tensor:
    """Return the sum over draws, and keys s and r of one entry, of a_ts K_sr b_ur: ``[B, w, t, v, u]``."""
    n, batch, w, t, s = a.shape
    v, u, r = b.shape[2:]
    same = (left[:, :, None, None] == right) & (left < count)[:, :, None, None]
    second = b.movedim(0, 1).reshape(batch, n, v * u * r)
    total = a.new_empty(batch, w, t, v, u)
    size = max(1, MET // (batch * s * v * u * r))
    for i in range(w):
        for part in torch.arange(t).split(size):
            first = a[:, :, i, part].movedim(0, -1).reshape(batch, -1, n)
            both = (first @ second).reshape(batch, len(part), s, v, u, r)
            both *= k[:, i, None, :, :, None] * same[part][:, :, None]
            total[:, i, part] = both.sum((2, 5))
    return total


def _summed(a: Tensor, places: Tensor, count: int) -> Tensor:
    """Return the sums of weights ``[..., t, s]`` at the places of each entry, ``[..., t, m]``."""
    sums = a.new_zeros(*a.shape[:-1], count + 1).scatter_add(-1, places.expand(a.shape), a)
    sums[..., count] = 0
    return sums


def _at(sums: Tensor, places: Tensor) -> Tensor:
    """Return sums ``[..., m]`` at places ``[u, r]``."""
    return sums.index_select(-1, places.flatten()).unflatten(-1, places.shape)
