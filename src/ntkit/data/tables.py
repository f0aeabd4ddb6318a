"""Samples from files: npy, npz, parquet, zarr, read where they lie as far as the format allows."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from ntkit.errors import BadValueError, NtkitError, nearest
from ntkit.inputs import Inputs

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")
X, Y = ("x", "X", "x_train", "X_train"), ("y", "Y", "y_train", "labels", "target")  # what names mean


def read_samples(source: str, option: str = "--data") -> Inputs:
    """Return the inputs of a file, ``data.npz`` or with the name of an array or column, ``data.npz:images``.

    Without a name: the only array, or the one called x; of a table all columns of numbers but the targets.
    npy and zarr are not read as a whole.
    """
    path, name = _split(source)
    if path.suffix == ".parquet":
        table = _table(path, option)
        columns = [name] if name else [c for c in table.columns if c not in Y]
        _known(columns, list(table.columns), source, option)
        return cast("np.ndarray", table[columns].to_numpy())
    return _array(path, name, X, source, option)


def read_targets(source: str, option: str = "--targets") -> np.ndarray:
    """Return the targets in a file: the array or column of that name, or the one called y."""
    path, name = _split(source)
    if path.suffix == ".parquet":
        table = _table(path, option)
        columns = [name] if name else [c for c in table.columns if c in Y][:1]
        _known(columns or [Y[0]], list(table.columns), source, option)
        return table[columns[0]].to_numpy()
    return np.asarray(_array(path, name, Y, source, option))


def _split(source: str) -> tuple[Path, str]:
    path, colon, name = source.rpartition(":")
    named = colon and path and "/" not in name and "\\" not in name
    return (Path(path), name) if named else (Path(source), "")


def _array(path: Path, name: str, usual: tuple[str, ...], source: str, option: str) -> np.ndarray:
    if not path.exists():
        raise BadValueError(f"{option} {source}: {path} does not exist.")
    if path.suffix == ".npy":
        return _read(lambda: np.load(path, mmap_mode="r", allow_pickle=False), path, option)
    if path.suffix == ".npz":
        with open(path, "rb") as file:
            arrays = _read(lambda: np.load(file, allow_pickle=False), path, option)
            return arrays[_chosen(list(arrays), name, usual, source, option)]
    if path.is_dir():
        import zarr
        import zarr.errors

        try:
            opened = zarr.open(path, mode="r")
        except (zarr.errors.BaseZarrError, FileNotFoundError, ValueError) as error:
            raise BadValueError(f"{option} {source} cannot be read as zarr: {error}") from error
        if isinstance(opened, zarr.Array):
            return cast("np.ndarray", opened)
        return cast("np.ndarray", opened[_chosen(list(opened.array_keys()), name, usual, source, option)])
    raise BadValueError(
        f"{option} {source}: expected a file .npy, .npz or .parquet, or a folder of zarr, not {path.name}."
    )


def _chosen(names: list[str], name: str, usual: tuple[str, ...], source: str, option: str) -> str:
    if name:
        _known([name], names, source, option)
        return name
    if len(names) == 1:
        return names[0]
    for one in usual:
        if one in names:
            return one
    raise BadValueError(f"{option} {source} holds {names}; name one of them, as in {source}:name.")


def _known(wanted: list[str], names: list[str], source: str, option: str) -> None:
    for name in wanted:
        if name not in names:
            raise BadValueError(f"{option} {source}: no {name!r} in it, but {names}.{nearest(name, names)}")


def _read(load: Callable[[], T], path: Path, option: str) -> T:
    try:
        return load()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadValueError(f"{option} {path} cannot be read: {error}") from error


def _table(path: Path, option: str) -> DataFrame:
    try:
        import pandas
    except ImportError as error:
        raise NtkitError("A parquet file needs pandas and pyarrow: pip install pandas pyarrow.") from error
    try:
        return pandas.read_parquet(path)
    except (ImportError, OSError, ValueError) as error:
        raise BadValueError(f"{option} {path} cannot be read: {error}") from error
