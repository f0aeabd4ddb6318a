"""The state of optimizers as tensors and plain values, and what of a step must be kept to replay it."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.errors import NtkitError
from ntkit.files import Json, as_bytes
from ntkit.training.optimizers.registry import known_optimizers


def state_of(optimizers: Iterable[torch.optim.Optimizer]) -> tuple[dict[str, Tensor], Json]:
    """Return the state of optimizers: tensors by name, and all other values."""
    tensors: dict[str, Tensor] = {}
    values: Json = {}
    for number, optimizer in enumerate(optimizers):
        for place, state in optimizer.state_dict()["state"].items():
            for key, value in state.items():
                name = f"state/{number}/{place}/{key}"
                if isinstance(value, Tensor):
                    tensors[name] = value.detach()
                else:
                    values[name] = _plain(value, f"its state {key!r}")
    return tensors, values


def settings_of(optimizers: Iterable[torch.optim.Optimizer]) -> list[list[Json]]:
    """Return the settings of all groups of optimizers, as values that JSON can hold."""
    return [
        [
            {k: _plain(v, f"its setting {k!r}") for k, v in group.items() if k != "params"}
            for group in o.param_groups
        ]
        for o in optimizers
    ]


def names_of(optimizers: Iterable[torch.optim.Optimizer], names: Mapping[int, str]) -> list[Json]:
    """Return the class of each optimizer and the names of the parameters in its groups."""
    about = []
    for o in optimizers:
        groups = [[names[id(p)] for p in group["params"]] for group in o.param_groups]
        about.append({"class": f"{type(o).__module__}.{type(o).__qualname__}", "groups": groups})
    return about


def rebuilt(
    described: list[Json], settings: list[list[Json]], parameters: Mapping[str, nn.Parameter]
) -> list[torch.optim.Optimizer]:
    """Return optimizers of the classes described, over the parameters of a copy of the network."""
    optimizers = []
    for about, groups in zip(described, settings, strict=True):
        kind = known_optimizers().get(about["class"])
        if kind is None:
            raise NtkitError(
                f"The run was made by {about['class']}, which is not known here: import its module, and "
                f"register it (ntkit.register_optimizer) before the account."
            )
        optimizer: torch.optim.Optimizer = object.__new__(kind)
        full = [
            {"params": [parameters[name] for name in own], **read_settings(group)}
            for own, group in zip(about["groups"], groups, strict=True)
        ]
        # the constructor's arguments are not known, and all that a step reads of them is in the groups
        defaults = {key: value for key, value in full[0].items() if key != "params"}
        torch.optim.Optimizer.__init__(optimizer, full, defaults)
        optimizers.append(optimizer)
    return optimizers


def set_settings(optimizers: Iterable[torch.optim.Optimizer], settings: list[list[Json]]) -> None:
    """Give all groups their settings."""
    for optimizer, groups in zip(optimizers, settings, strict=True):
        for group, given in zip(optimizer.param_groups, groups, strict=True):
            group.update(read_settings(given))


def set_state(
    optimizers: Iterable[torch.optim.Optimizer], tensors: Mapping[str, Tensor], values: Mapping[str, Any]
) -> None:
    """Give optimizers the state that `state_of` returned, bit for bit."""
    for number, optimizer in enumerate(optimizers):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.state.clear()
        for name, value in [*tensors.items(), *values.items()]:
            kind, of, place, key = (*name.split("/", 3), "", "", "")[:4]
            if kind != "state" or int(of) != number:
                continue
            p = parameters[int(place)]
            if isinstance(value, Tensor):
                value = value.clone() if key == "step" and value.ndim == 0 else value.to(p.device).clone()
            optimizer.state[p][key] = value


def checksum(tensors: Iterable[Tensor]) -> int:
    """Return a number that says whether tensors have the same bytes as others, at the speed of memory.

    Of the 64-bit words of each tensor the sum (mod 2^64) and the parity of each bit, and the crc32 of these.
    """
    crc = 0
    for tensor in tensors:
        data = as_bytes(tensor).numpy().reshape(-1)
        whole = len(data) - len(data) % 8
        words = np.ascontiguousarray(data[:whole]).view(np.uint64)
        ends = np.array([np.add.reduce(words), np.bitwise_xor.reduce(words)], np.uint64)
        crc = zlib.crc32(data[whole:].tobytes(), zlib.crc32(ends.tobytes(), crc))
    return crc


def exact_factor(raw: Tensor, used: Tensor) -> float | None:
    """Return the number whose product with a gradient is the one used, bit for bit; None if there is none."""
    if torch.equal(raw, used):
        return 1.0
    largest = int(raw.abs().argmax())
    one = raw.flatten()[largest]
    if one == 0 or not torch.isfinite(raw).all():
        return None
    guess = (used.flatten()[largest].double() / one.double()).to(raw.dtype)
    for candidate in _neighbors(guess):
        if torch.equal(raw * candidate, used):
            return float(candidate)
    return None


def _neighbors(value: Tensor) -> Iterable[Tensor]:
    yield value
    low, high = value, value
    for _ in range(4):
        low = torch.nextafter(low, torch.full_like(low, -torch.inf))
        high = torch.nextafter(high, torch.full_like(high, torch.inf))
        yield low
        yield high


def _plain(value: object, what: str) -> Any:
    if isinstance(value, Tensor) and value.numel() == 1:
        return {"tensor": value.item(), "dtype": str(value.dtype).removeprefix("torch."), "ndim": value.ndim}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)):
        return [_plain(v, what) for v in value]
    raise NtkitError(
        f"every= takes checkpoints of the optimizer, but {what} is a {type(value).__name__}. Record "
        f"each step (every=1)."
    )


def read_settings(group: Mapping[str, Any]) -> Json:
    """Return the settings of a group as its optimizer reads them, from those that JSON holds."""
    return {key: _value(value) for key, value in group.items()}


def _value(value: object) -> Any:
    if isinstance(value, dict):
        return torch.full([1] * value["ndim"], value["tensor"], dtype=getattr(torch, value["dtype"]))
    return tuple(_value(v) for v in value) if isinstance(value, list) else value
