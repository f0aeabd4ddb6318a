"""A user's module on loan for a call: attributes, buffers, weights, random states come back as they were."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from operator import is_
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.errors import NotPerSampleError

_CONTAINERS = {list, dict, set, OrderedDict}


_users: ContextVar[torch.device | None] = ContextVar("the user's default device", default=None)


@contextmanager
def no_default_device() -> Iterator[None]:
    """Let new tensors be on the CPU, those of the user's network excepted."""
    device = torch.empty(0).device
    if device.type == "cpu":
        yield
        return
    token = _users.set(device)
    try:
        with torch.device("cpu"):
            yield
    finally:
        _users.reset(token)


def users_device() -> AbstractContextManager[Any]:
    """Let new tensors be where the user's settings put them, while the user's network runs."""
    device = _users.get()
    return nullcontext() if device is None else torch.device(device)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Put back what a call of a module changes: attributes, what lists and dicts among them hold, buffers."""
    before, held, buffers, weights = [], [], [], []
    for path, m in module.named_modules():
        attributes = vars(m)
        before.append((attributes, attributes.copy()))
        held += [(v, v.copy() if v else None) for v in attributes.values() if type(v) in _CONTAINERS]
        for b in m._buffers.values():
            if b is not None and not b.is_inference():
                buffers.append((b, b._version, b.clone()))
        for key, p in m._parameters.items():
            if p is not None and not p.is_inference():
                weights.append((f"{path}.{key}".lstrip("."), p, p._version))
    written: str | None = None
    try:
        yield
    finally:
        written = next((name for name, p, version in weights if p._version != version), None)
        for now, attributes in before if written is None else ():  # else they belong to the new weights
            if not _alike(now, attributes):
                now.clear()
                now.update(attributes)
        for container, copied in held if written is None else ():
            if container if copied is None else not _alike(container, copied):
                container.clear()
                if copied is not None:
                    container.extend(copied) if isinstance(container, list) else container.update(copied)
        with torch.no_grad():
            for buffer, version, value in buffers if written is None else ():
                if buffer._version != version:
                    buffer.copy_(value)
    if written is not None:
        raise NotPerSampleError(
            f"The network writes into its parameter {written!r} when it is called: it is another one at each "
            f"call. Let it make a new tensor of it instead; if it does so at its first call only, call it "
            f"once before."
        )


_draws: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def may_draw(module: nn.Module | None) -> bool:
    """Return whether a network may draw from Python's or NumPy's state, as far as its calls have shown."""
    return module is not None and _draws.get(module, True)


@contextmanager
def noting_draws(module: nn.Module) -> Iterator[None]:
    """Note at the first call of a network whether it draws from Python's or NumPy's random state."""
    before = None if module in _draws else _random_states()
    try:
        yield
    finally:
        if before is not None:
            now = _random_states()
            same = now[1]["pos"] == before[1]["pos"] and np.array_equal(now[1]["key"], before[1]["key"])
            _draws[module] = not (same and now[0] == before[0])


def _random_states() -> tuple[Any, Any]:
    return random.getstate(), np.random.get_state(legacy=False)["state"]


def _alike(a: Any, b: Any) -> bool:
    """Return whether two containers hold the same objects, in the same order."""
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(map(is_, a.values(), b.values())) and list(a) == list(b)
    return all(map(is_, a, b))


@contextmanager
def lent(module: nn.Module | None, weights: Mapping[str, Tensor] | None) -> Iterator[None]:
    """Lend a module other values for its weights; the tensors themselves stay, for whoever knows them."""
    if weights is None or module is None:
        yield
        return
    own = {name: (p, p.data) for name, p in module.named_parameters()}
    try:
        for name, (p, _) in own.items():
            p.data = torch.view_as_complex(weights[name]) if p.is_complex() else weights[name]
        yield
    finally:
        for p, data in own.values():
            p.data = data
