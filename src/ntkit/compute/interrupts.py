"""Ctrl-C at a moment that suits: what is being done is finished first, so that nothing is left torn."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType


@contextmanager
def held_interrupts() -> Generator[Callable[[], bool]]:
    """Hold the first Ctrl-C back, and yield what says whether there was one; a second one goes through.

    Only where Ctrl-C raises KeyboardInterrupt, in the main thread; elsewhere nothing is held.
    """
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if current_thread() is not main_thread() or not usual:
        yield lambda: False
        return
    seen: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
