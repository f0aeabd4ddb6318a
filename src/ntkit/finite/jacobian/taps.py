"""A graph run with taps, zeros that are added to what its operations with weights give.

The gradients at the taps are the g of the factors. How a tapped operation runs is up to the caller: with its
weights cut off (`ntkit.finite.jacobian.recipe`), or between two ends of a step of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from ntkit.errors import BadTypeError
from ntkit.faults import named
from ntkit.finite.factors import Factor
from ntkit.finite.jacobian.coverage import Edge
from ntkit.finite.rules import RULES, RuleError, Use
from ntkit.graph import Arguments, is_batched

Factors = dict[Edge, Factor | None]
Taps = dict[fx.Node, list[Edge]]
# Runs an operation; returns its arguments by name, and what it gave.
TappedOperation = Callable[[fx.Node, tuple, dict], tuple[Arguments, Tensor]]


def taps_of(edges: Iterable[Edge]) -> Taps:
    """Return the uses of each operation."""
    taps: Taps = {}
    for edge in edges:
        taps.setdefault(edge.node, []).append(edge)
    return taps


def zeros_at(taps: Iterable[fx.Node], like: Tensor, *sizes: int) -> dict[str, Tensor]:
    """Return the zeros to be added, ``[*sizes, *shape]``; their gradients are what is taken."""
    zeros: dict[str, Tensor] = {}
    for t in taps:
        meta = t.meta["tensor_meta"]
        zero = like.new_zeros((), dtype=meta.dtype)
        zeros[t.name] = zero.expand(*sizes, *meta.shape).requires_grad_()
    return zeros


@dataclass(frozen=True)
class Tapped:
    """Runs in place of tapped operations for one row under vmap, and keeps their arguments.

    ``fixed`` takes the arguments that are the same for all rows, ``moving`` the others.
    """

    run: TappedOperation
    zeros: Mapping[str, Tensor]
    fixed: dict[str, Arguments]
    copy: bool  # an operation may write into its arguments later
    moving: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __call__(self, node: fx.Node, args: tuple, kwargs: dict) -> Tensor:
        """Return what the operation gives, plus its zeros."""
        bound, value = self.run(node, args, kwargs)
        self.fixed[node.name], self.moving[node.name] = split_arguments(bound, self.copy)
        return value + self.zeros[node.name]


def replaced(
    node: fx.Node, args: tuple, kwargs: dict, by: Callable[[fx.Node, Any], Any]
) -> tuple[tuple, Arguments]:
    """Return the arguments of an operation with ``by(source, value)`` for what came from other nodes."""
    named = {k: _replaced(v, node.kwargs[k], by) for k, v in kwargs.items()}
    return tuple(_replaced(a, t, by) for a, t in zip(args, node.args, strict=True)), named


def _replaced(value: Any, template: object, by: Callable[[fx.Node, Any], Any]) -> Any:
    # not inside `replaced`: a closure that calls itself is a cycle, which holds what it saw until collected
    if isinstance(template, fx.Node):
        return by(template, value)
    if isinstance(template, (list, tuple)):
        return type(value)(_replaced(v, t, by) for v, t in zip(value, template, strict=True))
    return value


def split_arguments(bound: Arguments, copy: bool) -> tuple[Arguments, dict[str, Tensor]]:
    """Split the arguments of an operation into those that are the same for all rows and the others."""
    fixed: Arguments = {}
    moving: dict[str, Tensor] = {}

    def part(name: str, value: object) -> Any:
        if not is_batched(value):
            return value
        moving[name] = value.detach().clone() if copy else value.detach()
        return None

    for name, value in bound.items():
        if isinstance(value, (list, tuple)):
            fixed[name] = [part(f"{name}.{i}", item) for i, item in enumerate(value)]
        else:
            fixed[name] = part(name, value)
    return fixed, moving


def factors_at(
    taps: Taps,
    gradients: Iterable[Tensor | None],
    fixed: Mapping[str, Arguments],
    moving: Mapping[str, dict[str, Tensor]],
) -> Factors:
    """Ask the rules for the factors of the gradients ``[q, n, *shape]`` that reached the taps."""
    factors: Factors = {}
    for (node, edges), g in zip(taps.items(), gradients, strict=True):
        for edge in edges if g is not None else ():
            assert g is not None
            factors[edge] = factor_of(edge, g.transpose(0, 1), fixed[node.name], moving[node.name])
    return factors


def factor_of(edge: Edge, g: Tensor, fixed: Arguments, moving: dict[str, Tensor]) -> Factor | None:
    """Ask the rule of an operation for the factors of one backward pass, ``[n, o, *shape]``."""
    args, batched = {}, set()
    dtype = edge.dtype
    if dtype is not None:  # operations in other precisions than that of the weights that count
        g, moving = g.to(dtype), {k: v.to(dtype) if v.is_floating_point() else v for k, v in moving.items()}
    for name, value in fixed.items():
        if isinstance(value, list):
            args[name] = [moving.get(f"{name}.{i}", v) for i, v in enumerate(value)]
            batched |= {(name, i) for i in range(len(value)) if f"{name}.{i}" in moving}
        else:
            args[name] = moving.get(name, value)
            batched |= {(name, None)} if name in moving else set()
    rule = RULES[edge.node.target][1]  # pyright: ignore[reportArgumentType]
    try:
        with named(rule, RuleError) as name:
            factor = rule(Use(g, args, edge.slot, frozenset(batched)))
            if factor is not None and not isinstance(factor, Factor):
                raise BadTypeError(f"{name} returned a {type(factor).__name__}; expected a Factor, or None.")
            return factor
    except RuleError as error:
        error.weights = edge.weights
        raise
