"""The manifest of a run folder: what was recorded, written atomically and guarded by its own hash."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import RunFolderError

MANIFEST = "manifest.json"
FORMAT = 2


def write_manifest(folder: Path, content: dict[str, Any]) -> None:
    """Replace the manifest of a folder in one go."""
    sealed = {"format": FORMAT, **content}
    sealed["sha256"] = _seal(sealed)
    write_atomically(folder / MANIFEST, (json.dumps(sealed, indent=1) + "\n").encode())


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, checked."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} does not exist, so {folder} is no run folder. Give the folder that ntkit.record made."
        ) from error
    except (OSError, ValueError) as error:
        raise RunFolderError(
            f"{path} cannot be read as a manifest ({error}). Restore it from a copy."
        ) from error
    if not isinstance(content, dict) or content.pop("sha256", None) != _seal(content):
        raise RunFolderError(
            f"{path} was edited or damaged: it does not match its own hash. Restore it from a copy, or "
            f"record the run again."
        )
    if content["format"] != FORMAT:
        raise RunFolderError(
            f"{path} has format {content['format']}, this ntkit reads {FORMAT}. Use the version of ntkit "
            f"that wrote it ({content.get('ntkit')})."
        )
    return content


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that at any moment either the old or the whole new one is there."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def hash_data(*data: Any) -> str:
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


def _seal(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
