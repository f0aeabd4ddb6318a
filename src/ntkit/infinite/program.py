"""A network read as a tensor program: its graph, one operation after the other, in the limit."""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from ntkit.display.notebook import Printed
from ntkit.errors import NtkitError
from ntkit.faults import named
from ntkit.finite.roles import biases
from ntkit.graph import Graph, is_mutable, stale, twin
from ntkit.infinite.duals.dual import DUAL_RULES
from ntkit.infinite.layers import (  # noqa: F401 (they register the rules)
    attention,
    complex_numbers,
    concat,
    conv,
    einsum,
    elementwise,
    indexing,
    linear,
    norm,
    pooling,
    recurrent,
    reductions,
    selections,
    views,
)
from ntkit.infinite.reading.laws import Laws
from ntkit.infinite.reading.rules import LIMIT_RULES, Entry, Reading, known
from ntkit.infinite.reading.values import Known, Operand, Weight, Wide
from ntkit.infinite.variables.expression import walk
from ntkit.infinite.variables.rewrites import Inseparable
from ntkit.infinite.variables.vectors import Coefficient, Gain, Line, Vector, behind
from ntkit.inputs import Batch, take
from ntkit.network import Network

Operation = Callable[..., Any]
RULES = "ntkit.infinite.layers"  # of ntkit's own rules

_log = logging.getLogger("ntkit")


@dataclass(frozen=True, eq=False, repr=False)
class Program(Printed):
    """A tensor program: lines that are inputs, products with weights, linear combinations, functions.

    ``print(program)`` shows each line with the module that it comes from. ``output`` are the outputs in one
    row, ``framed`` those in the dimensions that the network gives them.
    """

    lines: tuple[Entry, ...]
    output: Wide
    framed: Wide
    notes: tuple[str, ...]

    def __str__(self) -> str:
        width = max((len(line.name) for line in self.lines), default=1)
        kinds = max((len(line.kind) for line in self.lines), default=1)
        rows = []
        for line in self.lines:
            path = f"   # {line.path}" if line.path else ""
            rows.append(f"{line.name:>{width}}  {line.kind:<{kinds}}  {line.text}{path}")
        return "\n".join([*rows, *(f"note: {note}" for note in self.notes)])


def read(net: Network, graph: Graph, example: Batch, laws: Laws, source: Callable[[fx.Node], str]) -> Program:
    """Read a graph as a tensor program."""
    laws = replace(laws, biases=biases(graph))
    reading = Reading(laws, graph.paths, net.dtype, source=source)
    env: dict[fx.Node, Any] = {**_inputs(net, graph, example, reading)}
    seen: dict[tuple, tuple[object, list]] = {}
    open_lines: dict[int, Entry] = {}  # by their values, until the node is met that has this value
    read_lines = 0
    result: object = None
    last: Any = None
    for node in graph.module.graph.nodes:
        reading.node = node
        if node.op == "get_attr":
            env[node] = getattr(graph.module, node.target)
        elif node.op == "output":
            result, last = env[node.args[0][0]], node.args[0][0]
        elif node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
            leaves, spec = pytree.tree_flatten((args, kwargs))
            mutable = is_mutable(node)
            target = node.target
            if mutable and any(isinstance(leaf, Wide | Weight) for leaf in leaves):
                target = twin(node.target)
                if target is None or stale(node):
                    raise reading.unknown("it writes into a value that shares its memory with another one.")
            key = (target, str(spec), tuple(leaf if _plain(leaf) else id(leaf) for leaf in leaves))
            if key not in seen:
                seen[key] = (_operation(reading, target, args, kwargs), leaves)
            env[node] = seen[key][0]
            if mutable:
                env[node.args[0]] = env[node]  # pyright: ignore
            open_lines |= {id(line.value): line for line in reading.lines[read_lines:]}
            read_lines = len(reading.lines)
            if (line := open_lines.pop(id(env[node]), None)) is not None:
                line.node = node.name
    while last is not None and last.target is torch.ops.aten.reshape.default and last.name not in graph.paths:
        last = last.args[0]  # outputs are reshaped by ntkit
    reading.node = last if last is not None and last.op == "call_function" else None
    output, framed = _check_output(reading, result), env[last]  # pyright: ignore[reportArgumentType]
    _log.info("limit of infinite width: %d lines read", len(reading.lines))
    return Program(tuple(reading.lines), output, framed, tuple(reading.notes))


def _plain(leaf: object) -> bool:
    return isinstance(leaf, int | float | str | bool | type(None) | torch.dtype | torch.device)


