"""The Jacobian of a network in its weights as factors, for a batch: one forward, one batched backward.

The graph of one sample runs under vmap with taps (zeros that are added to what an operation gave);
the gradients at the taps are the g of the factors. Weights that no rule covers enter as one copy
for each sample, and the same backward gives their Jacobian.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ntkit.finite.factors import Factor, WeightPart, concatenate
from ntkit.finite.jacobian.backward import Backward, quiet_vmap
from ntkit.finite.jacobian.coverage import Coverage, Edge, evaluate
from ntkit.finite.jacobian.rounding import tolerance
from ntkit.finite.jacobian.tape import Tapes
from ntkit.finite.jacobian.taps import (
    Factors,
    Tapped,
    Taps,
    factor_of,
    factors_at,
    replaced,
    taps_of,
    zeros_at,
)
from ntkit.graph import Arguments, Graph, arguments
from ntkit.inputs import Batch, batch_size, take
from ntkit.network import Network, Weights, real_gradient

# The factors of each weight, for each set of its elements that uses see.
Jacobian = dict[str, list[WeightPart]]
_SHORT = 64  # operations of a network whose passes are replayed
_SMALL = 2**24  # its weights: larger ones take far longer than their operations' overhead


@dataclass(frozen=True)
class Group:
    """Uses of one weight that see the same elements of it; some see the transposed matrices."""

    uses: list[tuple[int, bool, float]]  # place among the edges, transposed, times a number
    elements: Tensor | None  # place of each element of the factor in the flattened weight; None: in order


@dataclass
class Recipe:
    """How the Jacobian of each weight is assembled; built once for a model and its shapes."""

    net: Network
    wanted: tuple[str, ...]
    graph: Graph | None  # None: the network itself, contracted whole
    coverage: Coverage
    lowest: torch.dtype  # that the network computes in
    by_sample: bool = False  # the network itself runs, one sample after the other
    forward_mode: bool | None = None  # jvp by forward mode is right; None: not yet tried
    backward: Backward = field(default_factory=Backward)
    groups: dict[str, list[Group]] = field(default_factory=dict)
    formed: dict[str, str] = field(default_factory=dict)  # covered, but summed as a dense Jacobian: why
    tapes: Tapes = field(default_factory=Tapes)
    seen: list[Tensor] | None = None  # outputs that passes made on the way, where somebody wants them

    @cached_property
    def tolerance(self) -> float:
        """The relative difference that is taken for rounding."""
        return tolerance(self.lowest)

    @property
    def reads(self) -> bool:
        """Whether values of the sample that was traced decided what is in the graph."""
        return self.graph is not None and bool(self.graph.reads or self.graph.decided)

    @property
    def contracted(self) -> tuple[str, ...]:
        """The weights whose Jacobian comes from autograd alone."""
        return tuple(n for n in self.wanted if n in self.coverage.uncovered)

    def jacobian(self, x: Batch, cotangents: Tensor, only: frozenset[str] | None = None) -> Jacobian:
        """Return the factors for a batch; rows of ``cotangents [q, o]`` take the place of outputs."""
        only = frozenset(self.wanted) if only is None else only
        copied = tuple(n for n in self.contracted if n in only)
        if self.by_sample:
            rows = cotangents[:, None].expand(-1, batch_size(x), -1)
            return {n: [WeightPart.vector(j)] for n, j in by_sample(self, x, rows, copied).items()}
        edges = [e for e in self.coverage.edges if e.weights & only] if self.graph else []
        factors, copies, _ = batch_factors(self, x, cotangents, edges, copied)
        jacobian: Jacobian = {name: [WeightPart.vector(copies[name])] for name in copied}
        for name in self.wanted:
            if name in only and name in self.groups:
                jacobian[name] = self.grouped(name, factors)
        formed = [n for n in self.wanted if n in self.formed and n in only]
        if formed:
            jacobian.update(self._formed(formed, factors, batch_size(x), cotangents.shape[0]))
        return jacobian

    @property
    def streams(self) -> bool:
        """Whether `stream` hands over one weight after the other, and holds no more than that at a time."""
        readable = self.graph is not None and not self.graph.mutates and self.backward.batched
        return readable and not self.by_sample and not self.contracted and not self._is_short

    def stream(
        self,
        x: Batch,
        cotangents: Tensor,
        take: Callable[[Jacobian], None],
        only: frozenset[str] | None = None,
    ) -> None:
        """Hand over the `jacobian` in parts, each as soon as the backward pass has brought all of its uses.

        Where that is not possible (a network that is contracted, or short), it is one part.
        """
        only = frozenset(self.wanted) if only is None else only
        if not self.streams:
            take(self.jacobian(x, cotangents, only))
            return
        taps = taps_of([e for e in self.coverage.edges if e.weights & only])
        awaited = {
            name: {node for node, here in taps.items() if any(name in e.weights for e in here)}
            for name in self.wanted
            if name in only and name in self.groups
        }
        factors: Factors = {}

        def arrived(node: fx.Node, g: Tensor, fixed: Arguments, moving: dict[str, Tensor]) -> None:
            factors.update((e, factor_of(e, g.transpose(0, 1), fixed, moving)) for e in taps[node])
            for nodes in awaited.values():
                nodes.discard(node)
            complete = [name for name, nodes in awaited.items() if not nodes]
            take({name: self.grouped(name, factors) for name in complete})
            for name in complete:
                del awaited[name]
            for edge in [e for e in factors if not e.weights & (awaited.keys() | self.formed.keys())]:
                del factors[edge]

        passes = run_passes(self, taps, (), self.net.weights, self.net.buffers, x, cotangents, arrived)
        if self.seen is not None:
            self.seen.append(passes.out)
        rest = {name: self.grouped(name, factors) for name in awaited}
        formed = [n for n in self.wanted if n in self.formed and n in only]
        if formed:
            rest |= self._formed(formed, factors, batch_size(x), cotangents.shape[0])
        take(rest)

    @cached_property
    def _is_short(self) -> bool:
        size = sum(w.numel() for w in self.net.weights.values())
        return self.graph is not None and len(self.graph.nodes) <= _SHORT and size <= _SMALL

    def passes(
        self, x: Batch, cotangents: Tensor, taps: Taps, copied: tuple[str, ...], weights: Weights
    ) -> Passes:
        """Run forward and backward; a short network's are written out at the second call of a shape."""
        values = weights, self.net.buffers, x, cotangents

        def run(*values: Any) -> Passes:
            return run_passes(self, taps, copied, *values)

        if self.graph is None or self.graph.mutates or not self.backward.batched or not self._is_short:
            return run(*values)
        leaves, structure = pytree.tree_flatten((x, cotangents))
        edges = tuple(edge for here in taps.values() for edge in here)
        shapes = tuple(t.shape for t in leaves)
        return self.tapes.run((shapes, repr(structure), edges, copied), run, *values)  # no hash in torch 2.6

    def outputs(self, x: Batch) -> Tensor:
        """Return the outputs ``[n, o]`` of the function that is differentiated."""
        if self.by_sample:
            return torch.cat([self.net.direct(take(x, slice(i, i + 1))) for i in range(batch_size(x))])
        weights, buffers = self.net.weights, self.net.buffers
        if self.graph is None or self.graph.mutates or not self._is_short:
            return self.outputs_of(x)({k: weights[k] for k in self.wanted})
        shapes = tuple(t.shape for t in pytree.tree_leaves(x))
        return self.tapes.run(("outputs", shapes), self._run, weights, buffers, x)

    def _run(self, weights: Weights, buffers: Weights, x: Batch) -> Tensor:
        graph = self.graph
        assert graph is not None
        return quiet_vmap(lambda one: graph.run(weights, buffers, one, {}))(x)

    def outputs_of(self, x: Batch) -> Callable[[Weights], Tensor]:
        """Return the outputs ``[n, o]`` of a batch as a function of the wanted weights."""
        fixed, buffers = self.net.weights, self.net.buffers

        def outputs(weights: Weights) -> Tensor:
            merged = {**fixed, **weights}
            if self.graph is None:
                return self.net.outputs(merged, pytree.tree_map(torch.clone, x))
            return self._run(merged, buffers, x)

        return outputs

    def grouped(self, name: str, factors: Factors) -> list[WeightPart]:
        """Return the Jacobian of a covered weight from the factors of its uses, those alike summed."""
        parts = []
        for group in self.groups.get(name, ()):
            alike: dict[tuple, list[Factor]] = {}
            for place, swap, scale in group.uses:
                factor = factors.get(self.coverage.edges[place])
                if factor is not None and factor.left.shape.numel():  # a sample may have no positions
                    factor = (factor.swapped() if swap else factor).scaled(scale)
                    key = (factor.left_has_outputs, type(factor.left), type(factor.right))
                    alike.setdefault(key, []).append(factor)
            parts.append(WeightPart(group.elements, [concatenate(f) for f in alike.values()]))
        return parts

    def _formed(self, names: list[str], factors: Factors, n: int, q: int) -> Jacobian:
        """Form the Jacobians of weights whose uses see them in different shapes, or derived."""
        assert self.graph is not None
        values = {**self.net.weights, **self.net.buffers}
        total = {k: values[k].new_zeros(n * q, values[k].numel()) for k in names}
        sources: dict[fx.Node, list[tuple[Edge, Factor]]] = {}
        for edge, factor in factors.items():
            if factor is not None and edge.weights & total.keys():
                sources.setdefault(edge.source, []).append((edge, factor))
        for source, uses in sources.items():
            wanted = [k for k in names if k in uses[0][0].weights]
            value, pull = torch.func.vjp(
                lambda w, source=source: evaluate(self.graph, source, {**values, **w}),  # pyright: ignore
                {k: values[k] for k in wanted},
            )[:2]
            cotangent = value.new_zeros(n * q, value.numel())
            for _, factor in uses:
                order = factor.arrange(torch.arange(value.numel(), device=value.device).reshape(value.shape))
                dense = factor.dense().reshape(n * q, -1)
                cotangent.index_add_(1, order.reshape(-1), dense.to(cotangent.dtype))
            (pulled,) = quiet_vmap(pull)(cotangent.reshape(n * q, *value.shape))
            for k in wanted:
                total[k] += pulled[k].reshape(n * q, -1)
        return {k: [WeightPart.vector(total[k].reshape(n, q, -1))] for k in names}


