"""The table of structured rules: which operations know the Jacobian of their weights as a factor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkit.errors import BadTypeError, one_of
from ntkit.finite.factors import Factor
from ntkit.graph import Arguments

ArgumentSlot = tuple[str, int | None]  # name of the argument, and place in it where it is a list


@dataclass(frozen=True)
class Use:
    """One use of a weight by an operation, seen for a batch of samples.

    ``g`` is the gradient of the outputs with respect to what the operation gave, ``[n, o, *shape]``.
    ``args`` are its arguments by name; tensors that depend on the sample have the sample as a
    first axis **before** the network's own batch axis of one, weights have their own shape.
    ``batched`` holds the names of the former.
    """

    g: Tensor
    args: Arguments
    slot: ArgumentSlot
    batched: frozenset[ArgumentSlot]

    def tensor(self, name: str, place: int | None = None) -> Tensor:
        """Return an argument with the sample as its first axis, of size 1 if it does not depend on it."""
        value = self.args[name] if place is None else self.args[name][place]
        return value if (name, place) in self.batched else value.unsqueeze(0)

    @property
    def weight(self) -> Tensor:
        """The weight that is asked about."""
        name, place = self.slot
        return self.args[name] if place is None else self.args[name][place]


Rule = Callable[[Use], "Factor | None"]

RULES: dict[torch._ops.OpOverload, tuple[tuple[str, ...], Rule]] = {}


class RuleError(RuntimeError):
    """A rule raised an error: which one it was, what it said, and the weights that it was asked about."""

    weights: frozenset[str] = frozenset()


def register_rule(op: torch._ops.OpOverload, *weights: str) -> Callable[[Rule], Rule]:
    """Register the factor of an operation for the arguments that may be weights.

    The function gets a `Use` and returns the `Factor` of the weight ``use.slot``, or None where it
    does not know (the weight then goes through Jacobian contraction: slower, never wrong). Whatever
    it returns is compared with autograd before it is used; a rule that raises is named in
    ``k.explain(x)``, and its network contracted.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    op
        An overload of ATen, as the network's graph shows it; a rule that is there is replaced.
    *weights
        The names of its arguments that may be weights.

    Raises
    ------
    BadTypeError
        Something that is not an overload.

    Examples
    --------
    >>> import torch, ntkit
    >>> from ntkit.finite.factors import Factor
    >>> from ntkit.finite.rules import RULES
    >>> before = dict(RULES)
    >>> @ntkit.register_rule(torch.ops.aten.mv.default, "self")
    ... def mv(use):  # y = W h for a sample without positions: J = g h^T
    ...     h, (n, o) = use.tensor("vec"), use.g.shape[:2]
    ...     return Factor(use.g.reshape(n, o, 1, 1, -1), h.reshape(n, 1, 1, 1, -1), lambda w: w[None])
    >>> class Single(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.w = torch.nn.Parameter(torch.randn(2, 3))
    ...     def forward(self, x):
    ...         return torch.mv(self.w, x[0])[None] if len(x) == 1 else torch.stack([self.w @ a for a in x])
    >>> x = torch.randn(4, 3)
    >>> torch.allclose(ntkit.EmpiricalNTK(Single())(x), x @ x.T, atol=1e-5)
    True
    >>> RULES.clear(); RULES.update(before)
    """
    if not isinstance(op, torch._ops.OpOverload):
        raise BadTypeError(
            f"A rule was given for {op!r}; expected an overload such as torch.ops.aten.mm.default."
        )
    for name in weights:
        one_of("weights", name, [argument.name for argument in op._schema.arguments])

    def register(function: Rule) -> Rule:
        if not callable(function):
            raise BadTypeError(f"The rule of {op} is {function!r}; expected a function of a Use.")
        RULES[op] = (weights, function)
        return function

    return register


rule = register_rule


def reduce_to(value: Tensor, shape: torch.Size) -> Tensor:
    """Sum ``[n, o, *broadcast]`` down to ``[n, o, *shape]``: the adjoint of broadcasting."""
    extra = value.ndim - 2 - len(shape)
    if extra:
        value = value.flatten(2, 1 + extra).sum(2)
    axes = [i + 2 for i, s in enumerate(shape) if s == 1 and value.shape[i + 2] != 1]
    return value.sum(axes, keepdim=True) if axes else value
