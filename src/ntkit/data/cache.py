"""Data sets fetched once from their public mirrors, checked by content, kept in a cache folder."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import urllib.request
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np
from platformdirs import user_cache_dir

from ntkit.errors import NtkitError
from ntkit.files import write_atomically

FOLDER = "NTKIT_DATA_DIR"
_TIMEOUT = 60  # seconds without an answer
_BAD = (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile, HTTPException)


@dataclass(frozen=True)
class DataSet:
    """Arrays, the sha256 of each one's bytes, and where to get them.

    A mirror is the address of an ``.npz`` with all arrays, or one gzipped IDX file for each array.
    """

    file: str
    sha256: Mapping[str, str]
    mirrors: tuple[str | Mapping[str, str], ...]


def folder() -> Path:
    """Return the cache folder: ``NTKIT_DATA_DIR`` if it is set, else the user's own."""
    return Path(os.environ.get(FOLDER) or user_cache_dir("ntkit")).expanduser()


def load(dataset: DataSet) -> dict[str, np.ndarray]:
    """Return the arrays of a data set, from the cache or else from the first mirror that has them whole.

    Raises
    ------
    NtkitError
        When the cached file is not this data set, or no mirror gave it.
    """
    path = folder() / dataset.file
    if path.exists():
        try:
            return _checked(dataset, _read_npz(path.read_bytes()))
        except _BAD as error:
            raise NtkitError(
                f"{path} is not the expected data set: {error}. Remove it, and it is fetched again; "
                f"or point {FOLDER} to a folder with the right one."
            ) from error
    tried = []
    for mirror in dataset.mirrors:
        try:
            arrays = _checked(dataset, _fetch(mirror))
        except _BAD as error:
            tried.append(f"{_name(mirror)} ({error or type(error).__name__})")
            continue
        _keep(path, arrays)
        return arrays
    places = "; ".join(tried) if tried else "none is known"
    raise NtkitError(
        f"{dataset.file} is not in {folder()} and no mirror gave it. Tried: {places}. Connect to the "
        f"internet, or put the file into a folder and set {FOLDER} to it."
    )


def _fetch(mirror: str | Mapping[str, str]) -> dict[str, np.ndarray]:
    if isinstance(mirror, str):
        return _read_npz(_download(mirror))
    return {name: _read_idx(gzip.decompress(_download(address))) for name, address in mirror.items()}


def _download(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=_TIMEOUT) as answer:
        return answer.read()


def _read_npz(content: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _read_idx(content: bytes) -> np.ndarray:
    """Return an IDX array: two zeros, the code of bytes (8), the number of axes, their sizes, the data."""
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError("no IDX file of bytes")
    axes = content[3]
    shape = tuple(np.frombuffer(content, ">u4", axes, offset=4).tolist())
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _checked(dataset: DataSet, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays of the data set, whose bytes must be the known ones (an archive's own vary)."""
    for name, expected in dataset.sha256.items():
        if name not in arrays:
            raise ValueError(f"it has no array {name!r}, only {sorted(arrays)}")
        found = hashlib.sha256(np.ascontiguousarray(arrays[name]).tobytes()).hexdigest()
        if found != expected:
            raise ValueError(f"the content of {name!r} has sha256 {found[:12]}…, expected {expected[:12]}…")
    return {name: arrays[name] for name in dataset.sha256}


def _keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write the file whole or not at all; a cache that cannot be written is no reason to stop."""
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, packed.getvalue())


def _name(mirror: str | Mapping[str, str]) -> str:
    return mirror if isinstance(mirror, str) else next(iter(mirror.values())).rsplit("/", 1)[0]
