"""A recorded step replayed: its batches, how they went forward, and the gradient that they gave."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointError

from ntkit.errors import NtkitError, PathMismatchError
from ntkit.inputs import Batch, take
from ntkit.training.folder.random_state import random_from, random_state
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment, Forward, Step, autocast
from ntkit.training.functional.flat_network import FlatNetwork, cast
from ntkit.training.functional.losses import BatchLoss, cast_loss, checked_loss
from ntkit.training.replay.draws import Draws


class ReplayedBatch(NamedTuple):
    """One batch of a step: its samples, inputs and targets, the factor of its loss, its forward pass."""

    batch: Tensor
    x: Batch
    y: Batch
    weight: float
    forward: Forward


class Replay:
    """Replays the batches and gradients of recorded steps, in a ``dtype`` and in that of the training.

    ``data`` is in the dtype of the training; so is what ``augment(x, y)`` is given.
    """

    def __init__(
        self,
        run: Run,
        model: nn.Module,
        data: tuple[Batch, Batch],
        loss: BatchLoss,
        augment: Augment | None = None,
        select: str | int | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.run, self.data, self.augment, self.dtype = run, data, augment, dtype
        self.net = FlatNetwork(model, run, dtype, select=select)
        same = run.dtype == dtype
        self.native = self.net if same else FlatNetwork(model, run, run.dtype, select=select)
        self.loss, self.loss_native = cast_loss(loss, dtype), cast_loss(loss, run.dtype)
        norm = nn.modules.batchnorm._BatchNorm
        self._norms = {name for name, m in self.net.module.named_modules() if isinstance(m, norm)}

    def parts(self, step: Step) -> Iterator[ReplayedBatch]:
        """Yield the batches of a step, their data in the dtype of the training."""
        first = 0
        for (size, weight), forward in zip(step.parts, step.forwards, strict=True):
            batch = step.batch[first : first + size]
            x, y = take(self.data[0], batch), take(self.data[1], batch)
            if self.augment is not None:
                with random_from(forward.announced, self.run.device):
                    x, y = self.augment(x, y)
            yield ReplayedBatch(batch, x, y, weight, forward)
            first += size

    def batches(self, steps: list[Step], dtype: torch.dtype | None = None) -> tuple[Any, Any]:
        """Return the inputs and labels of steps of equally large batches, ``[T, n, ...]`` in a dtype."""
        index = torch.stack([step.batch for step in steps])
        x, y = (cast(take(part, index), dtype or self.dtype) for part in self.data)
        return x, y

    def mixes(self, step: Step) -> bool:
        """Whether a step's network is not a function of one sample: batch norm, or random numbers."""
        return any(f.rng is not None or self._norms & set(f.modes) for f in step.forwards)

    def gradient(self, w: Tensor, k: int, step: Step, native: bool = False) -> Tensor:
        """Return the gradient of a step, ``[P]``, as an ordinary backward pass makes it, in float64."""
        net = self.native if native else self.net
        total = torch.zeros_like(w)
        with torch.enable_grad():
            for part in self.parts(step):
                leaf = w.detach().to(net.dtype).requires_grad_()
                _, value = self.forward(leaf, k, part, native)
                if not value.requires_grad:
                    raise NtkitError("The loss does not depend on the weights: was it given detached output?")
                try:
                    total += torch.autograd.grad(value, leaf)[0]  # exact: in float64
                except CheckpointError as error:
                    raise NtkitError(
                        "The network recomputes activations in its backward pass "
                        "(torch.utils.checkpoint), which torch does with the module's own weights only. "
                        "Switch that off for the account: it saves memory, and changes no number."
                    ) from error
        return total

    def alike(self, a: Step, b: Step) -> bool:
        """Whether the gradients of two steps can be made in one go."""
        same = len(a.batch) == len(b.batch) and a.forwards[0].modes == b.forwards[0].modes
        return same and self._simple and not (self.mixes(a) or self.mixes(b))

    @cached_property
    def _simple(self) -> bool:
        """Whether steps are only small products."""
        fit = self.net.batchable and not self.net.convolves
        return fit and self.augment is None and not self.run.changes_buffers

    def gradients(self, w: Tensor, first: int, steps: list[Step], native: bool = False) -> Tensor | None:
        """Return the gradients of steps that are alike, from `first` on, ``[T, P]``; None: one by one."""
        if not len(steps[0].batch):
            return None
        self.go_to(first, steps[0].forwards[0])
        net, loss = (self.native, self.loss_native) if native else (self.net, self.loss)
        x, y = self.batches(steps, net.dtype)
        with torch.enable_grad():
            leaf = w.detach().to(net.dtype).requires_grad_()
            total = net.losses(leaf, x, y, [step.loss(loss) for step in steps]).sum()
            try:
                return torch.autograd.grad(total, leaf)[0].double() if total.requires_grad else None
            except RuntimeError:  # a backward pass that runs the network again, which is not mapped any more
                return None

    def forward(self, w: Tensor, k: int, part: ReplayedBatch, native: bool = False) -> tuple[Tensor, Tensor]:
        """Return outputs, in the network's own shape, and loss of a batch at step k, as it went then."""
        outputs = self.outputs(w, k, part, native)
        if not native:
            return outputs, part.weight * checked_loss(self.loss, outputs, cast(part.y, self.dtype))
        with autocast(part.forward.autocast, self.run.device):
            return outputs, part.weight * checked_loss(self.loss_native, outputs, part.y)

    def outputs(self, w: Tensor | list[Tensor], k: int, part: ReplayedBatch, native: bool = False) -> Tensor:
        """Return the outputs of a batch at step k, in the network's own shape, as it went then.

        The weights are flat, or in their shapes and in the order of the run.
        """
        net = self.native if native else self.net
        self.go_to(k, part.forward)
        with self.surroundings(w, k, part, native):
            return net.raw(w, part.x if native else cast(part.x, self.dtype))

    @contextmanager
    def surroundings(
        self, w: Tensor | list[Tensor], k: int, part: ReplayedBatch, native: bool = False
    ) -> Iterator[None]:
        """Give one forward pass of a batch the random numbers and the autocast that it had."""
        forward = part.forward
        if forward.rng is None and (not native or forward.autocast is None):
            before = random_state(self.run.device)
            yield
            self._refuse_draws(k, before)
            return
        draws = Draws(self.run.device)
        with ExitStack() as stack:
            if forward.rng is not None:
                if native or self.native is self.net:
                    stack.enter_context(random_from(forward.rng, self.run.device))
                else:
                    with random_from(forward.rng, self.run.device), torch.no_grad(), draws.noted():
                        flat = torch.cat([t.reshape(-1) for t in w]) if isinstance(w, list) else w
                        self.native.raw(flat.to(self.native.dtype), part.x)
                    stack.enter_context(draws.repeated())
            if native:
                stack.enter_context(autocast(forward.autocast, self.run.device))
            before = random_state(self.run.device)
            yield
            if forward.rng is None:
                self._refuse_draws(k, before)

    def _refuse_draws(self, k: int, before: Tensor) -> None:
        """Refuse a network that drew random numbers since the state was another one."""
        if not torch.equal(before, random_state(self.run.device)):
            raise PathMismatchError(
                f"Step {k} of {self.run.folder}: the network draws random numbers (dropout, say), and "
                f"the recording saw none. Call the network between run.batch(indices) and the backward "
                f"pass, and give the same network to account."
            )

    def go_to(self, k: int, forward: Forward) -> None:
        """Put the networks in the modes and to the buffers of a forward pass of step k."""
        for net in {id(self.net): self.net, id(self.native): self.native}.values():
            net.set_modes(forward.modes)
            if self.run.changes_buffers:
                net.take_buffers({**self.run.buffers(k), **forward.buffers})

    def cotangents(self, w: Tensor, k: int, part: ReplayedBatch) -> Tensor:
        """Return c_n = d loss / d y_n of a batch, ``[n, o]``."""
        outputs, _ = self.forward(w, k, part)
        return self.cotangents_of(outputs, part)

    def cotangents_of(self, outputs: Tensor, part: ReplayedBatch) -> Tensor:
        """Return c_n = d loss / d y_n for outputs that are there, ``[n, o]``."""
        with torch.enable_grad():
            leaf = outputs.detach().requires_grad_()
            value = part.weight * checked_loss(self.loss, leaf, cast(part.y, self.dtype))
            c = torch.autograd.grad(value, leaf)[0]
        return c.reshape(pytree.tree_leaves(part.x)[0].shape[0], -1)
