"""A run of checkpoints: the steps between two of them are replayed, bit for bit, when they are asked for."""

from __future__ import annotations

import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ntkit.compute.threads import threads
from ntkit.errors import BadValueError, PathMismatchError
from ntkit.files import Scratch
from ntkit.inputs import Batch, take
from ntkit.network import copy_of, selected
from ntkit.training.folder.optimizer_state import checksum, rebuilt, set_settings, set_state
from ntkit.training.folder.random_state import set_random_state
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Augment, Forward, Step, autocast
from ntkit.training.functional.losses import BatchLoss, checked_loss
from ntkit.training.recording.recording import Recording

_HELD = 2  # segments that are on the disk at the same time, and open, at least; more
_PART = 0.5  # up to this part of what is free there: each is made once then,
_OPEN = 2**20  # and open while a record is of at most so many bytes, as an open one holds some; else one is


class _Scale:
    """Says what a GradScaler said."""

    scale = 1.0

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return self.scale


class CheckpointedRun(Run):
    """A run that holds its weights at every m-th step; all others are replayed by training from there.

    Data are those of the run, in its dtype. Each step is checked against the checksum of the recorded one.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        model: nn.Module,
        loss: BatchLoss,
        data: tuple[Batch, Batch],
        augment: Augment | None,
        select: str | int | None = None,
    ) -> None:
        super().__init__(folder)
        self._given = model, loss, data, augment, select
        self._segments: OrderedDict[int, int] = OrderedDict()  # bytes on the disk, by the first step
        self._opened: OrderedDict[int, Run] = OrderedDict()
        self._place = Scratch("replay")

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.folder, str(self.device), *self._given)

    def __exit__(self, *exception: object) -> None:
        for segment in self._opened.values():
            segment.close()
        self._place.remove()
        super().__exit__(*exception)

    def weights(self, k: int) -> Tensor:
        """Return the trained weights before step k (after the last one for k = steps), ``[P]``."""
        if k % self.every == 0:
            return self._flat(lambda name: self._record(k)[0][f"w/{name}"])
        first = k - k % self.every
        return self._segment(first).weights(k - first)

    def shaped_weights(self, k: int) -> list[Tensor]:
        """Return the same in their shapes."""
        parts = self.weights(k).split([shape.numel() for shape in self.trained.values()])
        return [part.view(shape) for part, shape in zip(parts, self.trained.values(), strict=True)]

    def step(self, k: int) -> Step:
        """Return step k, counted from 0."""
        first = k - k % self.every
        return self._segment(first).step(k - first)

    def _segment(self, first: int) -> Run:
        folder = self._place.path / str(first)
        if first not in self._segments:
            while len(self._segments) >= _HELD and not self._has_room():
                number, _ = self._segments.popitem(last=False)
                self._close(number)
                shutil.rmtree(self._place.path / str(number), ignore_errors=True)
            with torch.random.fork_rng(), torch.enable_grad():
                self._make(first, min(first + self.every, self.steps), folder)
            self._segments[first] = sum(file.stat().st_size for file in folder.iterdir())
        self._segments.move_to_end(first)
        if first not in self._opened:
            while self._opened and self._segments[first] > _OPEN * self.every:
                self._close(next(iter(self._opened)))
            self._opened[first] = Run(folder)
        self._opened.move_to_end(first)
        segment = self._opened[first]
        segment.device = self.device
        return segment

    def _close(self, first: int) -> None:
        if first in self._opened:
            self._opened.pop(first).close()

    def _has_room(self) -> bool:
        """Whether another segment fits on the disk, and leaves much of it free."""
        held = sum(self._segments.values())
        free = shutil.disk_usage(self._place.path).free
        return held + held / len(self._segments) <= _PART * (free + held)

    def _make(self, first: int, last: int, folder: Path) -> None:
        """Train again from a checkpoint on, and record it."""
        tensors, scalars = self._record(first)
        module = copy_of(self._given[0])
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, p in parameters.items():
                p.copy_((tensors if name in self.trained else self.start)[f"w/{name}"])
                p.requires_grad_(name in self.trained)
                p.grad = None
        optimizers = rebuilt(self.manifest["optimizers"], self._record(first + 1)[1]["settings"], parameters)
        set_state(optimizers, tensors, scalars.get("state", {}))
        self._set_buffers(module, self.buffers(first))
        scale = _Scale()
        recording = Recording(folder, module, optimizers, None, scale, None)
        with threads(torch.get_num_threads()), recording:
            for k in range(first, last):
                tensors, scalars = self._record(k + 1)
                if "threads" in scalars:
                    torch.set_num_threads(scalars["threads"])
                if "settings" in scalars:
                    set_settings(optimizers, scalars["settings"])
                scale.scale = scalars.get("loss_scale", 1.0)
                for p in parameters.values():
                    p.grad = None
                self._pass(recording, module, k, scale.scale)
                with torch.no_grad():
                    self._change(parameters, tensors, scalars)
                    for optimizer in optimizers:
                        optimizer.step()
                digest = checksum(parameters[name] for name in self.trained)
                if digest != scalars["crc"]:
                    raise PathMismatchError(
                        f"Step {k} of {self.folder} cannot be replayed bit for bit from the checkpoint at "
                        f"step {first}. Check that model, `loss`, `train` and `augment` are those of the "
                        f"training, on the same kind of machine, with the same torch "
                        f"({self.manifest['torch']} then); where that is impossible, record each step "
                        f"(every=1)."
                    )

    def _pass(self, recording: Recording, module: nn.Module, k: int, scale: float) -> None:
        _, loss, data, augment, select = self._given
        batch, parts, forwards = self.passed(k)
        begin = 0
        for (size, weight), forward in zip(parts, forwards, strict=True):
            index = batch[begin : begin + size]
            begin += size
            self._go_to(module, forward)
            set_random_state(forward.announced if forward.announced is not None else forward.rng, self.device)
            recording.batch(index.cpu(), weight)
            x, y = take(data[0], index), take(data[1], index)
            if augment is not None:
                x, y = augment(x, y)
            set_random_state(forward.rng, self.device)
            args, kwargs = ((), x) if isinstance(x, dict) else (x if isinstance(x, tuple) else (x,), {})
            with autocast(forward.autocast, self.device):
                value = checked_loss(loss, selected(module(*args, **kwargs), select), y)
            value = value if weight == 1 else value * weight
            (value if scale == 1 else value * scale).backward()

    def _change(self, parameters: dict[str, nn.Parameter], tensors: dict, scalars: dict) -> None:
        """Do to the gradients what was done to them before the step: clipping, unscaling."""
        for name in self.trained:
            p = parameters[name]
            if name in scalars.get("ungraded", ()):
                p.grad = None
            elif f"g/{name}" in tensors:
                p.grad = tensors[f"g/{name}"].to(p.device)
            elif p.grad is not None and (factor := scalars.get("factors", {}).get(name, 1.0)) != 1.0:
                p.grad.mul_(factor)

    def _go_to(self, module: nn.Module, forward: Forward) -> None:
        for name, m in module.named_modules():
            m.training = name in forward.modes
        self._set_buffers(module, forward.buffers)

    def _set_buffers(self, module: nn.Module, buffers: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, buffer in module.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


def _reopened(folder: Path, device: str, *given: Any) -> CheckpointedRun:
    run = CheckpointedRun(folder, *given)
    run.device = device
    return run


def open_run(
    folder: str | os.PathLike[str],
    model: nn.Module,
    loss: BatchLoss,
    data: tuple[Batch, Batch],
    augment: Augment | None,
    select: str | int | None = None,
) -> Run:
    """Return a run, one that replays its steps if it holds checkpoints only."""
    run = Run(folder)
    if run.every == 1:
        return run
    run.close()
    if not isinstance(model, nn.Module):
        raise BadValueError(f"Expected the torch.nn.Module of the run, got {type(model).__name__}.")
    return CheckpointedRun(folder, model, loss, data, augment, select)
