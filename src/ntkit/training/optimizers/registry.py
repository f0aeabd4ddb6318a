"""The recursion that every optimizer's step is written in, and who describes which optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError, NtkitError


@dataclass(frozen=True)
class Coefficients:
    r"""One step of one parameter, linear in the gradients seen so far.

    With c_n = d loss / d y_n, each coefficient a number or a tensor of the parameter's shape::

        g_k     = scale * sum_n J(x_n; w_k)^T c_n + decay * w_k
        m_k     = mu * m_{k-1} + nu * g_k
        Delta_k = -(a * g_k + b * m_k) - d * w_k

    A parameter that is a matrix may have its step multiplied by a matrix from the left and one from the
    right, left (a g + b m) right. ``rounding`` is how far the step may be from that, where it was not made in
    the precision of the parameter.

    The default is the step of a parameter without a gradient: it and its buffer stay as they are.
    """

    mu: float | Tensor = 1.0
    nu: float | Tensor = 0.0
    a: float | Tensor = 0.0
    b: float | Tensor = 0.0
    d: float | Tensor = 0.0
    decay: float | Tensor = 0.0
    scale: float | Tensor = 1.0
    left: Tensor | None = None
    right: Tensor | None = None
    rounding: float | Tensor = 0.0

    def to(self, dtype: torch.dtype) -> Coefficients:
        """Return the same with their tensors in a dtype."""
        values = {k: v.to(dtype) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return Coefficients(**values)


@dataclass(frozen=True)
class Made:
    """A step that an optimizer just made of one parameter: all that a description may read.

    Attributes
    ----------
    group, state
        The optimizer's own, after the step.
    fresh
        Whether the parameter had no state before the step.
    before
        The entries of ``state`` that the description asked for, as they were before the step; empty at
        a fresh parameter.
    weight
        The parameter before the step.
    gradient
        What the optimizer found in ``.grad``, clipped and unscaled if it was.
    """

    group: Mapping[str, Any]
    state: Mapping[str, Any]
    fresh: bool
    before: Mapping[str, Tensor]
    weight: Tensor
    gradient: Tensor


Describe = Callable[[Made], Coefficients]


@dataclass(frozen=True)
class Description:
    """How to read an optimizer: the coefficients of a step just made, and where it keeps m."""

    coefficients: Describe
    buffer: str | None
    before: Sequence[str] = ()

    def of(self, made: Made, name: str) -> Coefficients:
        """Return the coefficients of a step of the parameter of a name, checked."""
        found = self.coefficients(made)
        what = f"The description of the optimizer, {getattr(self.coefficients, '__name__', 'a callable')},"
        if not isinstance(found, Coefficients):
            raise BadTypeError(f"{what} returned {found!r}, expected ntkit.training.optimizers.Coefficients.")
        for key, value in vars(found).items():
            if value is None:
                continue
            shape = made.weight.shape
            if key in ("left", "right"):
                side = shape[0 if key == "left" else -1] if len(shape) == 2 else 0
                good, expected = value.shape == (side, side), f"a matrix of shape {(side, side)}"
            else:
                good = not isinstance(value, Tensor) or value.numel() == 1 or value.shape == shape
                expected = f"a number or the shape {tuple(shape)}"
            if not good:
                raise BadValueError(
                    f"{what} gave {key} of shape {tuple(value.shape)} to {name!r}, expected {expected}."
                )
            if not (torch.isfinite(value).all() if isinstance(value, Tensor) else math.isfinite(value)):
                raise BadValueError(f"{what} gave {key} with NaN or infinite values to {name!r}.")
        return found


_DESCRIPTIONS: dict[type, Description] = {}
_REASONS = {
    "LBFGS": "its step multiplies gradients of several evaluations with each other: no sum over samples",
    "SparseAdam": "it takes sparse gradients, and an account needs dense ones; use Adam",
}


def register_optimizer(
    *optimizers: type, buffer: str | None = None, before: Sequence[str] = ()
) -> Callable[[Describe], Describe]:
    r"""Say how an optimizer makes its steps, so that `record` takes it.

    A step must be linear in the gradients seen so far, given what the optimizer divided by::

        g_k = scale * gradient + decay * w_k        m_k = mu * m_{k-1} + nu * g_k
        w_{k+1} - w_k = -(a * g_k + b * m_k) - d * w_k

    Decorate a function ``f(made) -> Coefficients``. It is called after each step for each parameter that
    has a gradient, with ``made.group`` and ``made.state`` (the optimizer's own), ``made.fresh`` (no state
    before the step: then mu is 0), ``made.before``, ``made.weight``, ``made.gradient``. Each coefficient is
    a number, or a tensor of the parameter's shape. Whether it is right is checked: `account` refuses a run
    whose recorded steps are not the described ones, and names the first.

    Parameters
    ----------
    *optimizers
        Exactly these classes, not their subclasses; a description that is there is replaced.
    buffer
        The name of m in the optimizer's state, if it has one: what it holds when a recording begins moves
        predictions too (`Account.start`).
    before
        Names in the optimizer's state that the description needs as they were before the step.

    Raises
    ------
    NtkitError
        Something that is not a class of optimizers.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> from ntkit.training.optimizers import Coefficients
    >>> class Halving(torch.optim.Optimizer):  # plain descent, with a rate that halves at each step
    ...     def __init__(self, params, lr):
    ...         super().__init__(params, {"lr": lr, "factor": 2.0})
    ...     @torch.no_grad()
    ...     def step(self):
    ...         for group in self.param_groups:
    ...             group["factor"] /= 2
    ...             for p in group["params"]:
    ...                 p -= group["lr"] * group["factor"] * p.grad
    >>> @ntkit.register_optimizer(Halving)
    ... def halving(made):
    ...     return Coefficients(a=made.group["lr"] * made.group["factor"])
    >>> x, y = torch.randn(8, 3), torch.randn(8, 1)
    >>> model, loss = torch.nn.Linear(3, 1), torch.nn.MSELoss()
    >>> optimizer = Halving(model.parameters(), lr=0.1)
    >>> folder = tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer) as run:
    ...     for step in range(5):
    ...         run.batch(range(8))
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         optimizer.step()
    >>> ntkit.account(folder, model, loss, train=(x, y), queries=x).converged
    True
    """
    for optimizer in optimizers:
        if not (isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)):
            raise BadTypeError(
                f"register_optimizer was given {optimizer!r}, expected classes of torch.optim.Optimizer: "
                f"@ntkit.register_optimizer(MyOptimizer)."
            )

    def register(function: Describe) -> Describe:
        if not callable(function):
            raise BadTypeError(f"The description is {function!r}; expected a function made -> Coefficients.")
        for optimizer in optimizers:
            _DESCRIPTIONS[optimizer] = Description(function, buffer, tuple(before))
        return function

    return register


def usual(group: Mapping[str, Any]) -> dict[str, Any]:
    """Return the coefficients that most optimizers of torch share: L2 decay, and the sign of ``maximize``."""
    return {"decay": float(group["weight_decay"]), "scale": -1.0 if group["maximize"] else 1.0}


def of_torch(*names: str) -> tuple[type, ...]:
    """Return the optimizers of these names that the installed torch has."""
    return tuple(getattr(torch.optim, name) for name in names if hasattr(torch.optim, name))


def known_optimizers() -> dict[str, type]:
    """Return the classes that have a description, by their full names."""
    return {f"{kind.__module__}.{kind.__qualname__}": kind for kind in _DESCRIPTIONS}


def description(optimizer: torch.optim.Optimizer) -> Description:
    """Return the description of an optimizer, looked up by its exact class."""
    kind = type(optimizer)
    entry = _DESCRIPTIONS.get(kind)
    if entry is None:
        known = ", ".join(sorted(t.__name__ for t in _DESCRIPTIONS))
        reason = next((_REASONS[t.__name__] for t in kind.__mro__ if t.__name__ in _REASONS), None)
        raise NtkitError(
            f"The optimizer is a {kind.__name__}, and ntkit knows no way to write its steps as sums over "
            f"training samples{f': {reason}' if reason else ''}. Known are exactly these classes, not their "
            f"subclasses: {known}. If a step is linear in the gradients seen so far, given what they were "
            f"divided by, describe it: @ntkit.register_optimizer({kind.__name__})."
        )
    return entry
