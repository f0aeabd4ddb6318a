"""Values of pairs of samples, in which None is an exact zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from ntkit.errors import NoRuleError
from ntkit.infinite.variables.positions import Shape, broadcast, expand

Value = Tensor | None  # None is an exact zero
Need = Literal["equal", "all"]  # [*batch, *shape] at equal positions, [*batch, *shape, *shape] for all pairs


def add(values: Iterable[Value]) -> Value:
    """Return a sum."""
    some = [value for value in values if value is not None]
    return reduce(torch.add, some) if some else None


def times(value: Value, factor: float | Tensor) -> Value:
    """Return a multiple."""
    if value is None or (isinstance(factor, float | int) and factor == 1):
        return value
    return None if isinstance(factor, float | int) and factor == 0 else value * factor


def multiply(first: Value, second: Value) -> Value:
    """Return a product."""
    return None if first is None or second is None else first * second


def mapped(value: Value, linear: Callable[[Tensor], Tensor]) -> Value:
    """Return a linear function of a value."""
    return None if value is None else linear(value)


def at_equal(whole: Value, left: Shape, right: Shape) -> Value:
    """Return the values at equal positions from those of all pairs."""
    if whole is None:
        return None
    shape, rank = broadcast(left, right), len(left)
    whole = expand(whole, (*shape, *shape))
    lead = whole.ndim - 2 * rank
    for i in range(rank):
        whole = torch.diagonal(whole, dim1=lead, dim2=lead + rank - i)
    return whole


def refuse(why: str) -> NoRuleError:
    """Return the error of a program whose limit is not known."""
    return NoRuleError(f"{why} Use ntkit.monte_carlo(model, ...) to estimate the limit from wide draws.")
