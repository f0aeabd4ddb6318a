"""What backward passes left in the gradients, batch by batch, and what was done to it before the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ntkit.errors import NtkitError
from ntkit.training.folder.step import Part
from ntkit.training.recording.stats import Stopwatch


@runtime_checkable
class Scaler(Protocol):
    """What scales the loss of a loop: a ``torch.amp.GradScaler``."""

    def is_enabled(self) -> bool:
        """Whether it does."""
        ...

    def get_scale(self) -> float:
        """Return what the loss is multiplied by."""
        ...


class Gradients:
    """Follows the gradients of some parameters from the backward passes to the optimizer's step.

    A batch that is announced belongs to the next backward pass. One that finds gradients adds to them;
    one that finds none begins anew, and what came before it moved nothing (a step that was skipped).

    With ``copies`` gradients are copied as the backward passes left them; else only their versions are noted,
    until `keep_copies`.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        scaler: Scaler | None,
        timed: Stopwatch,
        copies: bool = True,
        backward: Callable[[], None] = lambda: None,
    ) -> None:
        self._copies = copies or scaler is not None  # which unscales without a trace
        self._backward = backward  # hears of each backward pass as it begins
        self._watch = timed(self._begins), timed(self._ends)
        self._parameters = parameters
        self._scaler = scaler
        self._hooks: dict[str, list[Any]] = {}
        self._coming: Part | None = None
        self._parts: list[Part] = []
        self._versions: dict[str, tuple[int, int]] = {}
        self._raw: dict[str, Tensor] = {}  # the sum that the backward passes made
        self._left: set[str] = set()  # by backward passes since the last step
        self._seen: set[str] = set()  # by the present backward pass
        self._loss_scale = 1.0
        self._stepped = False
        self._trouble: str | None = None
        self.follow()

    def follow(self) -> None:
        """Watch the parameters that have begun to take gradients."""
        begins, ends = self._watch
        for name, p in self._parameters.items():
            if p.requires_grad and name not in self._hooks:
                self._hooks[name] = [
                    p.register_hook(lambda _, name=name: begins(name)),
                    p.register_post_accumulate_grad_hook(lambda p, name=name: ends(name, p)),
                ]

    def close(self) -> None:
        """Stop watching."""
        for hooks in self._hooks.values():
            for hook in hooks:
                hook.remove()

    def announce(self, part: Part) -> None:
        """Say which batch the next backward pass is of."""
        self.follow()
        self._claim()
        self._coming = part

    def _claim(self) -> None:
        if self._coming is not None:
            self._parts.append(self._coming)
            self._coming = None

    def _begins(self, name: str) -> None:
        if self._coming is None and self._seen and name not in self._seen:  # the same backward pass goes on
            self._seen.add(name)
            return
        self._seen = {name}
        self._backward()
        scale = self._scale()
        grads = {n: p.grad for n, p in self._parameters.items() if p.grad is not None}
        held = {n: g for n, g in grads.items() if g.layout != torch.strided or g.any()}
        if not held:  # a second look at a batch, without a word, replaces the first
            self._parts = [] if self._coming is not None else self._parts[-1:]
            self._left, self._trouble = set(), None
        elif self._stepped:
            self._trouble = "has gradients left from the step before: call optimizer.zero_grad() after a step"
        elif scale != self._loss_scale:
            self._trouble = (
                "adds up gradients of different loss scales; call scaler.update() after steps only"
            )
        elif any(n in self._left and self._changed(n, g) for n, g in held.items()):
            self._trouble = (
                "has gradients that were changed between two backward passes that add up; clip and unscale "
                "them after the last one"
            )
        self._stepped, self._loss_scale = False, scale
        self._claim()

    def _scale(self) -> float:
        if self._scaler is None or not self._scaler.is_enabled():
            return 1.0
        return float(self._scaler.get_scale())

    def _ends(self, name: str, p: Tensor) -> None:
        if p.grad is None or p.grad.layout != torch.strided:  # None: taken by an optimizer in this pass
            return
        if self._copies:
            copy = self._raw.get(name)
            if copy is None or copy.shape != p.grad.shape:
                self._raw[name] = p.grad.detach().clone()
            else:
                copy.copy_(p.grad)
        self._left.add(name)
        self._versions[name] = (id(p.grad), p.grad._version)

    def _changed(self, name: str, gradient: Tensor) -> bool:
        if name in self._raw:
            return not torch.equal(gradient, self._raw[name])
        return self._versions[name] != (id(gradient), gradient._version)

    def keep_copies(self) -> None:
        """Copy gradients from the next backward pass on: somebody changes them before steps."""
        self._copies = True

    def is_untouched(self, name: str, gradient: Tensor) -> bool:
        """Whether nothing was done to a gradient since the backward pass (but through ``.data``).

        A GradScaler unscales without a trace, so with one the answer is no.
        """
        same = name in self._left and self._versions[name] == (id(gradient), gradient._version)
        return self._scaler is None and same

    def parts(self) -> list[Part]:
        """Return the batches whose gradients the coming step uses."""
        if self._trouble is not None:
            raise NtkitError(f"The coming step {self._trouble}.")
        return self._parts + ([self._coming] if self._coming is not None else [])

    def factor(self, name: str, gradient: Tensor) -> float | Tensor:
        """Return S = the gradient that the optimizer uses / the one that the loss, unscaled, has."""
        raw = self.raw(name)
        if raw is None:
            return 1.0
        if torch.equal(gradient, raw) or not torch.isfinite(raw).all():
            return self._loss_scale
        eps, tiny = torch.finfo(raw.dtype).eps, torch.finfo(raw.dtype).tiny
        used, wide = gradient.double(), raw.double() / self._loss_scale
        ratio = torch.where(wide == 0, 1.0, used / wide)
        one = float(ratio.flatten()[wide.abs().argmax()])
        if ((used - one * wide).abs() <= 4 * eps * used.abs() + tiny).all():
            return one
        if (used[wide == 0] != 0).any() or not ((ratio >= 0) & (ratio <= 1 + 8 * eps)).all():
            raise NtkitError(
                f"The gradient of {name!r} was changed after the backward pass, by no factor from 0 to 1: "
                f"clipping by norm or by value can be recorded, noise or centering cannot. If a GradScaler "
                f"scales the loss, give it: ntkit.record(..., scaler=scaler)."
            )
        return ratio

    @property
    def loss_scale(self) -> float:
        """What the loss of the coming step was multiplied by."""
        return self._loss_scale

    def raw(self, name: str) -> Tensor | None:
        """Return the gradient as the backward passes left it, None if none did, or it is not known."""
        return self._raw.get(name) if name in self._left else None

    def made(self) -> None:
        """Say that the step was made."""
        self._parts, self._coming, self._left, self._seen = [], None, set(), set()
        self._stepped = True
