"""Tables of rules by the operation that they belong to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ntkit.errors import BadTypeError

RuleT = TypeVar("RuleT", bound=Callable[..., Any])


def registering(table: dict, ops: tuple, what: str, replace: bool = True) -> Callable[[RuleT], RuleT]:
    """Return the decorator that writes a function into a table for some operations, overloads all."""
    for op in ops:
        if not isinstance(op, torch._ops.OpOverload):
            raise BadTypeError(f"A {what} belongs to an overload such as aten.linear.default, got {op!r}.")

    def register(function: RuleT) -> RuleT:
        table.update({op: function for op in ops if replace or op not in table})
        return function

    return register
