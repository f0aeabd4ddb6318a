"""Samples of which a few are read at a time: tensors, memory maps, zarr arrays, datasets."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ntkit.compute.plan import chunks
from ntkit.errors import BadTypeError, BadValueError
from ntkit.files import hash_data
from ntkit.inputs import Inputs, Picked, collected
from ntkit.kernel import Kernel

_OF_NUMPY = {getattr(torch, name) for name in "float32 float64 int64 int32 int16 int8 uint8 bool".split()}
READ = 2**24  # bytes that are hashed at a time


class Rows(Protocol):
    """What has a shape, and rows by slices: an array of NumPy, torch, zarr or h5py, a memory map."""

    @property
    def shape(self) -> Sequence[int]:
        """The number of rows, and the shape of one."""
        ...

    def __getitem__(self, rows: slice, /) -> object: ...


def picked_by(kernel: Kernel) -> Picked:
    """Return what of an item of a dataset goes into a kernel, or into the first kernel in it that says so."""
    picked: Picked = getattr(kernel, "inputs", None)
    inner = (v for v in kernel.get_params(deep=False).values() if isinstance(v, Kernel))
    return (
        picked if picked is not None else next(filter(lambda p: p is not None, map(picked_by, inner)), None)
    )


class Samples:
    """Inputs of a kernel, of which only those of a tile are read.

    ``picked`` is what of an item of a dataset goes into the kernel.
    """

    def __init__(self, x: Inputs, name: str, picked: Picked = None) -> None:
        if isinstance(x, DataLoader):
            raise BadTypeError(
                f"{name} is a DataLoader, whose order may be another each time; give its dataset."
            )
        if isinstance(x, IterableDataset):
            raise BadTypeError(f"{name} is an IterableDataset, which has no rows by number; give a Dataset.")
        self.name, self.picked = name, picked
        self.x = x if isinstance(x, Dataset) else pytree.tree_map(self._leaf, x, is_leaf=_is_leaf)
        sizes = (
            {len(x)}  # pyright: ignore[reportArgumentType]
            if isinstance(x, Dataset)
            else {leaf.shape[0] for leaf in pytree.tree_leaves(self.x)}
        )
        if len(sizes) != 1:
            raise BadValueError(f"The inputs in {name} disagree in their number of samples: {sorted(sizes)}.")
        (self.n,) = sizes
        if self.n == 0:
            raise BadValueError(f"{name} has no samples; give at least one.")

    def __getstate__(self) -> dict[str, object]:
        import cloudpickle

        sent = pytree.tree_map(_sent, self.x, is_leaf=_is_leaf)
        return {**vars(self), "x": sent, "picked": cloudpickle.dumps(self.picked)}

    def __setstate__(self, state: dict[str, object]) -> None:
        import cloudpickle

        vars(self).update(state)
        self.picked = cloudpickle.loads(state["picked"])  # pyright: ignore[reportArgumentType]
        self.x = pytree.tree_map(_received, self.x, is_leaf=_is_leaf)

    def __len__(self) -> int:
        return self.n

    def take(self, rows: slice) -> Inputs:
        """Return some samples as a kernel takes them."""
        if isinstance(self.x, Dataset):
            return Subset(self.x, range(*rows.indices(self.n)))  # of which the kernel picks its own
        return pytree.tree_map(lambda leaf: _values(leaf[rows]), self.x)

    def hash(self) -> str:
        """Return the sha256 of all samples, read a part at a time."""
        digest = hashlib.sha256()
        for part in self._parts():
            if isinstance(part, Dataset):
                part = collected(part, self.name, self.picked)
            for path, leaf in pytree.tree_flatten_with_path(part)[0]:
                tensor = leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf)
                digest.update(f"{pytree.keystr(path)}{hash_data(tensor)}".encode())
        return digest.hexdigest()

    def _parts(self) -> Iterator[Inputs]:
        if isinstance(self.x, Dataset):
            step = 256
        else:
            leaves = pytree.tree_leaves(self.x)
            row = sum(_values(leaf[:1]).nbytes for leaf in leaves)
            step = max(1, READ // max(1, row))
        for start in range(0, self.n, step):
            yield self.take(slice(start, min(self.n, start + step)))

    def _leaf(self, value: object) -> Rows:
        if isinstance(value, Tensor):
            value = value.detach()
        elif not (hasattr(value, "__getitem__") and hasattr(value, "shape") and hasattr(value, "dtype")):
            value = np.asarray(value)
        if len(value.shape) == 0:  # pyright: ignore[reportAttributeAccessIssue]
            raise BadTypeError(f"{self.name} holds a single number or object; expected samples, first axis.")
        return value  # pyright: ignore[reportReturnType]


class _AsTensor:
    """Rows of an array that processes share, as tensors."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.from_numpy(np.array(self.values[rows]))


class _Mapped:
    """An array in a file, which each process maps by itself."""

    def __init__(self, array: np.memmap) -> None:
        self.file, self.dtype, self.shape = array.filename, array.dtype, array.shape
        self.offset, self.order = array.offset, "C" if array.flags.c_contiguous else "F"

    def again(self) -> np.memmap:
        """Return the array."""
        return np.memmap(self.file, self.dtype, "r", self.offset, self.shape, self.order)  # pyright: ignore


def _sent(leaf: object) -> object:
    """Return inputs as they go to another process: arrays that it shares, a file that it maps, a pickle."""
    import cloudpickle

    if isinstance(leaf, np.memmap) and leaf.filename is not None and isinstance(leaf.base, mmap.mmap):
        return _Mapped(leaf)
    if isinstance(leaf, Tensor) and leaf.dtype in _OF_NUMPY:
        return _AsTensor(leaf.detach().cpu().numpy())
    return leaf if type(leaf) in (np.ndarray, _AsTensor) else cloudpickle.dumps(leaf)


def _received(leaf: object) -> object:
    import cloudpickle

    if isinstance(leaf, _Mapped):
        return leaf.again()
    return cloudpickle.loads(leaf) if isinstance(leaf, bytes) else leaf


def _is_leaf(value: object) -> bool:
    return not isinstance(value, Mapping | tuple)


def _values(part: object) -> np.ndarray | Tensor:
    """Return rows that were read as a tensor or an array that may be written to."""
    if isinstance(part, Tensor):
        return part
    array = np.asarray(part)
    return array if array.flags.writeable and type(part) is np.ndarray else np.array(array)


def tile_slices(n: int, tile: int) -> list[slice]:
    """Return the slices of tiles: all of the same size, but for the last.

    >>> tile_slices(5, 2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    return [slice(i, min(n, i + tile)) for i in range(0, n, tile)]


def even_tile(n: int, most: int) -> int:
    """Return the largest of even tiles of at most so many rows.

    >>> even_tile(60000, 4096)
    4000
    """
    return max(s.stop - s.start for s in chunks(n, most))
