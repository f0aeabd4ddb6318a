"""The training data of a run as a pair of inputs and targets, in the order of the recorded numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from torch.utils.data import DataLoader, Dataset, IterableDataset

from ntkit.errors import BadTypeError, BadValueError
from ntkit.inputs import Batch, Inputs, Picked, batch_size, joined, picked_of, resolved
from ntkit.network import Network, as_inputs

Train: TypeAlias = tuple[Inputs, Inputs] | Dataset[Any] | DataLoader[Any]


def pair_of(train: object, inputs: Picked, targets: Picked) -> Any:
    """Return training data as ``(x, y)``, or what was given where it is neither a pair nor a dataset.

    A dataset is read in the order of its numbers, whatever order its loader shuffles it to.
    """
    if isinstance(train, (Dataset, DataLoader)):
        items = list(_in_order(train))
        if not items:
            raise BadValueError(f"`train` is an empty {type(train).__name__}; expected at least one sample.")
        if inputs is None and isinstance(items[0], (list, tuple)) and len(items[0]) == 2:
            inputs = 1 if targets in (0, -2) else 0
        x = joined([picked_of(item, "train", inputs) for item in items], "train x")
        targets = _rest(items[0], inputs) if targets is None else targets
        return x, joined([picked_of(item, "train", targets, "targets") for item in items], "train y")
    if not isinstance(train, (tuple, list)) or len(train) != 2:
        return train
    return resolved(train[0], "train x", inputs), resolved(train[1], "train y", targets)


def as_pair(train: object, net: Network) -> tuple[Batch, Batch]:
    """Return inputs and targets as tensors, checked: one target for each input."""
    if not isinstance(train, (tuple, list)) or len(train) != 2:
        raise BadValueError(
            f"`train` is of type {type(train).__name__}; it must be a pair (x, y) of inputs and targets, or "
            f"a Dataset or DataLoader of them."
        )
    x, y = as_inputs(train[0], net, "train x"), as_inputs(train[1], net, "train y")
    if batch_size(x) != batch_size(y):
        raise BadValueError(
            f"`train` has {batch_size(x)} inputs but {batch_size(y)} targets; give one for each."
        )
    return x, y


def _in_order(data: Dataset | DataLoader) -> DataLoader:
    """Return a loader of the samples in the order of their numbers."""
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=256)
    if isinstance(loader.dataset, IterableDataset):
        raise BadValueError(
            "`train` is an IterableDataset, whose samples have no numbers. Give a dataset with __getitem__."
        )
    if loader.batch_sampler is None:
        raise BadValueError("`train` has batch_size=None and makes no batches; give it a batch size.")
    size = loader.batch_size or 256
    return DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn)


def _rest(item: object, inputs: Picked) -> Picked:
    """Return the part of an item that does not go into the network, where there is one."""
    if inputs is None or callable(inputs) or not isinstance(item, (Mapping, Sequence)):
        raise BadTypeError(
            f"`train` gives items of type {type(item).__name__}, and inputs={inputs!r} leaves no targets. "
            f"Say with targets= what of them the loss takes: a place, a name, a list, or a function."
        )
    used = [inputs] if isinstance(inputs, (int, str)) else list(inputs)
    held = list(item) if isinstance(item, Mapping) else list(range(len(item)))
    rest = [key for key in held if key not in used and (isinstance(key, str) or key - len(held) not in used)]
    if len(rest) != 1:
        raise BadValueError(
            f"An item of `train` holds {held}, and inputs={inputs!r} leaves {rest}. Say with targets= which "
            f"of them the loss takes: a place, a name, a list, or a function."
        )
    return rest[0]
