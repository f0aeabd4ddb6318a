"""How the batches of recorded steps went through the network: modes, random numbers, precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.training.folder.random_state import random_state
from ntkit.training.folder.step import Forward
from ntkit.training.recording.stats import Stopwatch


class ForwardWatch:
    """Watches the forward passes of a module that gradients flow through.

    A batch is announced before its forward pass or behind it, but before its backward pass. Where the module
    itself is not called (a loop may call what it wraps), what was drawn since the batch was announced counts.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device,
        changed: Callable[[], dict[str, Tensor]],
        timed: Stopwatch,
    ) -> None:
        self._module, self._device, self._changed = module, device, changed
        self._began: Tensor | None = None
        self._announced: Tensor | None = None
        self._early: Forward | None = None  # a forward pass whose batch is not announced yet
        self._seen = self._aside = False  # by the announced batch; by the loop, which calls parts of it
        self._taken = True  # no batch is waiting for its backward pass
        self.last = Forward()
        apart: Any = torch.compiler.disable  # hooks are not part of a compiled network
        self._hooks = [
            module.register_forward_pre_hook(apart(timed(self._before))),
            module.register_forward_hook(apart(timed(self._after)), always_call=True),
        ]

    def __deepcopy__(self, memo: object) -> ForwardWatch:
        return self  # a copy of the module is not watched, but takes its hooks along

    def announce(self) -> Forward:
        """Say that a batch is about to come; the returned record is filled in by its forward pass."""
        early, self._early = None if self._aside else self._early, None
        self.last = early or Forward(modes=self._modes())
        self._seen, self._taken = early is not None, False
        self._announced = random_state(self._device)
        if self._aside and early is None:
            self.last.buffers = self._changed()
        return self.last

    def backward(self) -> None:
        """Say that the backward pass of the announced batch begins."""
        if not self._seen and not self._taken and self._announced is not None:
            self._aside = True
            if not torch.equal(self._announced, random_state(self._device)):
                self.last.rng = self._announced
        self._taken = True

    def close(self) -> None:
        """Stop watching."""
        for hook in self._hooks:
            hook.remove()

    def _before(self, module: nn.Module, _: Any) -> None:
        if module is not self._module:
            return
        self._began = None
        if torch.is_grad_enabled():
            self._began, self._buffers = random_state(self._device), self._changed()

    def _after(self, module: nn.Module, *_: Any) -> None:
        if module is not self._module or self._began is None or not torch.is_grad_enabled():
            return
        began, self._began, now = self._began, None, random_state(self._device)
        if self._taken:
            forward = self._early = Forward()
        else:
            forward, self._seen = self.last, True
        forward.modes, forward.buffers = self._modes(), self._buffers
        forward.rng = None if torch.equal(began, now) else began
        forward.announced = None
        if self._announced is not None and not self._taken and not torch.equal(self._announced, began):
            forward.announced = self._announced
        kind = self._device.type
        dtype = str(torch.get_autocast_dtype(kind)).removeprefix("torch.")
        forward.autocast = dtype if torch.is_autocast_enabled(kind) else None

    def _modes(self) -> tuple[str, ...]:
        return tuple(name for name, m in self._module.named_modules() if m.training)
