"""What a softmax of attention is taken of: a product of queries and keys, numbers, tables of parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.infinite.moments import tables
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.positions import broadcast, reshape
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import (
    Coefficient,
    Inner,
    Moved,
    Multiple,
    Offset,
    Raw,
    Scores,
    Stopped,
    Table,
    VectorSum,
    expanded,
    reshaped,
)


def scores_of(z: Expression) -> Scores | None:
    """Return scores as a product of queries and keys, masked, and numbers; None where there is more."""
    found: list[tuple[Inner, float, tuple[Coefficient, ...], bool]] = []
    offsets: list[Coefficient] = []
    added: list[Table] = []
    of_heads: list[tuple[Raw, float]] = []
    stack: list[tuple[Expression, float, tuple[Coefficient, ...], bool]] = [(z, 1.0, (), True)]
    while stack:
        e, number, masks, trained = stack.pop()
        match e:
            case VectorSum():
                stack += [(term, number, masks, trained) for term in e.terms]
            case Multiple(factor=Coefficient() as mask):
                stack.append((e.inner, number, (*masks, mask), trained))
            case Multiple(factor=float() | int() as factor):
                stack.append((e.inner, number * factor, masks, trained))
            case Stopped():
                stack.append((e.inner, number, masks, False))
            case Inner():
                found.append((e, number, masks, trained))
            case Offset():
                offsets.append(_times(e.coefficient, number, masks))
            case Raw() if not masks and len(e.shape) == 2:
                of_heads.append((e, number))
            case Moved() if (opened := _opened(e)) is not e:
                stack.append((opened, number, masks, trained))
            case _:
                table = None if masks else tables.table_of(e, number, trained)
                if table is None:
                    return None
                added.append(table)
    if len(found) != 1:
        return None
    inner, number, masks, trained = found[0]
    if any(table.trained != trained or table.name in inner.names for table in added):
        return None
    return Scores(inner, number, masks, tuple(offsets), z.shape, trained, tuple(added), tuple(of_heads))


def _opened(e: Moved) -> Expression:
    """Return moved scores as a sum of moved ones, the numbers in them in front."""
    inner = _opened(e.inner) if isinstance(e.inner, Moved) else e.inner
    if not e.move.selects:
        return e

    def moved(part: Expression) -> Expression:
        return _opened(Moved(e.shape, e.move, expanded(part, e.move.before)))

    match inner:
        case VectorSum():
            return VectorSum(e.shape, tuple(map(moved, inner.terms)))
        case Offset(coefficient=numbers):
            return Offset(e.shape, Coefficient(e.shape, lambda side: e.move.apply(numbers.value(side))))
        case Multiple(factor=float() | int() as number):
            return Multiple(e.shape, number, moved(inner.inner))
        case Inner(left=q, right=k) if e.move.key[0] is reshape and e.shape[-2:] == inner.shape[-2:]:
            lead = inner.shape[:-2]
            q, k = (
                reshaped(expanded(x, (*lead, *x.shape[-2:])), (*e.shape[:-2], *x.shape[-2:])) for x in (q, k)
            )
            return Inner(e.shape, q, k, inner.factor, inner.turn)
    return e


def _times(c: Coefficient, number: float, masks: tuple[Coefficient, ...]) -> Coefficient:
    """Return numbers times others: zero where a mask is, of minus infinity too."""
    if number == 1 and not masks:
        return c

    def of(side: SideValues) -> Tensor:
        value = number * c.value(side)
        for mask in masks:
            by = mask.value(side)
            value = torch.where(by == 0, 0.0, value * by)
        return value

    return Coefficient(broadcast(c.shape, *(mask.shape for mask in masks)), of)