def _inputs(net: Network, graph: Graph, example: Batch, reading: Reading) -> dict[fx.Node, Operand]:
    """Return the values of the placeholders: weights, buffers, inputs."""
    env: dict[fx.Node, Operand] = {}
    weights, buffers = net.weights, net.buffers
    leaves = pytree.tree_leaves(take(example, slice(0, 1)))
    place = 0
    for node in graph.module.graph.nodes:
        if node.op != "placeholder":
            continue
        name = graph.weights.get(node)
        if name in weights:
            tensor = weights[name].clone(memory_format=torch.contiguous_format)
            env[node] = Weight(name, tensor, tuple(tensor.shape))
        elif name is not None:
            env[node] = buffers[name]
        else:
            env[node] = Known(leaves[place], _leaf(place, tuple(leaves[place].shape)))
            sizes = "x".join(map(str, leaves[place].shape[1:])) or "one number"
            line = f"x{place + 1}" if len(leaves) > 1 else "x"
            reading.lines.append(Entry(line, "Input", f"data ({sizes})", ""))
            place += 1
    return env


def _leaf(place: int, shape: tuple[int, ...]) -> Coefficient:
    return Coefficient(shape, lambda side: pytree.tree_leaves(side.x)[place].unsqueeze(1))


def _operation(reading: Reading, op: Operation, args: tuple, kwargs: dict) -> object:
    leaves = pytree.tree_leaves((args, kwargs))
    if op is operator.getitem:
        return args[0][args[1]]
    if not any(isinstance(leaf, Wide | Weight) for leaf in leaves):
        if any(isinstance(leaf, Known) for leaf in leaves):
            return known(op, args, kwargs)
        return op(*args, **kwargs)
    if any(isinstance(leaf, complex_numbers.Complexes) for leaf in leaves):
        return complex_numbers.operation(reading, op, args)
    if op in LIMIT_RULES:
        return _ruled(reading, LIMIT_RULES[op], args, kwargs)
    pointwise = op in DUAL_RULES or elementwise.is_pointwise(op)
    if pointwise and any(isinstance(leaf, Wide) for leaf in leaves):
        return elementwise.function(reading, op, args, kwargs)  # pyright: ignore[reportArgumentType]
    raise reading.unknown(_derived(args) or "there is no rule for it.")


def _derived(args: tuple) -> str:
    """Return why there is no rule, for an operation on a weight itself."""
    if not args or not isinstance(args[0], Weight):
        return ""
    return f"it computes a weight from {args[0].name!r} (a weight norm, a spectral norm, a mask)."


def _ruled(reading: Reading, rule: Operation, args: tuple, kwargs: dict) -> object:
    """Return what a rule makes of an operation; an error in it is told with the rule's name."""

    def refuse(what: str) -> NtkitError:
        own = getattr(getattr(rule, "func", rule), "__module__", "").startswith(RULES)
        if own and _derived(args):  # rules for vectors know no weights
            return reading.unknown(_derived(args))
        if own:
            return reading.unknown(f"its rule knows no such arguments ({what}).")
        rest = f"The rule {what}; mend it, or leave such arguments out."
        return reading.unknown(f"{_derived(args)} {rest}".strip())

    with named(rule, refuse) as name:
        try:
            result = rule(reading, *args, **kwargs)
        except Inseparable as what:
            raise reading.refuse(f"it takes {what}.") from what
    for leaf in pytree.tree_leaves(result):
        if not isinstance(leaf, Operand | float | int | None):
            raise refuse(f"{name} returned a {type(leaf).__name__}, expected a Wide, Known, Weight or tensor")
    return result


def _check_output(reading: Reading, output: object) -> Wide:
    """Return the output, refused where it is not a product with a weight of its own."""
    if not isinstance(output, Wide):
        raise reading.refuse("the network does not end in a product with a weight of infinite width.")
    expressions = walk(*(e for _, e in output.pieces))
    if not all(e.gaussian for e in expressions) or any(isinstance(e, Gain) for e in expressions):
        raise reading.refuse(
            f"the network ends in a nonlinearity ({reading.lines[-1].text.split('   ')[0]}); the last line "
            f"must be a linear layer. Leave out a softmax, sigmoid or norm at the end, and give ntkit the "
            f"logits."
        )
    last = {e.matrix.name for e in expressions if isinstance(e, Line)}
    if not last:
        raise reading.refuse("the network does not end in a linear layer.")
    for e in behind(*(part for line in expressions if isinstance(line, Line) for _, part in line.inputs)):
        if isinstance(e, Line) and e.matrix.name in last:
            raise reading.refuse(
                f"the read-out weight {e.matrix.name!r} is used elsewhere in the network: function "
                f"and gradient are then correlated, and the kernel stays random."
            )
        if isinstance(e, Vector) and e.name in last:
            raise reading.refuse(f"the read-out weight {e.name!r} is used elsewhere in the network.")
    return output
