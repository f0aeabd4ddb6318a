"""The table of limits: which operations of a graph ntkit knows, and what a rule may ask."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ntkit.errors import NoRuleError
from ntkit.infinite.reading.laws import Laws, uniform
from ntkit.infinite.reading.values import Known, Weight, Wide
from ntkit.infinite.registry import RuleT, registering
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply, Function
from ntkit.infinite.variables.positions import broadcast
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import Coefficient, Line, Vector, VectorSum

LIMIT_RULES: dict[Any, Callable[..., Any]] = {}

FEW_INPUTS = 50  # fan_in below which PyTorch's uniform draw of the first layer is far from a Gaussian one


def register_limit_rule(*ops: torch._ops.OpOverload) -> Callable[[RuleT], RuleT]:
    """Register the infinite-width limit of some operations of a graph; elementwise ones need no rule.

        (Reading, *arguments of the operation) -> value, or a tuple of values

    The function gets a `Reading` and the arguments of the operation, in which tensors are vectors of
    infinite width (`Wide`), numbers that depend on the sample alone (`Known`), weights (`Weight`) or plain
    tensors, and returns one of those (or a tuple of them). `Reading.write` puts a line into the program,
    `Reading.refuse` returns the error of arguments that it does not take. A `Wide` stands for a tensor of
    shape ``sizes``: its positions have ``shape``, and each of its ``pieces`` is a vector at all of them.

    Parameters
    ----------
    *ops : torch.ops.<library>.<name>.<overload>
        The operations that the function is the limit of. An existing rule for one is replaced.

    Raises
    ------
    NtkitError
        An operation that is not an overload (``torch.ops.aten.cumsum.default``, not ``torch.cumsum``).
        Where the rule is used and raises anything but an `NtkitError`, or returns anything but
        those values, `infinite_width` raises a `NoRuleError` that names the rule, with its error as cause.

    Examples
    --------
    >>> import torch, ntkit
    >>> from torch import nn
    >>> from ntkit.infinite.layers.selections import selected
    >>> op = torch.ops.aten.rot90.default  # turned by 180 degrees: both axes of positions in reverse order
    >>> @ntkit.register_limit_rule(op)
    ... def rot90(read, h, k=1, dims=(0, 1)):
    ...     if k != 2:
    ...         raise read.refuse("only half turns are known.")
    ...     for dim in dims:
    ...         h = selected(read, h, dim, torch.arange(h.sizes[dim]).flip(0), False)
    ...     return read.write("LinComb", f"half turn of {read.name(h)}", h)
    >>> class Turn(nn.Module):
    ...     def forward(self, x):
    ...         return torch.rot90(x, 2, (2, 3))
    >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), Turn(), nn.ReLU(), nn.Flatten(), nn.Linear(32, 1))
    >>> print(ntkit.infinite_width(model, torch.randn(1, 1, 4, 4)).program)
     x  Input    data (1x4x4)
    g1  MatMul   0.weight * x + 0.bias   (convolution 3x3, fan_in 9)   # 0
    h1  LinComb  half turn of g1   # 1
    h2  Nonlin   relu(h1)   [closed form]   # 2
    g2  MatMul   4.weight h2 + 4.bias   (fan_in 32)   # 4
    >>> from ntkit.infinite.reading.rules import LIMIT_RULES
    >>> del LIMIT_RULES[op]
    """
    return registering(LIMIT_RULES, ops, "rule")


register_rule = register_limit_rule


def rule(*ops: torch._ops.OpOverload) -> Callable[[RuleT], RuleT]:
    """Register a rule of ntkit's own; a user's for the same operation stays, whichever comes first."""
    return registering(LIMIT_RULES, ops, "rule", replace=False)


@dataclass
class Entry:
    """One line of a tensor program, to be read by people."""

    name: str
    kind: str
    text: str
    path: str
    value: Wide | None = None
    node: str = ""  # of the graph, whose value it is


@dataclass
class Reading:
    """A graph that is being read: where we are, and the lines that were written."""

    laws: Laws
    paths: Mapping[str, str]
    dtype: torch.dtype
    node: fx.Node | None = None
    lines: list[Entry] = field(default_factory=list)
    names: dict[Expression, str] = field(default_factory=dict)
    uses: dict[str, str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    source: Callable[[fx.Node], str] = lambda node: ""

    @property
    def path(self) -> str:
        """The path of the module that the operation belongs to."""
        return (self.paths.get(self.node.name) or "") if self.node is not None else ""

    def note(self, text: str) -> None:
        """Add a remark to the program, only once."""
        if text not in self.notes:
            self.notes.append(text)

    def refuse(self, why: str) -> NoRuleError:
        """Return the error that names the operation, its module and its line in the user's source."""
        return NoRuleError(
            f"No limit of infinite width is known for {self.where}: {why} ntkit.monte_carlo(model, ...) "
            f"estimates the mean kernel over draws of whatever runs."
        )

    def unknown(self, why: str = "there is no rule for it.") -> NoRuleError:
        """Return the error of an operation without a rule, which says how to register one."""
        op = self.node.target if self.node is not None else "..."
        return NoRuleError(
            f"No limit of infinite width is known for {self.where}: {why} Register a rule, one function, "
            f"with @ntkit.register_limit_rule(torch.ops.{op}), "
            f"or estimate the limit with ntkit.monte_carlo(model, ...)."
        )

    @property
    def where(self) -> str:
        """The operation that is being read, its module, and the line in the user's source."""
        if self.node is None:
            return "the network"
        module = f" in module {self.path!r}" if self.path else ""
        line = self.source(self.node)
        return f"the operation {self.node.target} ({self.node.name}){module}{f' at {line}' if line else ''}"

    def write(self, kind: str, text: str, value: Wide, prefix: str = "h") -> Wide:
        """Write a line of the program and return its value."""
        self.counts[prefix] = self.counts.get(prefix, 0) + 1
        name = f"{prefix}{self.counts[prefix]}"
        self.names.update({e: name for _, e in value.pieces})
        self.lines.append(Entry(name, kind, text, self.path, value))
        return value

    def name(self, value: object) -> str:
        """Return the name of a value in the program."""
        if isinstance(value, Wide):
            return " | ".join(self._called(e) for _, e in value.pieces)
        if isinstance(value, Weight):
            return value.name
        if isinstance(value, Known):
            return "c" if value.moments else "x"
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def _called(self, e: Expression) -> str:
        while e not in self.names and len(e.parts) == 1:
            e = e.parts[0]
        if e in self.names:
            return self.names[e]
        if isinstance(e, VectorSum):
            return "(" + " + ".join(self._called(t) for t in e.terms) + ")"
        if isinstance(e, Line):
            return e.matrix.name
        return e.name if isinstance(e, Vector) else type(e).__name__.lower()

    def bias(self, weight: object, fan_in: int, positions: int) -> Vector:
        """Return the bias of a layer as a vector of parameters, the same at all positions."""
        if not isinstance(weight, Weight) or weight.tensor.ndim != 1:
            raise self.refuse("its bias is not a parameter with one entry per channel.")
        self.use(weight.name, "bias")
        average, law = self.laws.bias(weight, fan_in, self.path)
        return Vector((1,) * positions, weight.name, rows_of(weight.tensor), average, law)

    def starts(self, value: object, weight: Weight, fan_in: int) -> None:
        """Say where a product with data is not Gaussian at the start, in the module's own initialization."""
        few = not isinstance(value, Wide) and fan_in < FEW_INPUTS
        if few and self.laws.parameterization == "standard" and uniform(weight.tensor, fan_in):
            self.note(
                f"{weight.name} is drawn uniformly, as PyTorch does, and has a fan_in of {fan_in}: its "
                f"product with data is not quite Gaussian at any width (the kernels are off by 10 % at a "
                f"fan_in of 2, by 0.1 % at 50)."
            )

    def use(self, name: str, how: str) -> None:
        """Note how a weight is used; uses that have no limit together are refused."""
        before = self.uses.setdefault(name, how)
        if before != how:
            raise self.refuse(
                f"the weight {name!r} is used {before} and {how}: together they have no known limit."
            )

    def apply(self, function: Function, *arguments: Expression | Coefficient) -> Apply:
        """Return a function of vectors; data must not be among them."""
        if any(isinstance(a, Expression) and a.raw for a in arguments):
            raise self.refuse(
                "a nonlinear function of numbers that differ from channel to channel has no limit; bring "
                "data through a linear layer first (rotary embeddings are read in front of scores, where "
                "their positions are fixed)."
            )
        return Apply(broadcast(*(a.shape for a in arguments)), function, arguments)


