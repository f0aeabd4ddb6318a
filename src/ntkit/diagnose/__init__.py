"""Is it lazy, does it extrapolate, which labels are wrong: questions asked of kernels, networks and runs."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ntkit.diagnose.lazy_training import Drift as Drift
    from ntkit.diagnose.lazy_training import Laziness as Laziness
    from ntkit.diagnose.lazy_training import drift as drift
    from ntkit.diagnose.lazy_training import laziness as laziness
    from ntkit.diagnose.subject import RecordedRun as RecordedRun

_ROOMS = {
    "Drift": "lazy_training",
    "Laziness": "lazy_training",
    "RecordedRun": "subject",
    "drift": "lazy_training",
    "laziness": "lazy_training",
}

__all__ = sorted(_ROOMS)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name in _ROOMS:
        return getattr(import_module(f"ntkit.diagnose.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'ntkit.diagnose' has no attribute {name!r}")
