"""The recursion that every optimizer's step is written in, and who describes which optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import NtkitError


@dataclass(frozen=True)
class Coefficients:
    r"""One step of one parameter, linear in the gradients seen so far.

    With c_n = d loss / d y_n, each coefficient a number or a tensor of the parameter's shape::

        g_k     = scale * sum_n J(x_n; w_k)^T c_n + decay * w_k
        m_k     = mu * m_{k-1} + nu * g_k
        Delta_k = -(a * g_k + b * m_k) - d * w_k

    The default is the step of a parameter without a gradient: it and its buffer stay as they are.
    """

    mu: float | Tensor = 1.0
    nu: float | Tensor = 0.0
    a: float | Tensor = 0.0
    b: float | Tensor = 0.0
    d: float | Tensor = 0.0
    decay: float | Tensor = 0.0
    scale: float | Tensor = 1.0


Describe = Callable[[Mapping[str, Any], Mapping[str, Any], bool], Coefficients]


@dataclass(frozen=True)
class Description:
    """How to read an optimizer: the coefficients of a step just made, and where it keeps m."""

    coefficients: Describe
    buffer: str


_DESCRIPTIONS: dict[type, Description] = {}


def describes(*optimizers: type, buffer: str) -> Callable[[Describe], Describe]:
    """Register ``f(group, state, fresh) -> Coefficients`` for exactly these optimizer classes.

    It is called after each step for each parameter with a gradient: ``group`` and ``state`` are the
    optimizer's own, ``fresh`` says that the parameter had no state before the step, and
    ``state[buffer]`` is m.
    """

    def register(function: Describe) -> Describe:
        for optimizer in optimizers:
            _DESCRIPTIONS[optimizer] = Description(function, buffer)
        return function

    return register


def description(optimizer: torch.optim.Optimizer) -> Description:
    """Return the description of an optimizer, looked up by its exact class."""
    found = _DESCRIPTIONS.get(type(optimizer))
    if found is None:
        known = ", ".join(sorted(t.__name__ for t in _DESCRIPTIONS))
        raise NtkitError(
            f"The optimizer is a {type(optimizer).__name__}, and ntkit knows no way to write its steps as "
            f"sums over training samples. Known are exactly these classes, not their subclasses: {known}."
        )
    return found
