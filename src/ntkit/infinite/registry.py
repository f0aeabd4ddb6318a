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
            raise BadTypeError(
                f"A {what} was given for {op!r}; expected an overload such as torch.ops.aten.mm.default."
            )

    def register(function: RuleT) -> RuleT:
        if not callable(function):
            raise BadTypeError(f"The {what} of {ops} is {function!r}; expected a function.")
        table.update({op: function for op in ops if replace or op not in table})
        return function

    return register
