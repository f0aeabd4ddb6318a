"""A user's network as an ATen graph whose inputs are named weights: what finite and infinite read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils import _pytree as pytree

from ntkit.below_autograd import BELOW_AUTOGRAD, connect
from ntkit.decompositions import DECIDED, DECOMPOSITIONS
from ntkit.errors import NotPerSampleError
from ntkit.inputs import Batch, take
from ntkit.network import Network, Weights
from ntkit.traced import Seen

aten = torch.ops.aten


# Operations that take the shape of their second argument, and those that take the numbers themselves.
_SHAPED = {
    aten.expand_as.default: aten.expand.default,
    aten.view_as.default: aten.view.default,
    aten.reshape_as.default: aten.reshape.default,
}
# Composite operations whose result may be a view, though their schemas do not say so.
_MAY_VIEW = {
    *(aten.reshape, aten.contiguous, aten.flatten, aten.to, aten.type_as, aten.reshape_as, aten.narrow),
    *(aten.movedim, aten.chunk, aten.unsafe_chunk, aten.meshgrid, aten.atleast_2d, aten.ravel, aten.einsum),
    *(aten.dropout, aten.feature_dropout, aten.alpha_dropout, aten.feature_alpha_dropout),
}

Arguments = dict[str, Any]  # of an operation, by the names in its schema
At = Callable[[fx.Node, tuple, dict], Any]


@dataclass(frozen=True)
class Graph:
    """The operations of a network for **one** sample (a batch of one; run it under vmap).

    Sizes are baked in: a graph belongs to the shapes, flags and dtype that it was traced with.
    """

    module: fx.GraphModule
    weights: dict[fx.Node, str]  # placeholder -> name of the weight or buffer
    inputs: frozenset[fx.Node]  # placeholders of the sample's inputs
    paths: dict[str, str]  # node -> path of the user's module that it came from
    mutates: bool  # some operation works in place
    decided: bool = False  # by a value of the sample: whether some query of attention sees nothing
    reads: tuple[str, ...] = ()  # where a tensor's values went to Python while it was traced: constants of it
    by_weights: bool = False  # some of those values are made of weights too

    @property
    def nodes(self) -> list[fx.Node]:
        """The operations in the order of their execution."""
        return [node for node in self.module.graph.nodes if node.op == "call_function"]

    def run(self, weights: Weights, buffers: Weights, x: Batch, at: Mapping[fx.Node, At]) -> Tensor:
        """Return the outputs ``[o]`` of one sample without its sample axis.

        ``at`` replaces the operation of some nodes: ``at[node](node, args, kwargs)`` gives its value.
        """
        x = pytree.tree_map(lambda t: (t.clone() if self.mutates else t).unsqueeze(0), x)
        if self.mutates:
            buffers = {name: b.clone() for name, b in buffers.items()}
        values = iter(pytree.tree_leaves((dict(weights), dict(buffers), x)))
        env: dict[fx.Node, Any] = {}
        for node in self.module.graph.nodes:
            if node.op == "placeholder":
                env[node] = next(values)
            elif node.op == "get_attr":
                env[node] = getattr(self.module, node.target)
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
                env[node] = at[node](node, args, kwargs) if node in at else node.target(*args, **kwargs)
            else:
                return env[node.args[0][0]].reshape(-1)
            for done in self._last_use.get(node, ()):
                del env[done]
        raise AssertionError("a graph without an output")

    @property
    def _last_use(self) -> dict[fx.Node, list[fx.Node]]:
        cached = self.module.meta.get("ntkit_last_use")
        if cached is None:
            cached, seen = {}, set()
            for node in reversed(self.module.graph.nodes):
                cached[node] = [a for a in node.all_input_nodes if a not in seen]
                seen.update(node.all_input_nodes)
            self.module.meta["ntkit_last_use"] = cached
        return cached


def trace(net: Network, x: Batch) -> Graph:
    """Trace a network at the first sample of a batch.

    Raises whatever torch raises where the network cannot be traced (a branch on its data), and
    `NotPerSampleError` where it holds an operation that is random or mixes the samples of a batch.
    """
    x = pytree.tree_map(torch.clone, take(x, slice(0, 1)))
    weights = {
        name: w.detach().clone().requires_grad_(w.is_floating_point()) for name, w in net.weights.items()
    }
    buffers = {name: b.clone() for name, b in net.buffers.items()}
    traced, seen, paths, decided = _made(net, weights, buffers, x, below_autograd=False)
    if seen.differentiates:  # what autograd keeps for its backward is a node below it only
        traced, seen, paths, decided = _made(net, weights, buffers, x, below_autograd=True)
        connect(traced.graph, seen.cut)
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    leaves = pytree.tree_leaves(({name: name for name in weights}, {name: name for name in buffers}))
    names = dict(zip(placeholders, leaves, strict=False))
    inputs = frozenset(placeholders[len(leaves) :])
    moving = moving_nodes(traced.graph.nodes, inputs)
    read = [f"{name} in {paths.get(node) or 'the model'}" for name, node in seen.read if node in moving]
    made = moving_nodes(traced.graph.nodes, [n for n in placeholders if names.get(n) in weights])
    by_weights = any(node in moving and node in made for _, node in seen.read)
    _purify(traced.graph)
    mutates = any(n.op == "call_function" and is_mutable(n) for n in traced.graph.nodes)
    traced.recompile()
    graph = Graph(traced, names, inputs, paths, mutates, decided, tuple(dict.fromkeys(read)), by_weights)
    refuse_random(graph)
    return graph


def _made(
    net: Network, weights: Weights, buffers: Weights, x: Batch, below_autograd: bool
) -> tuple[fx.GraphModule, Seen, dict[str, str], bool]:
    """Return a traced network, what was seen of it, its nodes' modules, and whether a value decided on it."""
    paths: dict[str, str] = {}
    seen = Seen()

    def outputs(weights: Weights, buffers: Weights, x: Batch) -> Tensor:
        with seen:
            return net.outputs(weights, x, buffers)

    with _quiet_tracing(net, x), _module_paths(net.module, paths):
        table = DECOMPOSITIONS | (BELOW_AUTOGRAD if below_autograd else {})
        make = make_fx(outputs, pre_dispatch=not below_autograd, decomposition_table=table)
        token = DECIDED.set(False)
        try:
            return make(weights, buffers, x), seen, paths, DECIDED.get()
        finally:
            DECIDED.reset(token)


