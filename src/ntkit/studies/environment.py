"""What a result was made with: versions, and the memory that it took."""

from __future__ import annotations

import platform
import resource
import sys
from importlib.metadata import version

from ntkit import __version__

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "matplotlib")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    others = {name: version(name) for name in _PACKAGES}
    return {"ntkit": __version__, **others, "python": platform.python_version()}


def peak_memory() -> int:
    """Return the most memory that this process has held so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
