"""Turns at computing: no more tasks of a machine at a time than it has processors."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

WAIT = 0.005  # seconds between two looks


@contextmanager
def turn(places: int | None = None) -> Generator[None]:
    """Wait until fewer tasks compute on this machine than it has processors, then compute.

    More processes than processors take the caches from each other each few milliseconds, which costs them a
    tenth of their speed. A place is a lock on a file, which the system gives back when its process ends,
    however it ends. ``places`` is the number of processors if left out; without such locks (Windows) nobody
    waits.

    >>> with turn():
    ...     pass
    """
    place = None
    if find_spec("fcntl") is not None:
        folder = Path(tempfile.gettempdir()) / f"ntkit-turns-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        place = _place(folder, places or processors())
    try:
        yield
    finally:
        if place is not None:
            os.close(place)


def _place(folder: Path, places: int) -> int:
    """Return the open file of the first place that is free."""
    import fcntl

    while True:
        for place in range(places):
            handle = os.open(folder / str(place), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                continue
            return handle
        time.sleep(WAIT)


def processors() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
