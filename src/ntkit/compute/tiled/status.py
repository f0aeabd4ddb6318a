"""What a folder of tiles holds, who works on it, and how long that will take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ntkit.compute.plan import format_bytes
from ntkit.compute.tiled.claims import builders

if TYPE_CHECKING:
    from ntkit.compute.tiled.kernel import TiledKernel

RECENT = 20  # tiles by whose times the speed is told


def status_of(tiled: TiledKernel) -> list[tuple[str, str]]:
    """Return names and values, for people."""
    progress, manifest = tiled.progress, tiled.manifest
    found = [
        ("matrix", repr(tiled)),
        ("kernel", manifest["kernel"].get("kernel", "?")),
        ("tiles", str(progress)),
        ("versions", ", ".join(f"{k} {v}" for k, v in manifest["versions"].items())),
    ]
    working = builders(tiled.store)
    found += [("builder", who) for who in working] or [("builder", "none at work")]
    left = progress.tiles - progress.stored
    if left and working and (rate := _rate(tiled)):
        size = format_bytes(left * progress.bytes / progress.tiles)
        found.append(("time left", f"about {_duration(left / rate)} for {left} tiles, {size}"))
    return found


def _rate(tiled: TiledKernel) -> float | None:
    """Return the tiles that the last few came in a second, None where that is not known."""
    times = sorted(tiled.store.times())[-RECENT:]
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    return (len(times) - 1) / (max(time.time(), times[-1]) - times[0])


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} seconds"
