"""What the optimizers of a run are set to: what is needed to train again, besides their steps."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.errors import NtkitError
from ntkit.files import Json
from ntkit.training.folder.optimizer_state import settings_of, state_of


class Settings:
    """Follows the settings of optimizers, if they are wanted; where no record can hold them, it has none."""

    def __init__(self, optimizers: tuple[torch.optim.Optimizer, ...], wanted: bool) -> None:
        self._optimizers = optimizers
        self._last: list[list[Json]] | None = None
        self._threads = 0
        self._held = wanted
        self._resumed = False

    def resumed(self) -> None:
        """Say that the coming step goes on from an earlier recording."""
        self._resumed = True

    def start(self) -> tuple[dict[str, Tensor], Json]:
        """Return the state that optimizers begin with, nothing if it is not of tensors and plain values."""
        if not self._held:
            return {}, {}
        try:
            tensors, values = state_of(self._optimizers)
        except NtkitError:
            self._held = False
            return {}, {}
        return tensors, {"state": values}

    def changed(self) -> Json:
        """Return the settings of the coming step and its threads, where they are others than before."""
        new: Json = {}
        if not self._held:
            return new
        if self._resumed and not any(o.state for o in self._optimizers):
            new["fresh"] = True
        self._resumed = False
        try:
            now = settings_of(self._optimizers)
        except NtkitError:
            self._held = False
        else:
            if now != self._last:
                new["settings"] = self._last = now
        if (count := torch.get_num_threads()) != self._threads:
            new["threads"] = self._threads = count
        return new
