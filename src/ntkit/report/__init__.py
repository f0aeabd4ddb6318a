"""Pages and plots: they draw results, they compute nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkit.report.account_page import explain as explain
    from ntkit.report.diagnosis_page import diagnosis as diagnosis

__all__ = ["diagnosis", "explain"]
_ROOMS = {"diagnosis": "diagnosis_page", "explain": "account_page"}


def __getattr__(name: str) -> Any:
    if name in _ROOMS:  # when it is used: pages and plots are heavy
        return getattr(import_module(f"ntkit.report.{_ROOMS[name]}"), name)
    raise AttributeError(f"module 'ntkit.report' has no attribute {name!r}")