class Passes(NamedTuple):
    """What a forward and a backward pass brought to each tapped operation, one by one."""

    out: Tensor
    gradients: list[Tensor | None]  # [q, n, *shape]
    fixed: dict[str, Arguments]
    moving: dict[str, dict[str, Tensor]]
    jacobians: dict[str, Tensor]  # of weights that entered as copies, [n, q, *shape]


def batch_factors(
    recipe: Recipe,
    x: Batch,
    cotangents: Tensor,
    edges: Sequence[Edge],
    copied: tuple[str, ...],
    weights: Weights | None = None,
) -> tuple[Factors, dict[str, Tensor], Tensor]:
    """Run forward under vmap and backward for all cotangents; return factors, Jacobians, outputs."""
    weights = recipe.net.weights if weights is None else weights
    taps = taps_of(edges)
    passes = recipe.passes(x, cotangents, taps, copied, weights)
    if recipe.seen is not None:
        recipe.seen.append(passes.out.detach())
    return factors_at(taps, passes.gradients, passes.fixed, passes.moving), passes.jacobians, passes.out


def run_passes(
    recipe: Recipe,
    taps: Taps,
    copied: tuple[str, ...],
    weights: Weights,
    buffers: Weights,
    x: Batch,
    cotangents: Tensor,
    arrived: Callable[[fx.Node, Tensor, Arguments, dict[str, Tensor]], None] | None = None,
) -> Passes:
    """Run forward under vmap, with taps and copies of some weights, and backward for all cotangents.

    With ``arrived``, it is given what reaches each tap as soon as it is there, and nothing is kept.
    """
    n, graph = batch_size(x), recipe.graph
    fixed: dict[str, Arguments] = {}

    def cut(node: fx.Node, args: tuple, kwargs: dict) -> tuple[Arguments, Tensor]:
        """Run an operation with the gradient cut off at the weights that its factors stand for."""
        sources = {e.source for e in taps[node]}
        args, kwargs = replaced(node, args, kwargs, lambda n, v: v.detach() if n in sources else v)
        return arguments(node, args, kwargs), node.target(*args, **kwargs)  # pyright: ignore

    with torch.enable_grad():
        zeros = zeros_at(taps, cotangents, n)
        copies = {k: weights[k].detach().expand(n, *weights[k].shape).requires_grad_() for k in copied}

        def one(x: Batch, zeros: dict[str, Tensor], copies: dict[str, Tensor]) -> tuple:
            merged = {**weights, **copies}
            if graph is None:
                return recipe.net.sample(merged, pytree.tree_map(torch.clone, x)), {}
            tap = Tapped(cut, zeros, fixed, graph.mutates)
            return graph.run(merged, buffers, x, dict.fromkeys(taps, tap)), tap.moving

        out, moving = quiet_vmap(one)(x, zeros, copies)
        leaves = [*zeros.values(), *copies.values()]
        rows = cotangents[:, None].expand(cotangents.shape[0], *out.shape).to(out.dtype)
        if arrived is not None:
            for node in taps:
                zeros[node.name].register_hook(_handing(node, len(rows), fixed, moving, arrived))
            recipe.backward.gradients(out, leaves, rows, last=True)
            return Passes(out.detach(), [], {}, {}, {})
        grads = recipe.backward.gradients(out, leaves, rows)
    jacobians = {}
    for k, grad in zip(copied, grads[len(zeros) :], strict=True):
        zero = weights[k].new_zeros(1).expand(n, cotangents.shape[0], *weights[k].shape)
        jacobians[k] = zero if grad is None else grad.transpose(0, 1)
    return Passes(out, grads[: len(taps)], fixed, moving, jacobians)


