"""Tables of rules by the operation that they belong to, and whose fault an error in one is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from ntkit.errors import NtkitError

RuleT = TypeVar("RuleT", bound=Callable[..., Any])


def registering(table: dict, ops: tuple, what: str, replace: bool = True) -> Callable[[RuleT], RuleT]:
    """Return the decorator that writes a function into a table for some operations, overloads all."""
    for op in ops:
        if not isinstance(op, torch._ops.OpOverload):
            raise NtkitError(f"A {what} belongs to an overload such as aten.linear.default, got {op!r}.")

    def register(function: RuleT) -> RuleT:
        table.update({op: function for op in ops if replace or op not in table})
        return function

    return register


@contextmanager
def named(function: Callable[..., Any], refuse: Callable[[str], NtkitError]) -> Iterator[str]:
    """Give a registered function's name, and tell whatever it raises with that name, as its cause."""
    function = getattr(function, "func", function)  # of a partial
    name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
    try:
        yield name
    except NtkitError:
        raise
    except Exception as error:
        raise refuse(f"{name} raised {type(error).__name__}: {error}") from error
