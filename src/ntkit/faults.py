"""Whose fault an error is: of a user's network and torch, which ntkit works around, or ntkit's own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import Any

from ntkit.errors import NtkitError

_log = logging.getLogger("ntkit")
_strict = ContextVar("strict", default=False)
_HERE = Path(__file__).parent
_CALLERS = {
    _HERE / "graph.py",
    _HERE / "network.py",
    _HERE / "decompositions.py",
}  # they run the operations of a user's network
_OWN = (TypeError, AttributeError, NameError, LookupError, AssertionError, ArithmeticError)


@contextmanager
def strict() -> Iterator[None]:
    """Within it, any error that begins in ntkit's own code is its fault; the tests run like that.

    Without it only those are that correct code never raises: `TypeError`, `KeyError`, a failed `assert`.
    """
    token = _strict.set(True)
    try:
        yield
    finally:
        _strict.reset(token)


def foreign(error: Exception, doing: str) -> Exception:
    """Return an error of a user's network or of torch, and note it; raise it if it is ntkit's own fault.

    >>> foreign(RuntimeError("data-dependent"), "tracing")
    RuntimeError('data-dependent')
    """
    if _is_own(error):
        raise error
    _log.debug("%s failed, another way is taken: %s: %s", doing, type(error).__name__, error)
    return error


def _is_own(error: Exception) -> bool:
    place: TracebackType | None = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    if place is None:
        return False
    file = Path(place.tb_frame.f_code.co_filename)
    ours = file.is_relative_to(_HERE) and file not in _CALLERS
    return ours and (_strict.get() or isinstance(error, _OWN))


def first_line(error: BaseException) -> str:
    """Return an error's class and the beginning of what it says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:160] if text else ''}"


@contextmanager
def named(function: Callable[..., Any], refuse: Callable[[str], Exception]) -> Iterator[str]:
    """Give a registered function's name, and tell whatever it raises with that name, as its cause."""
    function = getattr(function, "func", function)  # of a partial
    name = f"{function.__module__}.{getattr(function, '__qualname__', repr(function))}"
    try:
        yield name
    except NtkitError:
        raise
    except Exception as error:
        raise refuse(f"{name} raised {type(error).__name__}: {error}") from error
