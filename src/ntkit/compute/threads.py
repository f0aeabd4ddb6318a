"""The number of torch's threads, for a while, and how those of worker processes wait."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

import torch


@contextmanager
def threads(count: int) -> Generator[int]:
    """Compute in so many threads, and in as many as before afterwards; yields how many those are.

    >>> with threads(1):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield before
    finally:
        torch.set_num_threads(before)


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
