"""Samples of which a few are read at a time: tensors, memory maps, zarr arrays, datasets."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset

from ntkit.compute.plan import chunks
from ntkit.errors import BadTypeError, BadValueError
from ntkit.files import hash_data
from ntkit.inputs import Inputs, Picked, collected, holds_tensors
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
        if isinstance(x, list) and holds_tensors(x):
            if not all(isinstance(part, Tensor) for part in x):
                raise BadTypeError(
                    f"{name} is a list of {', '.join(sorted({type(p).__name__ for p in x}))}: it may mean "
                    f"several inputs or several samples. Give a tuple of inputs, or stack the samples."
                )
            x = tuple(x)
        self.x = x if isinstance(x, Dataset) else pytree.tree_map(self._leaf, x, is_leaf=_is_leaf)
        if isinstance(x, Dataset):
            sizes = {len(x)}  # pyright: ignore[reportArgumentType]
        else:
            sizes = {leaf.shape[0] for leaf in pytree.tree_leaves(self.x)}
        if not sizes:
            raise BadTypeError(f"{name} holds no tensor; expected samples along a first axis.")
        if len(sizes) != 1:
            raise BadValueError(f"The inputs in {name} disagree in their number of samples: {sorted(sizes)}.")
        (self.n,) = sizes

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
        """Return the sha256 of all samples, read a part at a time; refuse values that are not finite."""
        digest = hashlib.sha256()
        for start, part in self._parts():
            if isinstance(part, Dataset):
                part = collected(part, self.name, self.picked)
            for path, leaf in pytree.tree_flatten_with_path(part)[0]:
                tensor = leaf if isinstance(leaf, Tensor) else torch.as_tensor(leaf)
                self._check_finite(tensor, start)
                digest.update(f"{pytree.keystr(path)}{hash_data(tensor)}".encode())
        return digest.hexdigest()

    def _check_finite(self, part: Tensor, start: int) -> None:
        if part.is_floating_point() and not part.sum().isfinite() and not part.isfinite().all():
            bad = (~part.isfinite()).reshape(len(part), -1).any(1).nonzero().flatten() + start
            raise BadValueError(
                f"{self.name} holds NaN or infinite values in sample(s) {bad.tolist()[:10]}; clean or "
                f"drop them."
            )

    def _parts(self) -> Iterator[tuple[int, Inputs]]:
        if isinstance(self.x, Dataset):
            step = 256
        else:
            leaves = pytree.tree_leaves(self.x)
            row = sum(_values(leaf[:1]).nbytes for leaf in leaves)
            step = max(1, READ // max(1, row))
        for start in range(0, self.n, step):
            yield start, self.take(slice(start, min(self.n, start + step)))

    def _leaf(self, value: object) -> Rows:
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_nested:
                raise BadValueError(f"{self.name} is a {value.layout} tensor; give a dense one, .to_dense().")
            array = value.detach()
        elif isinstance(value, np.ndarray) or (hasattr(value, "__getitem__") and hasattr(value, "dtype")):
            array = cast("np.ndarray", value)
        else:
            try:
                array = np.asarray(value)
            except ValueError as error:
                raise self._unreadable(value, str(error)) from error
        if isinstance(array, np.ndarray) and array.dtype.kind not in "biufc":
            raise self._unreadable(value, f"dtype {array.dtype}")
        if len(array.shape) == 0:
            raise BadValueError(f"{self.name} is a single number; its first axis must be the sample.")
        if array.shape[0] == 0:
            raise BadValueError(f"{self.name} is empty, of shape {tuple(array.shape)}; give a sample.")
        return array

    def _unreadable(self, value: object, why: str) -> BadTypeError:
        return BadTypeError(
            f"{self.name} is a {type(value).__name__}, {value!r:.60}, that is not read as numbers ({why}); "
            f"give a tensor, an array, an array of zarr, a tuple or dict of these, or a dataset."
        )


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
