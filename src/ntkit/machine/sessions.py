"""How an estimator computes: in how many threads, with what it shows meanwhile, and all at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

from ntkit.compute.threads import fitting_threads, threads
from ntkit.errors import BadValueError, NtkitError, one_of, whole

S = TypeVar("S", bound="Threads")
P = ParamSpec("P")
R = TypeVar("R")


class NoPartialFit(NtkitError, AttributeError):
    """An estimator is asked to learn from a part of the samples."""


class Threads:
    """``n_jobs`` threads (None: as many as are free, -1: all), and a progress bar where ``verbose``."""

    n_jobs: int | None
    verbose: bool

    def _check_session(self) -> None:
        one_of("verbose", self.verbose, (True, False))
        if self.n_jobs is not None and whole("n_jobs", self.n_jobs, None) != -1:
            if self.n_jobs < 1:
                raise BadValueError(f"n_jobs={self.n_jobs}; expected None, -1, or a number of threads.")


class Session(Threads):
    """What learns from all samples at once, in ``n_jobs`` threads."""

    @property
    def partial_fit(self) -> None:
        """Refused: a kernel machine needs all samples at once."""
        raise NoPartialFit(
            f"{type(self).__name__} has no partial_fit: its coefficients hang on the kernel between all "
            "samples. Give fit all samples, or take RandomFeatures before a linear model that has it, such "
            "as sklearn.linear_model.SGDClassifier."
        )


def computing(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Run a method in the threads that its estimator asks for."""

    @wraps(method)
    def run(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
        self._check_session()  # pyright: ignore[reportPrivateUsage]
        if self.n_jobs is None:
            with fitting_threads():
                return method(self, *args, **kwargs)
        with threads((os.cpu_count() or 1) if self.n_jobs == -1 else self.n_jobs):
            return method(self, *args, **kwargs)

    return run
