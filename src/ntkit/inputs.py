"""Batches as users give them, and as tensors: any container, its flags apart, the first axis the sample."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from ntkit.errors import BadTypeError, BadValueError, nearest

# A batch as it is given: its first axis is the sample.
Inputs: TypeAlias = (
    Tensor
    | np.ndarray
    | Sequence["Inputs"]
    | Mapping[str, "Inputs"]
    | Dataset[Any]
    | DataLoader[Any]
    | float
    | int
    | "Bundle"
    | None
)
# What goes into the network of an item of a Dataset or a DataLoader: a place, a name, several, a function.
Picked: TypeAlias = int | str | Sequence[int] | Sequence[str] | Callable[[Any], Inputs] | None
T = TypeVar("T")
_FLAGS = (bool, int, float, str, bytes, type(None), torch.dtype, torch.device)


class Bundle:
    """A batch with parts that are not tensors (None, flags), or other containers: only tensors are leaves."""

    def __init__(self, tensors: Sequence[Tensor], template: Template) -> None:
        self.tensors, self.template = list(tensors), template

    @property
    def value(self) -> Any:
        """The batch as it was given, with these tensors."""
        return self.template.filled(self.tensors)


class Template:
    """What a bundle holds besides its tensors; equal where containers and flags are."""

    def __init__(self, value: object, leaf: Callable[[object], Tensor]) -> None:
        self.tensors: list[Tensor] = []
        self._spec: list[str] = []
        self._fill = self._read(value, leaf)

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """Return the batch with other tensors in the places of its own."""
        return self._fill(tensors)

    def _read(self, value: object, leaf: Callable[[object], Tensor]) -> Callable[[Sequence[Tensor]], Any]:
        if isinstance(value, _FLAGS):
            self._spec.append(repr(value))
            return lambda _: value
        name, parts = type(value).__name__, _parts(value)
        if parts is None:
            place = len(self.tensors)
            self.tensors.append(leaf(value))
            self._spec.append("*")
            return lambda tensors: tensors[place]
        self._spec.append(f"{name}(")
        fills = {}
        for key, part in parts.items():
            self._spec.append(f"{key}=")
            fills[key] = self._read(part, leaf)
        self._spec.append(")")
        return lambda tensors: _rebuilt(value, {key: fill(tensors) for key, fill in fills.items()})

    def __repr__(self) -> str:
        return " ".join(self._spec)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Template) and self._spec == other._spec

    def __hash__(self) -> int:
        return hash(tuple(self._spec))


Batch: TypeAlias = Tensor | tuple["Batch", ...] | dict[str, "Batch"] | Bundle  # the same, checked

pytree.register_pytree_node(
    Bundle,
    lambda bundle: (bundle.tensors, bundle.template),
    lambda tensors, template: Bundle(list(tensors), template),
    serialized_type_name="ntkit.inputs.Bundle",
)


def _parts(value: object) -> dict[Any, Any] | None:
    """Return the parts of a container, or None for what is a tensor, or to become one."""
    if isinstance(value, Mapping):
        return dict(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if isinstance(value, tuple) or (isinstance(value, list) and holds_tensors(value)):
        return dict(enumerate(value))
    return None


def holds_tensors(value: Sequence[Any]) -> bool:
    """Return whether a list holds tensors, arrays or containers of them, and not only numbers."""
    for part in value:
        if isinstance(part, (list, tuple)):
            if holds_tensors(part):
                return True
        elif isinstance(part, (Tensor, Mapping)) or (isinstance(part, np.ndarray) and part.ndim):
            return True
    return False


def _rebuilt(value: object, parts: dict[Any, Any]) -> Any:
    """Return a container of the same kind with other parts."""
    if isinstance(value, dict) and type(value) is dict:
        return parts
    if isinstance(value, Mapping):
        try:
            new = copy.copy(value)
            for key, part in parts.items():
                new[key] = part  # pyright: ignore[reportIndexIssue]
            return new
        except TypeError:  # a Mapping that cannot be written to
            return parts
    if isinstance(value, list):
        return list(parts.values())
    if isinstance(value, tuple):
        return type(value)(*parts.values()) if hasattr(value, "_fields") else tuple(parts.values())
    new = copy.copy(value)
    for key, part in parts.items():
        object.__setattr__(new, key, part)
    return new


def as_batch(
    x: object, dtypes: Sequence[torch.dtype], device: torch.device, what: str = "x", picked: Picked = None
) -> Batch:
    """Return inputs as tensors on a device, checked: a batch, finite, of one of the dtypes of the network.

    Arrays and lists of numbers are converted (floating ones to the first dtype); tensors of another
    floating dtype are refused, since a silent cast would hide a mistake. A list of tensors is a tuple, a
    Mapping a dict.
    """
    if isinstance(x, Bundle):
        x = x.value
    x = resolved(x, what, picked)

    def leaf(value: object) -> Tensor:
        return _checked(value, dtypes, device, what)

    if isinstance(x, list) and holds_tensors(x):
        if not all(isinstance(part, Tensor) for part in x):
            raise BadTypeError(
                f"{what} is a list of {', '.join(sorted({type(p).__name__ for p in x}))}: it may mean "
                f"several inputs of the network, or several samples. Give a tuple of inputs, or stack the "
                f"samples (torch.stack, numpy.stack)."
            )
        x = tuple(x)
    if isinstance(x, Tensor) or _parts(x) is None:
        if x is None:
            raise BadTypeError(f"{what} is None; expected a batch, whose first axis is the sample.")
        batch: Batch = leaf(x)
    elif isinstance(x, Mapping) and all(isinstance(v, Tensor) for v in x.values()):
        batch = {key: leaf(value) for key, value in x.items()}
    elif type(x) is tuple and all(isinstance(v, Tensor) for v in x):
        batch = tuple(leaf(value) for value in x)
    else:
        given = dict(x) if isinstance(x, Mapping) else x
        template = Template(given, leaf)
        batch = Bundle(template.tensors, template)
        template.tensors = []
    sizes = {t.shape[0] for t in pytree.tree_leaves(batch)}
    if not sizes:
        raise BadTypeError(f"{what} holds no tensor; expected a batch, whose first axis is the sample.")
    if len(sizes) != 1:
        raise BadValueError(
            f"The inputs in {what} disagree in their number of samples: {sorted(sizes)}; give all the same."
        )
    return batch


def _checked(value: object, dtypes: Sequence[torch.dtype], device: torch.device, what: str) -> Tensor:
    if isinstance(value, Tensor):
        t = value.detach()
        if t.is_inference() and not torch.is_inference_mode_enabled():
            t = t.clone()
        if t.is_floating_point() and t.dtype not in dtypes:
            raise BadValueError(
                f"{what} has dtype {t.dtype} but the network {', '.join(map(str, dtypes))}; convert one of "
                f"them, for instance {what}.to({dtypes[0]})."
            )
        if t.device != device:
            raise BadValueError(f"{what} is on {t.device}, the network on {device}; move one.")
        if t.layout is not torch.strided or t.is_nested:
            raise BadValueError(
                f"{what} is a {'nested' if t.is_nested else str(t.layout).removeprefix('torch.')} tensor; "
                f"expected a dense one, for instance {what}.to_dense()."
            )
    else:
        try:
            t = torch.as_tensor(np.array(value) if not np.isscalar(value) else value, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise BadTypeError(
                f"{what} is a {type(value).__name__} that torch cannot read as a tensor ({error}); give a "
                f"tensor, an array or a list of numbers."
            ) from error
        t = t.to(device, dtypes[0] if t.is_floating_point() else None)
    if t.ndim == 0:
        raise BadValueError(f"{what} is a single number; its first axis must be the sample.")
    if t.shape[0] == 0:
        raise BadValueError(f"{what} is an empty batch of shape {tuple(t.shape)}; give a sample.")
    if (t.is_floating_point() or t.is_complex()) and not t.sum().isfinite() and not t.isfinite().all():
        rows = (~torch.isfinite(t)).reshape(t.shape[0], -1).any(1).nonzero().flatten().tolist()
        raise BadValueError(
            f"{what} holds NaN or infinite values in sample(s) {rows[:10]}; clean or drop them."
        )
    return t


def resolved(x: object, what: str, picked: Picked) -> Any:
    """Return inputs with what goes into the network taken out of them, a dataset as one batch."""
    if isinstance(x, (DataLoader, Dataset)):
        return collected(x, what, picked)
    return picked(x) if callable(picked) else x


def collected(data: DataLoader | Dataset, what: str, picked: Picked) -> Any:
    """Return what goes into the network from all items of a Dataset or a DataLoader, as one batch."""
    loader = data if isinstance(data, DataLoader) else DataLoader(data, batch_size=256)
    parts = [picked_of(item, what, picked) for item in loader]
    if not parts:
        raise BadValueError(f"{what} is an empty {type(data).__name__}; expected at least one sample.")
    return joined(parts, what)


def joined(parts: list[Any], what: str) -> Any:
    """Return batches of the same structure as one."""
    leaves, structures = zip(*(pytree.tree_flatten(part) for part in parts), strict=True)
    if any(s != structures[0] for s in structures):
        raise BadValueError(f"The batches of {what} are not alike: {structures[0]}, and others.")
    try:
        whole = [torch.cat(p) if isinstance(p[0], Tensor) else p[0] for p in zip(*leaves, strict=True)]
    except RuntimeError as error:
        raise BadValueError(
            f"The batches of {what} have different shapes ({error}); collate all to one length (padding)."
        ) from error
    return pytree.tree_unflatten(whole, structures[0])


def picked_of(item: Any, what: str, picked: Picked, argument: str = "inputs") -> Any:
    """Return what goes into the network of an item of a Dataset or a DataLoader."""
    if callable(picked):
        return picked(item)
    if isinstance(picked, (int, str)):
        return _part_of(item, what, picked, argument)
    if picked is not None:
        if not isinstance(picked, Sequence):
            raise BadTypeError(
                f"{argument}={picked!r}; expected a place, a name, a list of them or a function."
            )
        parts = {key: _part_of(item, what, key, argument) for key in picked}
        return parts if all(isinstance(key, str) for key in parts) else tuple(parts.values())
    if isinstance(item, Tensor):
        return item
    if isinstance(item, (list, tuple)) and len(item) == 1:
        return item[0]
    held = (
        list(item) if isinstance(item, Mapping) else f"{len(item)} parts" if hasattr(item, "__len__") else "?"
    )
    raise BadValueError(
        f"An item of {what} is a {type(item).__name__} ({held}), of which some may be targets, which "
        f"must not reach the network. Say with inputs= what goes in: a place (0), a name, a list of them, or "
        f"a function."
    )


def _part_of(item: Any, what: str, key: int | str, argument: str) -> Any:
    try:
        return item[key]
    except (KeyError, IndexError, TypeError) as error:
        held = (
            list(item)
            if isinstance(item, Mapping)
            else f"{len(item)} parts"
            if hasattr(item, "__len__")
            else "?"
        )
        raise BadValueError(
            f"{argument}={key!r}: an item of {what} is a {type(item).__name__} that holds {held}. Name one "
            f"of its parts.{nearest(key, item if isinstance(item, Mapping) else ())}"
        ) from error


def batch_size(x: object) -> int:
    """Return the number of samples of a batch."""
    return pytree.tree_leaves(x)[0].shape[0]


def check_alike(x1: Batch, x2: Batch) -> None:
    """Refuse two batches that differ in more than their number of samples."""
    one, two = (pytree.tree_map(lambda t: (t.shape[1:], t.dtype), x) for x in (x1, x2))
    if pytree.tree_flatten(one) != pytree.tree_flatten(two):
        raise BadValueError(f"x1 and x2 must be alike except for their number of samples: {one} and {two}.")


def take(x: T, index: slice | int | list[int] | Tensor) -> T:
    """Return some samples of a batch, by a slice or a tensor of indices."""
    if isinstance(x, Tensor):
        return x[index]  # pyright: ignore[reportReturnType]
    return pytree.tree_map(lambda t: t[index], x)


def drawn_rows(x: Batch, count: int) -> list[int]:
    """Return the places of some samples, drawn from what the batch holds: the same for the same batch."""
    n = batch_size(x)
    if n <= count:
        return list(range(n))
    sums = [t.sum().item() for t in pytree.tree_leaves(x)]
    return sorted(random.Random(repr(sums)).sample(range(n), count))
