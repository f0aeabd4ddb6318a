"""A user's network as an ATen graph whose inputs are named weights: what finite and infinite read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch._C._functorch import is_batchedtensor  # pyright: ignore[reportMissingImports]
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.utils import _pytree as pytree

from ntkit.errors import NotPerSampleError
from ntkit.network import Batch, Network, Weights, take

aten = torch.ops.aten


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One bag of embeddings (a sample has one), as an embedding and a sum or a mean."""
    if offsets.numel() - include_last_offset != 1 or mode == 2:
        raise NotImplementedError("embedding_bag with several bags in one sample, or with mode='max'")
    padding = -1 if padding_idx is None else padding_idx
    rows = aten.embedding(weight, indices, padding, scale_grad_by_freq, sparse)
    keep = (indices != padding).to(rows.dtype).unsqueeze(-1)
    scale = keep if per_sample_weights is None else keep * per_sample_weights.unsqueeze(-1)
    bag = (rows * scale).sum(0, keepdim=True)
    return (bag / keep.sum().clamp(min=1) if mode == 1 else bag), offsets, offsets, offsets


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K^T scale + mask) V, as torch documents its fused kernels."""
    if dropout_p > 0:
        raise NotPerSampleError(
            f"scaled_dot_product_attention drops at random (dropout_p={dropout_p}): the network is not a "
            f"function of its input. Call model.eval(), or set the probability of dropout to 0."
        )
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
    return torch.softmax(scores, -1) @ value


# Fused nodes that break under vmap; written out, they are layers like any others.
_WRITTEN_OUT = {
    **get_decompositions([aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]),
    aten.embedding_bag.default: _embedding_bag,
    aten.embedding_bag.padding_idx: _embedding_bag,
    aten.scaled_dot_product_attention.default: _attention,
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
    x = take(x, slice(0, 1))
    weights = {name: w.detach().clone().requires_grad_() for name, w in net.weights.items()}
    buffers = {name: b.clone() for name, b in net.buffers.items()}
    paths: dict[str, str] = {}
    with _quiet_tracing(net, x), _module_paths(net.module, paths):
        traced = make_fx(
            lambda w, b, x: net.outputs(w, x, b), pre_dispatch=True, decomposition_table=_WRITTEN_OUT
        )(weights, buffers, x)
    placeholders = [n for n in traced.graph.nodes if n.op == "placeholder"]
    leaves = pytree.tree_leaves(({name: name for name in weights}, {name: name for name in buffers}))
    names = dict(zip(placeholders, leaves, strict=False))
    inputs = frozenset(placeholders[len(leaves) :])
    mutates = any(n.op == "call_function" and is_mutable(n) for n in traced.graph.nodes)
    graph = Graph(traced, names, inputs, paths, mutates)
    refuse_random(graph)
    return graph


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
    """Refuse operations that draw random numbers or use the statistics of the batch."""
    for node in graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        where = f"{graph.paths.get(node.name) or 'the model'} (operation {node.target})"
        bound = arguments(node, node.args, node.kwargs)
        op = node.target.overloadpacket
        training = bound.get("training", bound.get("train", False)) is True
        if op in (aten.batch_norm, aten.native_batch_norm, aten.cudnn_batch_norm) and training:
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