def moving_nodes(nodes: Iterable[fx.Node], inputs: Iterable[fx.Node]) -> set[str]:
    """Return the names of the nodes that depend on the inputs."""
    moving = {node.name for node in inputs}
    for node in nodes:
        if any(source.name in moving for source in node.all_input_nodes):
            moving.add(node.name)
    return moving


def _purify(graph: fx.Graph) -> None:
    """Leave out what nothing depends on, and let operations give new values instead of working in place.

    An operation in place has a twin that gives a new value, which takes the place of the old one from there
    on, unless the old one shares its memory with another value. Else, where vmap would run it row by row, it
    copies what its twin gives.
    """
    for node in list(graph.nodes):
        if node.target in _SHAPED:
            shape = node.meta["tensor_meta"].shape
            node.target, node.args = _SHAPED[node.target], (node.args[0], list(shape))
        elif node.target is aten.embedding.default:
            node.args = node.args[:4]  # gradients of its weight are dense
        if node.op != "call_function" or not is_mutable(node):
            continue
        new, old = twin(node.target), node.args[0]
        if new is None or not isinstance(old, fx.Node):
            continue
        if not _shares_memory(old) and not any(_shares_memory(n) for n in old.users if n is not node):
            in_place, node.target = node.target, new
            if _meta(node) == _meta(old):
                old.replace_all_uses_with(node, delete_user_cb=lambda user, node=node: node < user)
                continue
            node.target = in_place
        if not torch._C._dispatch_has_kernel_for_dispatch_key(node.target.name(), "FuncTorchBatched"):
            with graph.inserting_before(node):
                value = graph.call_function(new, node.args, node.kwargs)
            value.meta = dict(node.meta)
            node.target, node.args, node.kwargs = aten.copy_.default, (old, value), {}
    for node in reversed(graph.nodes):
        if node.op == "call_function" and not node.users and not is_mutable(node):
            graph.erase_node(node)