def _handing(
    node: fx.Node, rows: int, fixed: dict[str, dict], moving: dict[str, dict], arrived: Callable[..., None]
) -> Callable[[Tensor], Tensor]:
    """Return a hook that takes the gradient ``[q, n, *shape]`` of a tap out of a batched backward pass.

    The level of `is_grads_batched` is asked for here: on a device, hooks run in a thread that has none.
    """
    level = torch._C._vmapmode_increment_nesting()
    torch._C._vmapmode_decrement_nesting()

    def hook(g: Tensor) -> Tensor:
        if rows == 1:
            whole = g.unsqueeze(0)
        else:
            whole = torch._remove_batch_dim(g, level, rows, 0)  # pyright: ignore[reportPrivateImportUsage]
        arrived(node, whole, fixed.pop(node.name), moving.pop(node.name))
        return g.new_zeros(()).expand(g.shape)

    return hook


def by_sample(recipe: Recipe, x: Batch, rows: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return d (rows . outputs) / d weights, ``[n, q, *shape]`` for ``rows [q, n, o]``.

    By the network itself, one sample at a time, with the module's own parameters: always right.
    """
    values, count = recipe.net.weights, rows.shape[0]
    found = {k: rows.new_zeros(batch_size(x), count, *values[k].shape) for k in names}
    leaves = recipe.net.leaves(names)
    for i in range(batch_size(x)):
        with torch.enable_grad():
            out = recipe.net.direct(take(x, slice(i, i + 1)), leaves)
            for q, row in enumerate(rows[:, i : i + 1].to(out.dtype)) if out.requires_grad else ():
                gradients = torch.autograd.grad(out, list(leaves.values()), row, True, allow_unused=True)
                for k, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        found[k][i, q] = real_gradient(gradient)
    return found
