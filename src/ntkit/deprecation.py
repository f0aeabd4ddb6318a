"""Old places of modules and names, which keep working for one minor version and warn."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REMOVED = "0.2"  # the version that knows the old places no more
MOVED = {
    "ntkit.infinite.checks": "ntkit.diagnose.definiteness",
    "ntkit.infinite.expressions": "ntkit.infinite.variables.vectors",
    "ntkit.infinite.rules": "ntkit.infinite.reading.rules",
    "ntkit.infinite.values": "ntkit.infinite.reading.values",
    "ntkit.training.path_machine": "ntkit.training.accounts.path_machine",
}
RENAMED = {"ntkit.infinite.rules": {"register_rule": "register_limit_rule"}}


class _OldPlaces(MetaPathFinder, Loader):
    """Finds a module at its old place: an empty one that passes on the names of the new one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = _passing(module.__name__, MOVED[module.__name__])


def _passing(old: str, new: str) -> Callable[[str], object]:
    def __getattr__(name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(f"module {old!r} has no attribute {name!r}")
        value = getattr(import_module(new), RENAMED.get(old, {}).get(name, name))
        warnings.warn(
            f"{old} is now {new}; the old place goes with ntkit {REMOVED}.", DeprecationWarning, stacklevel=2
        )
        return value

    return __getattr__


def keep_old_places() -> None:
    """Let modules be imported from their old places too."""
    if not any(isinstance(finder, _OldPlaces) for finder in sys.meta_path):
        sys.meta_path.append(_OldPlaces())
