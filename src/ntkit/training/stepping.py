"""A step of the optimizer as it is made: the coefficients of every parameter, read off before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ntkit.training.gradients import Gradients
from ntkit.training.optimizers import Coefficients, Description, Made


class Stepping:
    """Reads an optimizer's steps for the parameters of some names."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, description: Description, trained: Mapping[str, Tensor]
    ) -> None:
        self._optimizer, self._description, self._trained = optimizer, description, trained
        self._names = {id(p): name for name, p in trained.items()}

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum of those parameters that have one now."""
        buffers = {name: self._state(p).get(self._description.buffer) for name, p in self._trained.items()}
        return {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def before(self, gradients: Gradients) -> None:
        """Note what the optimizer is about to use, and what it will overwrite."""
        states = {name: self._state(p) for name, p in self._trained.items()}
        self._fresh = {name: all(v is None for v in state.values()) for name, state in states.items()}
        scale = getattr(self._optimizer, "grad_scale", None)  # set by a GradScaler for fused optimizers
        self._given = {
            name: p.grad.detach() / scale if scale is not None else p.grad.detach().clone()
            for name, p in self._trained.items()
            if p.grad is not None
        }
        self._factors = {name: gradients.factor(name, g) for name, g in self._given.items()}
        self._noted = {
            name: {k: state[k].detach().clone() for k in self._description.before if k in state}
            for name, state in states.items()
        }

    def after(self, weight: Callable[[str], Tensor]) -> dict[str, Coefficients]:
        """Return the coefficients of the step by parameter; ``weight`` gives those before it."""
        made = {}
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                name = self._names[id(p)]
                if name in self._given:
                    made[name] = self._coefficients(name, group, self._state(p), weight(name))
        return made

    def _coefficients(
        self, name: str, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> Coefficients:
        made = Made(group, state, self._fresh[name], self._noted[name], weight, self._given[name])
        coefficients = self._description.of(made, name)
        return replace(coefficients, scale=coefficients.scale * self._factors[name])

    def _state(self, p: Tensor) -> Mapping[Any, Any]:
        state: Mapping[Any, Any] = self._optimizer.state
        return state.get(p, {})