def rows_of(tensor: Tensor) -> Tensor:
    """Return where the entries of a view of a weight lie in it."""
    offset = torch.tensor(tensor.storage_offset())
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        offset = offset[..., None] + torch.arange(size) * stride
    return offset


def known(op: Callable[..., Any], arguments: tuple, keywords: dict) -> Any:
    """Apply an operation to numbers that depend on the sample alone."""
    leaves, spec = pytree.tree_flatten((arguments, keywords))
    moments = any(isinstance(leaf, Known) and leaf.moments for leaf in leaves)
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Known)]

    def run(*values: Any) -> Any:
        filled = list(leaves)
        for i, value in zip(places, values, strict=True):
            filled[i] = value
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return op(*args, **kwargs)

    example = run(*(leaves[i].example for i in places))
    outs, out_spec = pytree.tree_flatten(example)
    numbers_of = [leaves[i].numbers for i in places]

    def all_of(side: SideValues) -> tuple[Tensor, ...]:
        parts = torch.vmap(lambda *v: tuple(pytree.tree_leaves(run(*v))))
        return side.remember((all_of, "whole"), lambda: parts(*_same(side, numbers_of)))

    def part(i: int) -> Known:
        return Known(outs[i], Coefficient(tuple(outs[i].shape), lambda side: all_of(side)[i]), moments)

    results = [part(i) if isinstance(out, Tensor) else out for i, out in enumerate(outs)]
    return pytree.tree_unflatten(results, out_spec)


def _same(side: SideValues, coefficients: list[Coefficient]) -> list[Tensor]:
    values = [c.value(side) for c in coefficients]
    n = max(v.shape[0] for v in values)
    return [v.expand(n, *v.shape[1:]) for v in values]
