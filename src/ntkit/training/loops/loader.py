"""Which samples the batches of a DataLoader are made of."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from ntkit.errors import BadTypeError, BadValueError, NtkitError

_SAME = (
    "num_workers",
    "collate_fn",
    "pin_memory",
    "timeout",
    "worker_init_fn",
    "multiprocessing_context",
    "generator",
    "prefetch_factor",
    "persistent_workers",
)


def indexed(loader: DataLoader) -> Indexed:
    """Return a loader that yields ``(indices, batch)``: what `record` needs to know, and the batch as it was.

    Shuffling, workers, collation and samplers are those of the loader; the indices ``[b]`` number the samples
    of its dataset.

    Raises
    ------
    NtkitError
        For a dataset without indices (``IterableDataset``), or a loader without batches.

    Examples
    --------
    >>> import torch, ntkit
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> x, y = torch.arange(6.0)[:, None], torch.arange(6)
    >>> loader = DataLoader(TensorDataset(x, y), batch_size=4, shuffle=True)
    >>> for index, (inputs, targets) in ntkit.indexed(loader):
    ...     assert torch.equal(inputs, x[index]) and torch.equal(targets, index)
    """
    return Indexed(loader)


class Indexed:
    """A DataLoader that yields ``(indices, batch)``; made by `indexed`."""

    def __init__(self, loader: DataLoader) -> None:
        refuse_unnumbered(loader)
        self._watched = _Watched(loader.batch_sampler)
        settings = {name: getattr(loader, name) for name in _SAME}
        self._loader = DataLoader(loader.dataset, batch_sampler=self._watched, **settings)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        self._watched.batches.clear()
        for batch in self._loader:  # batches come in the order of their indices, whatever the workers
            yield torch.tensor(self._watched.batches.popleft()), batch


class _Watched:
    """A batch sampler that remembers the batches it gave out."""

    def __init__(self, sampler: Any) -> None:
        self._sampler = sampler
        self.batches: deque[list[int]] = deque()

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._sampler:
            self.batches.append(list(batch))
            yield batch


class SamplerWatch:
    """The order in which the sampler of somebody else's DataLoader gave out its samples in this epoch.

    A trainer may read batches ahead; ``batch(i)`` is what the i-th batch of the epoch was made of.
    """

    def __init__(self, loader: Any) -> None:
        refuse_unnumbered(loader)
        batches = loader.batch_sampler
        if not isinstance(batches, BatchSampler) or not isinstance(batches.batch_size, int):
            raise BadValueError(
                f"The loader makes its batches by {type(batches).__name__}; ntkit watches torch's "
                f"BatchSampler on one process. Write your own loop with ntkit.indexed(loader), or train on "
                f"one process."
            )
        self._batches = batches
        self._order: list[int] = []
        self._sampler = batches.sampler
        batches.sampler = _Noted(self._sampler, self)  # type: ignore[assignment]

    def batch(self, i: int) -> Tensor:
        """Return the indices ``[b]`` of the i-th batch of the epoch."""
        size = self._batches.batch_size
        index = self._order[i * size : (i + 1) * size]
        if not index:
            raise NtkitError(
                f"Batch {i} of an epoch was drawn before ntkit could watch the sampler. Hand the loader "
                f"itself to the trainer's fit, or use num_workers=0."
            )
        return torch.tensor(index)

    def watches(self, loader: object) -> bool:
        """Whether these are the batches of a loader."""
        return getattr(loader, "batch_sampler", None) is self._batches

    def begin(self) -> list[int]:
        """Forget the epoch before; the list is to be filled with the samples of this one."""
        self._order = []
        return self._order

    def close(self) -> None:
        """Put the loader's own sampler back."""
        self._batches.sampler = self._sampler


class _Noted:
    """A sampler that notes what it gives out; else it is the sampler that it stands for."""

    def __init__(self, sampler: Any, watch: SamplerWatch) -> None:
        self._sampler, self._watch = sampler, watch

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._sampler, name)

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[int]:
        order = self._watch.begin()
        for index in self._sampler:
            order.append(int(index))
            yield index


def refuse_unnumbered(loader: object) -> None:
    """Refuse a loader whose samples have no numbers, or that makes no batches."""
    if not isinstance(loader, DataLoader):
        raise BadTypeError(f"Expected a torch DataLoader, got {type(loader).__name__}.")
    if isinstance(loader.dataset, IterableDataset):
        raise BadValueError(
            "The loader's dataset is an IterableDataset, whose samples have no numbers. Give a dataset with "
            "__getitem__."
        )
    if loader.batch_sampler is None:
        raise BadValueError("The loader has batch_size=None and makes no batches; give it a batch size.")
