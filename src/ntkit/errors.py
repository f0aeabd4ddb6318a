"""What ntkit raises: every refusal says what was given, what was expected, and what to do.

All are `NtkitError`. One that refuses an argument is also what Python raises for it, so that code which
knows nothing of ntkit handles it: ``except ValueError`` for a bad value, ``except TypeError`` for something
that is not of the expected type. `one_of`, `whole`, `real` and `positive` check options of these kinds.
"""

from __future__ import annotations

import math
import numbers
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")


class NtkitError(Exception):
    """Any refusal by ntkit; catch this one to catch them all.

    Examples
    --------
    >>> import torch, ntkit
    >>> try:
    ...     ntkit.EmpiricalNTK(torch.nn.Linear(2, 1), outputs="all")
    ... except ntkit.NtkitError as error:
    ...     print(str(error)[:13])
    outputs='all'
    """


class BadValueError(NtkitError, ValueError):
    """An argument, or something that it holds, has a value that cannot be used.

    .. versionadded:: 0.1.0

    Examples
    --------
    >>> import torch, ntkit
    >>> try:
    ...     ntkit.EmpiricalNTK(torch.nn.Linear(2, 1), memory="a lot")
    ... except ValueError as error:
    ...     print(type(error).__name__)
    BadValueError
    """


class BadTypeError(NtkitError, TypeError):
    """An argument is not of the expected type.

    .. versionadded:: 0.1.0
    """


class NotPerSampleError(BadValueError):
    """The network has no function of a single sample (train-mode batch norm, active dropout, ...)."""


class NotSeparableError(BadValueError):
    """A batch loss is no sum of terms of single samples."""


class RunFolderError(NtkitError):
    """A run folder, or a file in it, is missing, truncated, edited, or cannot be written."""


class TileError(NtkitError):
    """A folder of tiles is damaged, cannot be written, or a tile of it cannot be made.

    .. versionadded:: 0.1.0
    """


class PathMismatchError(BadValueError):
    """Data, loss or model given to an account are not those of the recorded run."""


class NoRuleError(NtkitError):
    """An operation whose infinite-width limit ntkit does not know.

    Examples
    --------
    >>> import torch, ntkit
    >>> parts = torch.nn.Conv2d(4, 4, 1), torch.nn.PixelShuffle(2), torch.nn.Conv2d(1, 1, 1)
    >>> model = torch.nn.Sequential(*parts)
    >>> try:
    ...     ntkit.infinite_width(model, torch.ones(1, 4, 2, 2))
    ... except ntkit.NoRuleError as error:
    ...     print(str(error)[:33])
    No limit of infinite width is kno
    """


def nearest(given: object, known: Iterable[object]) -> str:
    """Return the end of a refusal: the known name nearest to the one given, nothing if none is near."""
    near = get_close_matches(str(given), map(str, known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def one_of(name: str, value: T, choices: Iterable[object]) -> T:
    """Return the value of an option if it is one of its choices; else refuse it, and name the nearest.

    >>> one_of("outputs", "ful", ("full", "mean"))
    Traceback (most recent call last):
    ntkit.errors.BadValueError: outputs='ful'; expected 'full' or 'mean'. Did you mean 'full'?
    """
    known = list(choices)
    if not any(isinstance(value, type(k)) and value == k for k in known):
        *most, last = map(repr, known)
        expected = f"{', '.join(most)} or {last}" if most else last
        raise BadValueError(f"{name}={value!r}; expected {expected}.{nearest(value, known)}")
    return value


def whole(name: str, value: object, least: int | None = 1) -> int:
    """Return the value of an option that is a whole number, at least that; else refuse it."""
    if (
        not isinstance(value, numbers.Integral)
        or isinstance(value, bool)
        or (least is not None and value < least)
    ):
        at_least = "" if least is None else f" of at least {least}"
        raise BadValueError(f"{name}={value!r}; expected a whole number{at_least}.")
    return int(value)


def real(
    name: str,
    value: object,
    expected: str = "a finite number",
    holds: Callable[[float], bool] = math.isfinite,
) -> float:
    """Return the value of an option that is a number for which something holds; else refuse it."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not holds(float(value)):
        raise BadValueError(f"{name}={value!r}; expected {expected}.")
    return float(value)


def positive(name: str, value: object) -> float:
    """Return the value of an option that is a finite number above zero; else refuse it."""
    return real(name, value, "a finite number, which must be positive", lambda v: 0 < v < math.inf)
