"""Pages and plots: they draw results, they compute nothing."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ntkit.report.account_page import explain as explain

__all__ = ["explain"]


def __getattr__(name: str) -> Any:
    if name == "explain":  # when it is used: pages and plots are heavy
        return import_module("ntkit.report.account_page").explain
    raise AttributeError(f"module 'ntkit.report' has no attribute {name!r}")
