"""A step of the optimizer as it is made: the coefficients of every parameter, read off before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError
from ntkit.training.optimizers import Coefficients, Description, Made
from ntkit.training.recording.gradients import Gradients


class Stepping:
    """Reads an optimizer's steps of those of some parameters that are its own."""

    def __init__(
        self, optimizer: torch.optim.Optimizer, description: Description, trained: Mapping[str, Tensor]
    ) -> None:
        self._optimizer, self._description = optimizer, description
        ids = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._trained = {name: p for name, p in trained.items() if id(p) in ids}
        self._names = {id(p): name for name, p in self._trained.items()}

    def momentum(self) -> dict[str, Tensor]:
        """Return the momentum of those parameters that have one now."""
        buffers = {name: self._state(p).get(self._description.buffer) for name, p in self._trained.items()}
        return {name: buffer for name, buffer in buffers.items() if buffer is not None}

    def before(self, gradients: Gradients) -> None:
        """Note what the optimizer is about to use, and what it will overwrite."""
        states = {name: self._state(p) for name, p in self._trained.items()}
        self._fresh = {name: all(v is None for v in state.values()) for name, state in states.items()}
        scale = getattr(self._optimizer, "grad_scale", None)  # set by a GradScaler for fused optimizers
        given = {name: p.grad.detach() for name, p in self._trained.items() if p.grad is not None}
        self._given = {name: g.clone() if scale is None else g / scale for name, g in given.items()}
        self._factors = {name: gradients.factor(name, g) for name, g in self._given.items()}
        before = self._description.before
        self._noted = {n: {k: s[k].detach().clone() for k in before if k in s} for n, s in states.items()}

    def after(self, weight: Callable[[str], Tensor]) -> dict[str, Coefficients]:
        """Return the coefficients of the step by parameter; ``weight`` gives those before it."""
        coefficients = {}
        for group in self._optimizer.param_groups:
            for p in group["params"]:
                name = self._names[id(p)]
                if name in self._given:
                    coefficients[name] = self._coefficients(name, group, self._state(p), weight(name))
        return coefficients

    def _coefficients(
        self, name: str, group: Mapping[str, Any], state: Mapping[str, Any], weight: Tensor
    ) -> Coefficients:
        step = Made(group, state, self._fresh[name], self._noted[name], weight, self._given[name])
        coefficients = self._description.of(step, name)
        return replace(coefficients, scale=coefficients.scale * self._factors[name])

    def _state(self, p: Tensor) -> Mapping[Any, Any]:
        state: Mapping[Any, Any] = self._optimizer.state
        return state.get(p, {})


def as_optimizers(given: object) -> tuple[torch.optim.Optimizer, ...]:
    """Return one or several optimizers as a tuple."""
    if not isinstance(given, (torch.optim.Optimizer, list, tuple)) or given in ([], ()):
        raise BadTypeError(f"Expected a torch.optim.Optimizer to record, or a list of them, got {given!r}.")
    return (given,) if isinstance(given, torch.optim.Optimizer) else tuple(given)


def trained_parameters(
    optimizers: tuple[torch.optim.Optimizer, ...], names: Mapping[int, str]
) -> dict[str, Tensor]:
    """Return the parameters that the optimizers hold, by name, in the order of the names by id."""
    trained = {}
    for number, group in enumerate(g for optimizer in optimizers for g in optimizer.param_groups):
        if group.get("differentiable"):
            raise BadValueError("The optimizer is `differentiable`; ntkit records ordinary steps only.")
        for p in group["params"]:
            name = names.get(id(p))
            if name is None:
                raise BadValueError(
                    f"Group {number} of the optimizer has a parameter of shape {tuple(p.shape)} that is none "
                    f"of the model's. Give record the model that the optimizer was made for."
                )
            if name in trained:
                raise BadValueError(f"{name!r} is in two groups of the optimizers: give each parameter once.")
            trained[name] = p
    return {name: trained[name] for name in names.values() if name in trained}
