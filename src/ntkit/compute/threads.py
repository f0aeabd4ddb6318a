"""The number of torch's threads, for a while, of SciPy's, and how those of worker processes wait."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from pathlib import Path

import torch
from threadpoolctl import LibController, ThreadpoolController

LITTLE = 2e7  # floating-point operations, a few ms of one thread: more threads gain less than they may lose
_FRESH = 0.25  # seconds that a look at the load holds
_seen: dict[str, float] = {}
_most: ContextVar[int | None] = ContextVar("most threads", default=None)


@contextmanager
def threads(count: int) -> Generator[int]:
    """Compute in so many threads, and in as many as before afterwards; yields how many those are.

    >>> with threads(1):
    ...     torch.get_num_threads()
    1
    """
    before, token = torch.get_num_threads(), _most.set(count)
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)
        _most.reset(token)


@contextmanager
def fitting_threads(flops: float | None = None) -> Generator[int]:
    """Compute in as many threads as processors are free, in one if there is little to do; yields how many.

    There are at most as many as there were before the outermost of these blocks, so that a long computation
    enters one again and again, as the load changes.

    Torch's OpenMP waits actively: with one thread more than free processors each small operation waits
    for a time slice of the processor, some milliseconds, a hundred times what it takes.
    """
    now = torch.get_num_threads()
    most = _most.get() or now
    count = 1 if flops is not None and flops < LITTLE else min(most, max(1, free_processors()))
    token = _most.set(most)
    try:
        if count != now:
            torch.set_num_threads(count)
        yield count
    finally:
        if count != now:
            torch.set_num_threads(now)
        _most.reset(token)


@contextmanager
def lapack_threads() -> Generator[None]:
    """Let SciPy's LAPACK compute in as many threads as torch, which are its own.

    >>> import scipy.linalg
    >>> with threads(1), lapack_threads():
    ...     values = scipy.linalg.eigvalsh([[2.0, 1.0], [1.0, 2.0]])
    """
    count = torch.get_num_threads()
    before = [(library, int(library.num_threads or 1)) for library in _libraries()]
    before = [(library, now) for library, now in before if now != count]  # to set them takes half a ms
    try:
        for library, _ in before:
            library.set_num_threads(count)
        yield
    finally:
        for library, now in before:
            library.set_num_threads(now)


@cache
def _libraries() -> list[LibController]:
    import_module("scipy.linalg")  # what is loaded now is found
    return ThreadpoolController().select(user_api="blas").lib_controllers


def free_processors() -> int:
    """Return how many processors the threads of other processes leave free now, as Linux counts them.

    Elsewhere, all there are. It looks again after a quarter of a second.
    """
    now = time.monotonic()
    if now - _seen.get("at", -1e9) > _FRESH:
        _seen.update(at=now, free=(os.cpu_count() or 1) - _running_elsewhere())
    return int(_seen["free"])


def _running_elsewhere() -> int:
    """Return the number of threads that run or could run, without those of this process."""
    try:
        all_, own = int(Path("/proc/loadavg").read_text().split()[3].split("/")[0]), 0
        for task in Path("/proc/self/task").iterdir():
            own += _state(task) == "R"
    except (OSError, ValueError, IndexError):
        return 0
    return max(0, all_ - own)


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:  # it has ended
        return ""


@contextmanager
def passive_workers() -> Generator[None]:
    """Let the threads of processes that are started meanwhile sleep while they wait.

    Torch's OpenMP waits actively, so that on a machine with other work each small operation costs a time
    slice of the processor. How it waits is read once, when torch is loaded.
    """
    given = os.environ.get("OMP_WAIT_POLICY")
    os.environ["OMP_WAIT_POLICY"] = given or "PASSIVE"
    try:
        yield
    finally:
        if given is None:
            del os.environ["OMP_WAIT_POLICY"]
