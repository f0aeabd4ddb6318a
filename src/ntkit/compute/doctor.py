"""What this machine is to ntkit: versions, devices, threads, memory, a compiler, and what is slow here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from ntkit.compute.plan import format_bytes
from ntkit.compute.threads import free_processors, threads
from ntkit.version import __version__

_MANY, _SLOW = 64, 5.0  # small products that are timed, and how many times one thread's time is told


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: its name, what was found, and what to do about it, if anything."""

    name: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Return what this machine has, and what would make ntkit faster here; it takes a second.

    >>> [finding.name for finding in examine()][:3]
    ['Python', 'ntkit', 'torch']
    """
    looks = (_versions, _devices, _threads, _small_operations, _products, _memory, _compiler)
    return [finding for look in looks for finding in look()]


def _versions() -> list[Finding]:
    found = [Finding("Python", platform.python_version()), Finding("ntkit", __version__)]
    for name in ("torch", "numpy", "scipy", "scikit-learn"):
        found.append(Finding(name, importlib.metadata.version(name)))
    return found


def _devices() -> list[Finding]:
    if not torch.cuda.is_available():
        return [Finding("devices", "CPU")]
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    advice = ""
    if torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32:
        advice = "torch is allowed TF32 (three digits); ntkit switches it off while it computes."
    return [Finding("devices", ", ".join(["CPU", *names]), advice)]


def _threads() -> list[Finding]:
    count, free, policy = torch.get_num_threads(), free_processors(), os.environ.get("OMP_WAIT_POLICY", "")
    advice = ""
    if free < count:
        advice = "other work runs: ntkit takes as many threads as processors are free."
        if policy.upper() != "PASSIVE":
            advice += (
                " With OMP_WAIT_POLICY=PASSIVE in the environment torch's threads sleep while they wait."
            )
    found = f"{count} of torch, {os.cpu_count()} processors, {max(0, free)} of them free"
    return [Finding("threads", found + (f", OMP_WAIT_POLICY={policy}" if policy else ""), advice)]


def _small_operations() -> list[Finding]:
    a = torch.randn(_MANY, _MANY)
    now = _timed(lambda: a @ a)
    with threads(1):
        alone = _timed(lambda: a @ a)
    advice = ""
    if now > _SLOW * alone:
        advice = "threads wait for each other: torch.set_num_threads(1) is faster for small networks here."
    return [Finding("a small operation", f"{1e6 * now:.0f} us, {1e6 * alone:.0f} us in one thread", advice)]


def _products() -> list[Finding]:
    a = torch.randn(1024, 1024)
    rate = 2 * 1024**3 / _timed(lambda: a @ a, 5)
    return [Finding("products of matrices", f"{rate / 1e9:.0f} GFLOP/s in float32")]


def _timed(work: Callable[[], object], count: int = 50) -> float:
    work()
    seconds = []
    for _ in range(count):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    return median(seconds)


def _memory() -> list[Finding]:
    try:
        pages, free, size = (os.sysconf(n) for n in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES", "SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not on Windows
        return []
    disk = shutil.disk_usage(os.environ.get("TMPDIR", "/tmp"))
    return [
        Finding("memory", f"{format_bytes(pages * size)}, {format_bytes(free * size)} unused"),
        Finding("temporary files", f"{format_bytes(disk.free)} free"),
    ]


def _compiler() -> list[Finding]:
    found = next((path for name in ("g++", "clang++", "cl") if (path := shutil.which(name))), None)
    if found is None:
        return [
            Finding("C++ compiler", "none", "limits of infinite width are computed without torch.compile.")
        ]
    return [Finding("C++ compiler", found)]
