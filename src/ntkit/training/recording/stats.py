"""What recording costs: the time spent in it, and the bytes written."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Stats:
    """What a recording cost until now.

    ``seconds`` is the time spent in recording (its calls and its hooks), ``total`` that since the recording
    began, ``bytes`` what its log holds.
    """

    steps: int
    seconds: float
    total: float
    bytes: int

    @property
    def overhead(self) -> float:
        """The time of recording over that of all else: 0.2 makes a step one fifth slower."""
        return self.seconds / max(self.total - self.seconds, 1e-12)

    def __repr__(self) -> str:
        per_step = 1e3 * self.seconds / max(1, self.steps)
        return (
            f"{self.steps} steps recorded in {self.seconds:.2f} of {self.total:.2f} s ({per_step:.2f} ms "
            f"a step, {self.overhead:.0%} on top of training), {self.bytes / 2**20:.1f} MiB"
        )


class Stopwatch:
    """Adds up the time inside the functions that it wraps; nested, it counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.began = time.perf_counter()
        self.ended: float | None = None
        self._inside = False

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, timed."""

        def timed(*args: object, **kwargs: object) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begin = True, time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - begin

        return timed

    @property
    def total(self) -> float:
        """The time since the watch began, until it ended."""
        return (time.perf_counter() if self.ended is None else self.ended) - self.began
