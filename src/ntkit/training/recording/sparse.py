"""Steps recorded without their weights: what is needed to replay them, and checkpoints in between."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ntkit.errors import NtkitError
from ntkit.files import Json
from ntkit.training.folder.optimizer_state import checksum, exact_factor, settings_of, state_of
from ntkit.training.folder.step import Part
from ntkit.training.folder.writer import RunWriter
from ntkit.training.recording.gradients import Gradients


class Checkpointing:
    """Writes weights and the state of optimizers at each m-th step, checksums at all.

    The gradients of a step come from its data; what was done to them (clipping, unscaling) is kept as the
    number that they were multiplied by, or else they are kept themselves.
    """

    def __init__(
        self, every: int, optimizers: tuple[torch.optim.Optimizer, ...], trained: Mapping[str, Tensor]
    ) -> None:
        self._every, self._optimizers, self._trained = every, optimizers, trained
        self._settings: list[list[Json]] | None = None
        self._threads = 0
        self._clear()

    def _clear(self) -> None:
        self._tensors: dict[str, Tensor] = {}
        self._scalars: Json = {"factors": {}, "ungraded": []}

    def start(self) -> tuple[dict[str, Tensor], Json]:
        """Return the state that optimizers begin with."""
        tensors, values = state_of(self._optimizers)
        return tensors, {"state": values}

    def prepare(self, optimizer: torch.optim.Optimizer, gradients: Gradients) -> None:
        """Note what an optimizer is about to use."""
        if getattr(optimizer, "grad_scale", None) is not None:
            raise NtkitError(
                "A fused optimizer that unscales gradients itself cannot be replayed; take every=1, or an "
                "optimizer that is not fused."
            )
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, p in self._trained.items():
            if id(p) not in ids:
                continue
            if p.grad is None:
                self._scalars["ungraded"].append(name)
                continue
            if gradients.is_untouched(name, p.grad):
                continue
            gradients.keep_copies()
            raw = gradients.raw(name)
            factor = None if raw is None else exact_factor(raw, p.grad)
            if factor is None:
                gradients.factor(name, p.grad.detach())  # refuses what is not a factor
                self._tensors[f"g/{name}"] = p.grad.detach().cpu().clone().contiguous()
            elif factor != 1.0:
                self._scalars["factors"][name] = factor
        if gradients.loss_scale != 1.0:
            self._scalars["loss_scale"] = gradients.loss_scale
        self._now = settings_of(self._optimizers)

    def step(self, writer: RunWriter, parts: list[Part], more: Json) -> None:
        """Write the step that was just made."""
        tensors, scalars = self._tensors, {k: v for k, v in self._scalars.items() if v}
        self._clear()
        scalars["crc"] = checksum(self._trained.values())
        if self._now != self._settings or writer.steps % self._every == 0:
            scalars["settings"] = self._settings = self._now
        if (count := torch.get_num_threads()) != self._threads or writer.steps % self._every == 0:
            scalars["threads"] = self._threads = count  # how sums are divided, and so rounded
        if (writer.steps + 1) % self._every == 0:
            state, scalars["state"] = state_of(self._optimizers)
            tensors |= state
            tensors |= {f"w/{name}": p.detach() for name, p in self._trained.items()}
        writer.bare_step(tensors, parts, {**scalars, **more})
