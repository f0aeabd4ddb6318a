"""How the batches of recorded steps went through the network: modes, random numbers, precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.training.noise import random_state

Augment = Callable[[Any, Any], tuple[Any, Any]]


@dataclass
class Forward:
    """One forward pass of a batch: what its outputs depended on, besides weights, buffers and inputs.

    ``rng`` is the state of the generators as it began, if it drew random numbers; ``announced`` the state
    when the batch was announced, if numbers were drawn in between; ``autocast`` the dtype, if it was on;
    ``modes`` the names of the submodules in training mode.
    """

    rng: Tensor | None = None
    announced: Tensor | None = None
    autocast: str | None = None
    modes: tuple[str, ...] = ()


class ForwardWatch:
    """Watches the forward passes of a module that gradients flow through."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self._module, self._device = module, device
        self._began: Tensor | None = None
        self._announced: Tensor | None = None
        self.last = Forward()
        self._hooks = [
            module.register_forward_pre_hook(self._before),
            module.register_forward_hook(self._after, always_call=True),
        ]

    def announce(self) -> Forward:
        """Say that a batch is about to come; the returned record is filled in by its forward pass."""
        self._announced = random_state(self._device)
        self.last = Forward(modes=self._modes())
        return self.last

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, *_: Any) -> None:
        self._began = random_state(self._device) if torch.is_grad_enabled() else None

    def _after(self, *_: Any) -> None:
        if self._began is None or not torch.is_grad_enabled():
            return
        began, self._began, now = self._began, None, random_state(self._device)
        forward = self.last
        forward.modes = self._modes()
        forward.rng = None if torch.equal(began, now) else began
        if self._announced is not None and not torch.equal(self._announced, began):
            forward.announced = self._announced
        kind = self._device.type
        forward.autocast = (
            str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
            if torch.is_autocast_enabled(kind)
            else None
        )

    def _modes(self) -> tuple[str, ...]:
        return tuple(name for name, m in self._module.named_modules() if m.training)


@contextmanager
def autocast(dtype: str | None, device: torch.device | str) -> Iterator[None]:
    """Compute in mixed precision, if a dtype is given."""
    if dtype is None:
        yield
        return
    with torch.autocast(torch.device(device).type, getattr(torch, dtype), cache_enabled=False):
        yield
