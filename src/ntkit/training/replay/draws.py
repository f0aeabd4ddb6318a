"""Random numbers of a forward pass, drawn once and reused in another precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ntkit.errors import PathMismatchError
from ntkit.training.folder.random_state import random_from, random_state

aten = torch.ops.aten
Drawn = list[tuple[Any, Any]]  # operations and what they gave


class Draws:
    """What the random operations of one forward pass gave, to be reused."""

    def __init__(self, device: torch.device | str) -> None:
        self.made: Drawn | None = None
        self._device = device

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep what random operations give."""
        with _Noting(self._device) as mode:
            yield
        self.made = mode.made

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Return it again, in the dtype of the present computation."""
        assert self.made is not None
        with _Repeating(self.made, self._device):
            yield


def _name(operation: Any) -> str:
    """Return what an operation is called, in place or not: transformed by torch.func, it may be the other."""
    return operation.overloadpacket.__name__.rstrip("_")


def _is_random(operation: object) -> bool:
    return torch.Tag.nondeterministic_seeded in getattr(operation, "tags", ())


class _Noting(TorchDispatchMode):
    def __init__(self, device: torch.device | str) -> None:
        super().__init__()
        self._device = device
        self.made: Drawn = []

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if not _is_random(func):
            return func(*args, **(kwargs or {}))
        before = random_state(self._device)
        result = func(*args, **(kwargs or {}))
        if not torch.equal(before, random_state(self._device)):  # attention without dropout does not
            copies = pytree.tree_map(lambda t: t.detach().clone() if isinstance(t, Tensor) else t, result)
            self.made.append((func, copies))
        return result


class _Repeating(TorchDispatchMode):
    def __init__(self, made: Drawn, device: torch.device | str) -> None:
        super().__init__()
        self._device = device
        self._coming = iter(made)

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if not _is_random(func):
            return func(*args, **kwargs)
        before = random_state(self._device)
        with random_from(before, self._device):
            tried = func(*args, **kwargs)
            if torch.equal(before, random_state(self._device)):
                return tried
        operation, result = next(self._coming, (None, None))
        if operation is None or result is None or _name(operation) != _name(func):
            raise PathMismatchError(
                f"The network draws other random numbers in float64 ({func}) than in the precision of the "
                f"training ({operation}); ntkit cannot repeat such a step. Train in float64 instead."
            )
        if func.overloadpacket is aten.native_dropout:
            mask = result[1]
            return args[0] * mask * (1 / (1 - args[1]) if args[1] < 1 else 0.0), mask
        if isinstance(result, Tensor) and func._schema.is_mutable:
            return args[0].copy_(result)
        if (
            isinstance(result, Tensor)
            and args
            and isinstance(args[0], Tensor)
            and kwargs.get("dtype") is None
        ):
            return result.to(args[0].dtype) if result.is_floating_point() else result
        return result
