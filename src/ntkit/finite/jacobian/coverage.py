"""Which uses of which weights have a structured rule, and how uses of the same weight combine.

Read off the graph alone. A weight with one use that no rule knows is contracted whole: its Jacobian
is formed. Whatever is found here is proved by `ntkit.finite.jacobian.proof` against autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

import ntkit.finite.layers.conv
import ntkit.finite.layers.elementwise
import ntkit.finite.layers.embedding
import ntkit.finite.layers.linear
import ntkit.finite.layers.norm  # noqa: F401  (the rules register themselves)
from ntkit.finite.rules import RULES, ArgumentSlot
from ntkit.graph import Graph, is_mutable, moving_nodes

aten = torch.ops.aten

# Operations that only move the elements of a weight: what they give is the weight in another shape.
VIEWS = {
    *(aten.view, aten.reshape, aten.transpose, aten.t, aten.permute, aten.unsqueeze, aten.squeeze),
    *(aten.select, aten.slice, aten.narrow, aten.split, aten.split_with_sizes, aten.chunk, aten.unbind),
    *(aten.flatten, aten.unflatten, aten.contiguous, aten.clone, aten.alias, aten.expand, aten.numpy_T),
    *(aten.unsafe_chunk, aten.unsafe_split, aten.movedim, aten.swapaxes, aten.view_as, aten.mT),
    *(aten.expand_as, aten.detach_copy, aten.flip),
}
# Operations that multiply a weight by a number: a view, but for the factor.
SCALES = {aten.mul, aten.div, aten.neg}
# Operations that take a weight's shape or type, or cut its gradient: what they give is a constant.
CONSTANT = {
    *(aten.detach, aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like),
    *(aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty),
}
# A product of a weight with a constant that the network makes itself counts as a use of it.
PRODUCTS = {aten.linear, aten.addmm, aten.mm, aten.matmul}
# So do these of a weight with anything but the data, unless what they give becomes a weight: the embedding of
# positions, a table of biases, a network of a grid of coordinates.
FIXED_USES = PRODUCTS | {aten.bmm, aten.einsum, aten.embedding, aten.index, aten.index_select}
# The operations whose vector or matrix, if it is the same for all samples, is a weight, as are the filters.
MAPS = PRODUCTS | {aten.einsum, aten.bilinear}
FILTERS = {getattr(aten, f"conv{t}{d}d") for t in ("", "_transpose") for d in (1, 2, 3)}


@dataclass(frozen=True)
class Edge:
    """One use: the weight-valued node ``source`` enters the operation ``node`` at ``slot``."""

    node: fx.Node
    slot: ArgumentSlot
    source: fx.Node
    weights: frozenset[str]
    is_view: bool  # source is the weight itself, in another shape or times a number
    dtype: torch.dtype | None = None  # of the weight, where the operation gives another


@dataclass(frozen=True)
class Coverage:
    """The uses that have a rule, and the weights that have to be contracted whole."""

    edges: tuple[Edge, ...]
    uncovered: dict[str, str]  # weight -> the operation that has no rule for it
    order: tuple[tuple[fx.Node, frozenset[str]], ...]  # operations with the weights they use, as they run


def cover(graph: Graph, wanted: frozenset[str]) -> Coverage:
    """Find every use of the wanted weights."""
    origin: dict[fx.Node, frozenset[str]] = {}  # nodes that are functions of weights alone
    views: set[fx.Node] = set()
    data: set[fx.Node] = set()
    constants: set[fx.Node] = set()  # constants that the network makes itself, such as a first hidden state
    edges: list[Edge] = []
    dtypes: dict[fx.Node, torch.dtype] = {}  # of the weights that a node is a function of
    uncovered: dict[str, str] = {}
    order: list[tuple[fx.Node, frozenset[str]]] = []
    become = _becoming_weights(graph)
    for node in graph.module.graph.nodes:
        if node.op == "placeholder":
            name = graph.weights.get(node)
            if name in wanted:
                origin[node] = frozenset([name])
                dtypes[node] = _dtype(node)
                views.add(node)
            elif node in graph.inputs:
                data.add(node)
            continue
        if node.op == "output":
            for source in node.all_input_nodes:
                uncovered.update(dict.fromkeys(origin.get(source, ()), "the output itself"))
            continue
        sources = [a for a in node.all_input_nodes if a in origin]
        packet = getattr(node.target, "overloadpacket", None)
        others = [a for a in node.all_input_nodes if a not in origin]
        made = bool(others) and packet in PRODUCTS and all(a in constants for a in others)
        fixed = made or (packet in FIXED_USES and node not in become)
        if (sources and fixed) or any(a in data for a in others):
            data.add(node)
            if sources:
                order.append((node, frozenset().union(*(origin[a] for a in sources))))
            for source in sources:
                slots = [] if _dtype(source).is_complex or _dtype(node).is_complex else _slots(node, source)
                if not slots:
                    uncovered.update(dict.fromkeys(origin[source], str(node.target)))
                dtype = None if _dtype(node) == dtypes[source] else dtypes[source]
                for slot in slots:
                    edges.append(Edge(node, slot, source, origin[source], source in views, dtype))
        elif (not sources or packet in CONSTANT) and all(a in constants for a in others):
            constants.add(node)
        elif sources and packet not in CONSTANT:
            origin[node] = frozenset().union(*(origin[a] for a in sources))
            dtypes[node] = dtypes[sources[0]]
            moves = packet in VIEWS or getattr(node.target, "__name__", "") == "getitem"
            moves |= packet in SCALES and not others
            if moves and len(sources) == 1 and sources[0] in views:
                views.add(node)
            if is_mutable(node):
                uncovered.update(dict.fromkeys(origin[node], f"{node.target}, in place"))
    _spread(edges, uncovered)
    covered = tuple(e for e in edges if not e.weights & uncovered.keys())
    return Coverage(covered, uncovered, tuple(order))


def _becoming_weights(graph: Graph) -> set[fx.Node]:
    """Return the nodes, the same for all samples, that maps of the data take in the place of a weight."""
    moving = moving_nodes(graph.module.graph.nodes, graph.inputs)
    become: set[fx.Node] = set()
    for node in reversed(graph.module.graph.nodes):
        for user in node.users if node.name not in moving else ():
            packet = getattr(user.target, "overloadpacket", None)
            is_weight = packet in FILTERS or (packet in MAPS and len(_shape(node)) <= 2)
            if is_weight if user.name in moving else user in become:
                become.add(node)
    return become


def _dtype(node: fx.Node) -> torch.dtype:
    """Return the dtype of what an operation gives (of several things, that of the first)."""
    meta = node.meta.get("tensor_meta")
    while isinstance(meta, (list, tuple)) and not hasattr(meta, "dtype"):
        meta = next(iter(meta), None)
    return getattr(meta, "dtype", torch.float32)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))


def _slots(node: fx.Node, source: fx.Node) -> list[ArgumentSlot]:
    """Return the places at which a node enters an operation, or none if one of them has no rule."""
    if node.target not in RULES:
        return []
    weights, _ = RULES[node.target]  # pyright: ignore
    schema = [a.name for a in node.target._schema.arguments]  # pyright: ignore
    slots: list[ArgumentSlot] = []
    for name, value in [*zip(schema, node.args, strict=False), *node.kwargs.items()]:
        places = list(enumerate(value)) if isinstance(value, (list, tuple)) else [(None, value)]
        for place, item in places:
            if item is source:
                if name not in weights:
                    return []
                slots.append((name, place))
    return slots


def _spread(edges: list[Edge], uncovered: dict[str, str]) -> None:
    """Let weights that meet in one derived weight be treated like the worst of them."""
    while True:
        bad = [e for e in edges if e.weights & uncovered.keys() and e.weights - uncovered.keys()]
        if not bad:
            return
        for e in bad:
            why = next(uncovered[name] for name in e.weights if name in uncovered)
            for name in e.weights:
                uncovered.setdefault(name, why)


def index_map(graph: Graph, edge: Edge, shapes: dict[str, torch.Size]) -> tuple[Tensor, float]:
    """Return the place of each element of an edge's source in the flattened weight, and its factor."""
    (name,) = edge.weights
    if edge.source.op == "placeholder":
        return torch.arange(shapes[name].numel()).reshape(shapes[name]), 1.0
    ones = torch.ones(shapes[name], dtype=torch.float64)
    numbers = torch.arange(ones.numel(), dtype=torch.float64).reshape(ones.shape)
    scale = evaluate(graph, edge.source, {name: ones}).reshape(-1)[0].item()
    places = evaluate(graph, edge.source, {name: numbers})
    return (places / scale).round().long() if scale else places.long(), scale


def evaluate(graph: Graph, target: fx.Node, weights: dict[str, Tensor]) -> Tensor:
    """Return a node that is a function of weights alone (and of buffers and constants)."""
    result = _evaluate(graph, target, weights, {})
    assert isinstance(result, Tensor)
    return result


def _evaluate(graph: Graph, node: fx.Node, weights: dict[str, Tensor], known: dict[fx.Node, Any]) -> Any:
    if node not in known:
        if node.op == "placeholder":
            known[node] = weights[graph.weights[node]]
        elif node.op == "get_attr":
            known[node] = getattr(graph.module, str(node.target))
        else:
            given = node.args, node.kwargs
            args, kwargs = fx.map_arg(given, lambda n: _evaluate(graph, n, weights, known))
            known[node] = node.target(*args, **kwargs)  # pyright: ignore
    return known[node]
