"""Parts of a study that are computed once: a study that was killed goes on behind those that it finished."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

import ntkit
from ntkit.errors import NtkitError

T = TypeVar("T")
_ARRAY = "an array of numpy"


@dataclass
class Work:
    """What is kept of a run: its folder, the parts asked for, and the seconds that an earlier run spent."""

    folder: Path
    names: set[str] = field(default_factory=set)
    seconds: float = 0.0


_WORK: ContextVar[Work | None] = ContextVar("the study that runs", default=None)


def part(name: str, compute: Callable[[], T]) -> T:
    """Return what a part of the study computes, or what an earlier run that was killed computed for it.

    A part draws from its own seed, and gives numbers, texts, arrays and tensors, in lists, tuples and
    dictionaries. Its name is its own within the study. Outside of a run that leaves a folder it is computed.
    """
    work = _WORK.get()
    if work is None:
        return compute()
    assert name not in work.names, f"two parts are called {name!r}"
    work.names.add(name)
    file = work.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.part"
    if file.exists():
        kept, seconds = torch.load(file, weights_only=True)
        work.seconds += seconds
        return _unpacked(kept)
    begin = time.perf_counter()
    value = compute()
    torch.save((_packed(value), time.perf_counter() - begin), file.with_suffix(".new"))
    file.with_suffix(".new").rename(file)
    return value


@contextmanager
def scratch() -> Iterator[str]:
    """Give a folder for what a study needs only for a while; one that a killed run left is removed later."""
    work = _WORK.get()
    with tempfile.TemporaryDirectory(dir=None if work is None else work.folder) as folder:
        yield folder


@contextmanager
def resuming(target: Path, signature: str, building: Path) -> Iterator[Work]:
    """Keep the parts of a study beside its output folder until the block ends; what is of use is used.

    ``signature`` says what the parts depend on; the sources of ntkit are added to it. Parts of another
    signature, and folders that killed runs left, are removed, all but the one that is being built. A run that
    is stopped leaves its parts; one that is refused, or ends, leaves nothing.

    Raises
    ------
    NtkitError
        When another run is at work on the same output folder.
    """
    folder = target.parent / f".{target.name}.unfinished"
    folder.mkdir(exist_ok=True)
    lock = open(folder / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise NtkitError(
            f"Another run is at work on {str(target)!r}. Wait for it, or choose another folder."
        ) from error
    for left in target.parent.glob(f".{target.name}.part-*"):
        if left != building:
            shutil.rmtree(left, ignore_errors=True)
    _clear(folder, hashlib.sha256(f"{signature}\n{_sources()}".encode()).hexdigest())
    work = Work(folder)
    token = _WORK.set(work)
    try:
        with _terminated_as_interrupted():
            yield work
    except NtkitError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException:
        if not any(folder.glob("*.part")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        _WORK.reset(token)
        lock.close()


def _clear(folder: Path, signature: str) -> None:
    """Remove the scratch of killed runs, and parts of another signature."""
    for left in [each for each in folder.iterdir() if each.is_dir()]:
        shutil.rmtree(left, ignore_errors=True)
    said = folder / "signature"
    if not said.exists() or said.read_text() != signature:
        for left in (*folder.glob("*.part"), *folder.glob("*.new")):
            left.unlink()
        said.write_text(signature)


def _sources() -> str:
    """Return a digest of ntkit's sources: parts of other sources may be wrong."""
    digest = hashlib.sha256()
    root = Path(ntkit.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let a signal to terminate unwind the block, as an interrupt does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _packed(value: Any) -> Any:
    """Return a value without arrays and scalars of numpy, which ``torch.load`` does not read unasked."""
    if isinstance(value, np.ndarray):
        return {_ARRAY: torch.from_numpy(np.ascontiguousarray(value))}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: _packed(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_packed(v) for v in value)
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        return value[_ARRAY].numpy() if _ARRAY in value else {k: _unpacked(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_unpacked(v) for v in value)
    return value