# Twins whose first argument has another name.
_TWINS = {
    getattr(aten, f"{name}_").default: getattr(aten, name).default
    for name in ("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
}


def twin(op: object) -> torch._ops.OpOverload | None:
    """Return the operation that gives a new value where this one writes into its first argument."""
    if not isinstance(op, torch._ops.OpOverload) or not op._schema.name.endswith("_"):
        return None
    if op in _TWINS:
        return _TWINS[op]
    packet = getattr(aten, op._schema.name.removeprefix("aten::")[:-1], None)
    twins = [getattr(packet, name) for name in packet.overloads()] if packet is not None else []
    found = next((t for t in twins if _signature(t) == _signature(op)), None)
    return aten.full_like.default if found is aten.fill.Scalar else found  # vmap would fill row by row


def _signature(op: torch._ops.OpOverload) -> list[tuple[str, str]]:
    return [(a.name, str(a.type)) for a in op._schema.arguments]


def stale(node: fx.Node) -> bool:
    """Return whether, after an operation in place, another view of the memory that it wrote into is used."""
    order = {n: i for i, n in enumerate(node.graph.nodes)}
    old = node.args[0]
    assert isinstance(old, fx.Node)
    family, stack = {old}, [old]
    while stack:
        one = stack.pop()
        up = [a for a in one.all_input_nodes[:1] if _shares_memory(one)]
        down = [u for u in one.users if _shares_memory(u) and u.all_input_nodes[:1] == [one]]
        new = [n for n in (*up, *down) if n not in family and order[n] < order[node]]
        family.update(new)
        stack += new
    return any(order[user] > order[node] for view in family - {old} for user in view.users)


def _meta(node: fx.Node) -> tuple:
    meta = node.meta.get("tensor_meta")
    return getattr(meta, "shape", None), getattr(meta, "dtype", None)


def _shares_memory(node: fx.Node) -> bool:
    """Return whether a node's value may be a view of another's."""
    if node.op != "call_function":
        return node.op == "get_attr"
    returns = getattr(getattr(node.target, "_schema", None), "returns", None)
    if returns is None or getattr(node.target, "__name__", "") == "getitem":
        return True
    unsaid = getattr(node.target, "overloadpacket", None) in _MAY_VIEW
    return unsaid or any(r.alias_info is not None for r in returns)


def is_mutable(node: fx.Node) -> bool:
    """Return whether an operation writes into its arguments."""
    return bool(getattr(getattr(node.target, "_schema", None), "is_mutable", False))


def is_batched(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor that vmap has given a sample axis."""
    return isinstance(value, Tensor) and is_batchedtensor(value)


def arguments(node: fx.Node, args: tuple, kwargs: dict) -> Arguments:
    """Return the arguments of an operation by their names in its schema, defaults included."""
    schema = node.target._schema.arguments  # pyright: ignore
    bound = {a.name: a.default_value for a in schema if a.has_default_value()}
    bound.update(zip((a.name for a in schema), args, strict=False))
    bound.update(kwargs)
    return bound


def refuse_random(graph: Graph) -> None:
    """Refuse operations that draw random numbers or use the statistics of the batch (not of a weight)."""
    moving = moving_nodes(graph.nodes, graph.inputs)
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        where = f"{graph.paths.get(node.name) or 'the model'} (operation {node.target})"
        bound = arguments(node, node.args, node.kwargs)
        op = node.target.overloadpacket
        training = bound.get("training", bound.get("train", False)) is True
        if (
            op in (aten.batch_norm, aten.native_batch_norm, aten.cudnn_batch_norm)
            and training
            and node.name in moving
        ):
            raise NotPerSampleError(
                f"{where} normalizes by the statistics of the batch: its output for one sample depends on "
                f"the others. Call model.eval(), with track_running_stats=True."
            )
        p = bound.get("p", bound.get("dropout_p", bound.get("dropout", 1.0)))
        if torch.Tag.nondeterministic_seeded in node.target.tags or "dropout_p" in bound:
            inactive = p == 0 or bound.get("training", bound.get("train")) is False
            if not inactive:
                raise NotPerSampleError(
                    f"{where} draws random numbers: the network is not a function of its input. Call "
                    f"model.eval(), or set the probability of dropout to 0."
                )


@contextmanager
def _quiet_tracing(net: Network, x: Batch) -> Iterator[None]:
    """Trace without moving random states or grad mode, and without fused operations."""
    devices = {t.device for t in pytree.tree_leaves((net.weights, x)) if t.device.type == "cuda"}
    mkldnn = torch._C._get_mkldnn_enabled()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices=list(devices)), torch.enable_grad():
        torch._C._set_mkldnn_enabled(False)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch._C._set_mkldnn_enabled(mkldnn)
            torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _module_paths(module: nn.Module | None, paths: dict[str, str]) -> Iterator[None]:
    """Write down, while tracing, which of the user's modules each node comes from."""
    stack: list[str] = []

    def label() -> None:
        mode = get_proxy_mode()
        if mode is None or not stack:
            return
        for node in reversed(mode.tracer.graph.nodes):
            if node.name in paths or node.op == "placeholder":
                break
            paths[node.name] = stack[-1]

    def enter(name: str) -> Callable:
        def hook(*_: object) -> None:
            label()
            stack.append(name)

        return hook

    def leave(*_: object) -> None:
        label()
        stack.pop()

    handles = []
    for name, m in module.named_modules() if module is not None else ():
        handles.append(m.register_forward_pre_hook(enter(name), prepend=True))
        handles.append(m.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
