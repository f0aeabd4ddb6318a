"""Files and their contents: written in one go, hashed, read as safetensors."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

try:
    import fcntl
except ImportError:  # on Windows, which lets nobody lock so
    fcntl = None

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ntkit.errors import BadTypeError

Json = dict[str, Any]  # what a file of JSON holds
_SCRATCH, _LOCK = "ntkit-", ".lock"


def as_path(path: object) -> Path:
    """Return a path as a user gives it; refuse what is none."""
    if not isinstance(path, str | os.PathLike):
        raise BadTypeError(f"A path is {path!r}; expected a text or a pathlib.Path.")
    return Path(path)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment either the old or the whole new one is there."""
    part = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        with open(part, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as a npy file, in one go."""
    data = io.BytesIO()
    np.save(data, array, allow_pickle=False)
    write_atomically(path, data.getvalue())


def sealed(content: Json) -> bytes:
    """Return content as JSON with its own hash, by which `unsealed` knows that nobody changed it.

    >>> unsealed(sealed({"n": 3})), unsealed(sealed({"n": 3}).replace(b"3", b"4"))
    ({'n': 3}, None)
    """
    return (json.dumps({**content, "sha256": _seal(content)}, indent=1) + "\n").encode()


def unsealed(data: bytes) -> Json | None:
    """Return the content of sealed JSON, None where it was changed; a `ValueError` for no JSON."""
    content = json.loads(data)
    whole = isinstance(content, dict) and content.pop("sha256", None) == _seal(content)
    return content if whole else None


def _seal(content: Json) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_tensors(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors and the metadata of a safetensors file; a `ValueError` where it is none."""
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, header["__metadata__"]
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"not a file of tensors: {error}") from error


def hash_data(*data: object) -> str:
    """Return the sha256 of tensors (nested in tuples and dicts), with their dtypes and shapes."""
    digest = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(as_bytes(value).numpy().data)
        elif isinstance(value, dict):
            for key in sorted(value):
                digest.update(repr(key).encode())
                add(value[key])
        else:
            digest.update(f"tuple{len(value)}".encode())
            for item in value:
                add(item)

    add(data)
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, on the CPU: equal bytes are equal weights, NaN or not."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


class Scratch:
    """A folder in the place for temporary ones, removed with this object or by ``remove()``.

    What a killed process left there, of whatever size, is removed when the next one makes such a folder: a
    process holds a lock on a file in each of its own for as long as it lives.
    """

    def __init__(self, purpose: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=_SCRATCH + f"{purpose}-"))
        _remove_abandoned(self.path.parent)
        lock = _locked(self.path / _LOCK)
        self.remove = weakref.finalize(self, _removed, self.path, lock)


def _locked(path: Path) -> IO[bytes] | None:
    """Return a file that is locked as soon as it has its name, or None where that cannot be done."""
    if fcntl is None:
        return None
    new = path.with_name(f"{path.name}.new")
    file = new.open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # the file system knows no locks
        file.close()
        new.unlink()
        return None
    new.rename(path)
    return file


def _removed(path: Path, lock: IO[bytes] | None) -> None:
    shutil.rmtree(path, ignore_errors=True)
    if lock is not None:
        lock.close()


def _remove_abandoned(place: Path) -> None:
    """Remove the scratch folders of this user whose processes have ended."""
    if fcntl is None:
        return
    for path in place.glob(f"{_SCRATCH}*/{_LOCK}"):
        try:
            if path.stat().st_uid != os.getuid():
                continue
            with path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path.parent, ignore_errors=True)
        except OSError:  # a process that lives holds it, or another one was faster
            continue
