"""Old places of modules, which keep working for one version."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module


def moved(old: str, new: str, removed: str, **renamed: str) -> Callable[[str], object]:
    """Return the ``__getattr__`` of a module whose names live elsewhere: it warns and passes them on.

    ``renamed`` gives the new names of those that changed; ``removed`` is the version without the old place.
    """

    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(import_module(new), renamed.get(name, name))
        warnings.warn(
            f"{old}.{name} is now {new}.{renamed.get(name, name)}; the old place goes with ntkit {removed}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return value

    return __getattr__
