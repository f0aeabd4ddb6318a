"""Values that are made of others, each once, however many lie on top of each other: no deep recursion.

What a value needs is made inside it up to a few levels. Deeper ones break it off, are made first, and it
begins again; so a network of any depth is evaluated within the interpreter's usual depth.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any

LEVELS = 12  # values that are made inside one another

Values = dict[Hashable, Any]
Task = tuple[Values, Hashable, Callable[[], Any]]


class Deeper(BaseException):
    """A value that must be made before the one that asks for it; nobody but `made` catches it."""

    def __init__(self, task: Task) -> None:
        self.task = task


class _Now(threading.local):
    """What this thread is making: the values that are open, the innermost last."""

    def __init__(self) -> None:
        self.open: list[tuple[Values, Hashable]] = []


_now = _Now()


def reader(values: Values, kinds: tuple[str, ...]) -> Hashable:
    """Return which of some values, of some kinds, is being made and asks for another; None for none."""
    for owner, key in reversed(_now.open):
        if owner is values and isinstance(key, tuple) and key[0] in kinds:
            return key
    return None


def made(values: Values, key: Hashable, make: Callable[[], Any]) -> None:
    """Make a value, and before it those that it needs."""
    if len(_now.open) >= LEVELS:
        raise Deeper((values, key, make))
    if _now.open:
        _make((values, key, make))
        return
    tasks: list[Task] = [(values, key, make)]
    while tasks:
        try:
            _make(tasks[-1])
            tasks.pop()
        except Deeper as deeper:
            tasks.append(deeper.task)


def _make(task: Task) -> None:
    values, key, make = task
    _now.open.append((values, key))
    try:
        values[key] = make()
    finally:
        _now.open.pop()
