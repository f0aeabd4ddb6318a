"""Sums over products of two operands, in Einstein's notation, as products of matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.layers import linear, views
from ntkit.infinite.layers.arithmetic import add, mul
from ntkit.infinite.reading.rules import Reading, known, rule
from ntkit.infinite.reading.values import Known, Operand, Weight, Wide, sizes_of

aten = torch.ops.aten


@rule(aten.einsum.default)
def einsum(read: Reading, equation: str, operands: Sequence[Operand], **_: object) -> Operand:
    """Return a product of matrices of two operands, each brought to [shared, own, summed]."""
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    twice = any(len(set(term)) < len(term) for term in terms)
    if len(operands) != 2 or "." in equation or not arrow or twice:
        raise read.refuse("an einsum of other than two operands, or with diagonals or an ellipsis.")
    a, b = operands
    one, two = terms
    sizes = dict(zip(one + two, (*sizes_of(a), *sizes_of(b)), strict=True))
    shared = [c for c in one if c in two and c in out]
    summed = [c for c in one if c in two and c not in out]
    mine, theirs = ([c for c in t if c not in other] for t, other in ((one, two), (two, one)))
    if any(c not in out for c in (*mine, *theirs)):
        raise read.refuse("an einsum that sums over an index of one operand only.")
    order = [*shared, *mine, *theirs]
    if not summed:
        first, second = (
            _reshaped(
                read,
                _permuted(read, x, [t.index(c) for c in order if c in t]),
                [sizes[c] if c in t else 1 for c in order],
            )
            for x, t in zip(operands, terms, strict=True)
        )
        return _permuted(read, mul(read, first, second), [order.index(c) for c in out])
    first = _arranged(read, a, one, [shared, mine, summed], sizes)
    second = _arranged(read, b, two, [shared, summed, theirs], sizes)
    if isinstance(first, Weight) and isinstance(second, Wide):  # W h, as h' W'
        product = linear.matmul(read, _swapped(read, second), _swapped(read, first))
        product = _swapped(read, product)
    else:
        product = linear.matmul(read, first, second)
    product = _reshaped(read, product, [sizes[c] for c in order])
    return _permuted(read, product, [order.index(c) for c in out])


def _arranged(
    read: Reading, a: Operand, labels: str, groups: list[list[str]], sizes: dict[str, int]
) -> Operand:
    """Return an operand as ``[*shared, rows, columns]``; a weight without shared ones as a matrix."""
    shared, *matrix = groups
    order = [c for group in groups for c in group]
    a = _permuted(read, a, [labels.index(c) for c in order])
    lead = [sizes[c] for c in shared]
    return _reshaped(read, a, [*lead, *(prod(sizes[c] for c in group) for group in matrix)])


def _permuted(read: Reading, a: Operand, order: list[int]) -> Operand:
    if isinstance(a, Wide | Weight):
        return views.permute(read, a, order)
    return known(torch.permute, (a, order), {}) if isinstance(a, Known) else a.permute(order)


def _reshaped(read: Reading, a: Operand, sizes: list[int]) -> Operand:
    if list(sizes_of(a)) == sizes:
        return a
    if isinstance(a, Wide | Weight):
        return views.view(read, a, sizes)
    return known(torch.reshape, (a, sizes), {}) if isinstance(a, Known) else a.reshape(sizes)


def _swapped(read: Reading, a: Operand) -> Operand:
    rank = len(sizes_of(a))
    return _permuted(read, a, [*range(rank - 2), rank - 1, rank - 2])


@rule(aten.baddbmm.default)
def baddbmm(
    read: Reading, base: Operand, a: Operand, b: Operand, *, beta: float = 1, alpha: float = 1
) -> Operand:
    """Return beta base + alpha A B."""
    product = linear.matmul(read, a, b)
    product = mul(read, product, float(alpha)) if alpha != 1 else product
    if beta == 0 or (isinstance(base, Tensor) and not base.any()):
        return product
    return add(read, product, base, alpha=beta)
