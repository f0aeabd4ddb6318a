"""Kernels to a tolerance: made again with more points, nodes and terms until their error is small enough."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TypeVar

from ntkit.infinite.moments.functions import Apply
from ntkit.infinite.moments.numerics import Numerics

MOST = {"points": 8, "nodes": 5}  # doublings of what a kernel is first made with

T = TypeVar("T")


class ToleranceWarning(UserWarning):
    """A kernel whose error is larger than the ``tol`` that was asked for: of what, and how large."""


def within(tol: float | None, numerics: Numerics, make: Callable[[], T]) -> T:
    """Return a kernel whose error is at most ``tol``, or the last one with a `ToleranceWarning`."""
    errors: list[float] = []
    while True:
        made = make()
        errors.append(numerics.now)
        if tol is None or errors[-1] <= tol:
            break
        if not _hopeful(numerics, errors, tol):
            _warn(numerics, errors[-1], tol)
            break
        numerics.refine(tol)
    numerics.settle()
    return made


def _hopeful(numerics: Numerics, errors: list[float], tol: float) -> bool:
    """Return whether what is left of the doublings may do, at the rate of the last one or at a half each."""
    left = max(MOST[kind] - numerics.levels[kind] for kind in numerics.arose)
    if left < 1:
        return False
    rate = 0.5 if len(errors) < 2 else min(0.5, errors[-1] / errors[-2])
    return len(errors) < 2 or errors[-1] * rate**left <= tol


def _warn(numerics: Numerics, error: float, tol: float) -> None:
    worst = max(numerics.found, key=lambda e: max(numerics.found[e]))
    name = worst.function.name if isinstance(worst, Apply) else "attention"
    used = [f"{numerics.count} points"] * ("points" in numerics.arose)
    used += [f"{numerics.fineness} times the usual nodes and terms"] * ("nodes" in numerics.arose)
    more = ", or more samples=" if "points" in numerics.arose else ""
    text = (
        f"tol={tol:.3g} is not reached: with {' and '.join(used)} the relative error of the kernel is "
        f"{error:.1e}, the most of it behind {name}. Give a larger tol{more}."
    )
    warnings.warn(text, ToleranceWarning, stacklevel=4)
