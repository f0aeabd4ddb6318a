"""Old places of modules, which keep working for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module


def moved(old: str, new: str, removed: str, **renamed: str) -> Callable[[str], object]:
    """Return the ``__getattr__`` of a module whose names live elsewhere: it warns and passes them on.

    ``new`` is a module, or several with spaces between; ``renamed`` gives the new names of those that
    changed; ``removed`` is the version without the old place.
    """

    def __getattr__(name: str) -> object:
        now = renamed.get(name, name)
        for place in new.split():
            if hasattr(import_module(place), now):
                warnings.warn(
                    f"{old}.{name} is now {place}.{now}; the old place goes with ntkit {removed}.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                return getattr(import_module(place), now)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return __getattr__
