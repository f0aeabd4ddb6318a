"""The Jacobian of a network in its weights as factors, for a batch: one forward, one batched backward.

The graph of one sample runs under vmap with taps (zeros that are added to what an operation gave);
the gradients at the taps are the g of the factors. Weights that no rule covers enter as one copy
for each sample, and the same backward gives their Jacobian.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from ntkit.finite.coverage import Coverage, Edge, evaluate, index_map
from ntkit.finite.factors import Factor, concatenate
from ntkit.finite.rules import RULES, Use
from ntkit.finite.tape import Tapes
from ntkit.graph import Graph, arguments, is_batched
from ntkit.network import Network, Weights, batch_size, take

# The factors of each weight: one list for each set of its elements, uses that are alike summed.
Jacobian = dict[str, list[list[Factor]]]
Factors = dict[Edge, Factor | None]
Taps = dict[fx.Node, list[Edge]]
_SHORT = 64  # operations of a network whose passes are replayed


@dataclass(frozen=True)
class Group:
    """Uses of one weight that see the same elements of it; some see the transposed matrices."""

    uses: list[tuple[int, bool, float]]  # place among the edges, transposed, times a number
    elements: Tensor | None  # place of each element of the factor in the flattened weight; None: in order


@dataclass
class Recipe:
    """How the Jacobian of each weight is put together; made once for a model and its shapes."""

    net: Network
    wanted: tuple[str, ...]
    graph: Graph | None  # None: the network itself, contracted whole
    coverage: Coverage
    by_sample: bool = False  # the network runs under no vmap: one sample after the other
    forward_mode: bool | None = None  # jvp by forward mode is right; None: not yet tried
    by_output: bool = False  # its backward runs under no vmap: one output after the other
    groups: dict[str, list[Group]] = field(default_factory=dict)
    formed: dict[str, str] = field(default_factory=dict)  # covered, but summed as a dense Jacobian: why
    tapes: Tapes = field(default_factory=Tapes)

    @property
    def contracted(self) -> tuple[str, ...]:
        """The weights whose Jacobian comes from autograd alone."""
        return tuple(n for n in self.wanted if n in self.coverage.uncovered)

    def jacobian(self, x: Any, cotangents: Tensor, only: frozenset[str] | None = None) -> Jacobian:
        """Return the factors for a batch; rows of ``cotangents [q, o]`` take the place of outputs."""
        only = frozenset(self.wanted) if only is None else only
        copied = tuple(n for n in self.contracted if n in only)
        if self.by_sample:
            return {n: [[Factor.vector(j)]] for n, j in _by_sample(self, x, cotangents, copied).items()}
        edges = [e for e in self.coverage.edges if e.weights & only] if self.graph else []
        factors, copies, _ = backward(self, x, cotangents, edges, copied)
        jacobian: Jacobian = {name: [[Factor.vector(copies[name])]] for name in copied}
        for name in self.wanted:
            if name in only and name in self.groups:
                jacobian[name] = self._grouped(name, factors)
        formed = [n for n in self.wanted if n in self.formed and n in only]
        if formed:
            jacobian.update(self._formed(formed, factors, batch_size(x), cotangents.shape[0]))
        return jacobian

    @property
    def streams(self) -> bool:
        """Whether `stream` hands over one weight after the other, and no more is held at a time."""
        readable = self.graph is not None and not self.graph.mutates and not self.by_output
        return readable and not self.by_sample and not self.contracted and not self._is_short

    def stream(
        self, x: Any, cotangents: Tensor, take: Callable[[Jacobian], None], only: frozenset[str] | None = None
    ) -> None:
        """Hand over the `jacobian` in parts, each as soon as the backward pass has brought all of its uses.

        Where that is not possible (a network that is contracted, or short), it is one part.
        """
        only = frozenset(self.wanted) if only is None else only
        if not self.streams:
            take(self.jacobian(x, cotangents, only))
            return
        taps = _taps([e for e in self.coverage.edges if e.weights & only])
        awaited = {
            name: {node for node, here in taps.items() if any(name in e.weights for e in here)}
            for name in self.wanted
            if name in only and name in self.groups
        }
        factors: Factors = {}

        def arrived(node: fx.Node, g: Tensor, fixed: dict[str, Any], moving: dict[str, Tensor]) -> None:
            factors.update((e, factor_of(e, g.transpose(0, 1), fixed, moving)) for e in taps[node])
            for nodes in awaited.values():
                nodes.discard(node)
            complete = [name for name, nodes in awaited.items() if not nodes]
            take({name: self._grouped(name, factors) for name in complete})
            for name in complete:
                del awaited[name]
            for edge in [e for e in factors if not e.weights & (awaited.keys() | self.formed.keys())]:
                del factors[edge]

        run_passes(self, taps, (), self.net.weights, self.net.buffers, x, cotangents, arrived)
        rest = {name: self._grouped(name, factors) for name in awaited}
        formed = [n for n in self.wanted if n in self.formed and n in only]
        if formed:
            rest |= self._formed(formed, factors, batch_size(x), cotangents.shape[0])
        take(rest)

    @property
    def _is_short(self) -> bool:
        return self.graph is not None and len(self.graph.nodes) <= _SHORT

    def passes(
        self, x: Any, cotangents: Tensor, taps: Taps, copied: tuple[str, ...], weights: Weights
    ) -> Passes:
        """Run forward and backward; a short network's are written out at the second call of a shape."""
        values = weights, self.net.buffers, x, cotangents

        def run(*values: Any) -> Passes:
            return run_passes(self, taps, copied, *values)

        if self.graph is None or self.graph.mutates or self.by_output or not self._is_short:
            return run(*values)
        leaves, structure = pytree.tree_flatten((x, cotangents))
        edges = tuple(edge for here in taps.values() for edge in here)
        shapes = tuple(t.shape for t in leaves)
        return self.tapes.run((shapes, repr(structure), edges, copied), run, *values)  # no hash in torch 2.6

    def gradients(
        self, out: Tensor, leaves: list[Tensor], rows: Tensor, last: bool = False
    ) -> list[Tensor | None]:
        """Return d (row . out) / d leaf for each of ``rows [q, *out]``, None where nothing arrives.

        ``last``: nothing else is asked of these outputs, so what was saved for them may go.
        """
        if not leaves or not out.requires_grad:
            return [None] * len(leaves)
        options: dict[str, Any] = dict(allow_unused=True, retain_graph=not last)
        if rows.shape[0] > 1 and not self.by_output:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message=".*performance drop.*")
                    return list(torch.autograd.grad(out, leaves, rows, is_grads_batched=True, **options))
            except RuntimeError:
                if last:
                    raise
                self.by_output = True  # an operation whose backward has no batching rule
        if rows.shape[0] == 1:
            grads = torch.autograd.grad(out, leaves, rows[0], **options)
            return [None if g is None else g.unsqueeze(0) for g in grads]
        result: list[Tensor | None] = [None] * len(leaves)
        for i, row in enumerate(rows):
            for j, grad in enumerate(torch.autograd.grad(out, leaves, row, **options)):
                if grad is not None:
                    whole = result[j]
                    if whole is None:
                        result[j] = whole = grad.new_empty(rows.shape[0], *grad.shape)
                    whole[i] = grad
        return result

    def outputs_of(self, x: Any) -> Callable[[Weights], Tensor]:
        """Return the outputs ``[n, o]`` of a batch as a function of the wanted weights."""
        fixed, buffers = self.net.weights, self.net.buffers

        def outputs(weights: Weights) -> Tensor:
            merged = {**fixed, **weights}
            if self.graph is None:
                return self.net.outputs(merged, x)
            return quiet_vmap(lambda one: self.graph.run(merged, buffers, one, {}))(x)  # pyright: ignore

        return outputs

    def form(self, name: str, groups: list[list[Factor]], n: int, q: int) -> Tensor:
        """Return the Jacobian ``[n, q, p]`` of one weight from its factors."""
        weight = self.net.weights[name]
        total = weight.new_zeros(n, q, weight.numel())
        for place, group in enumerate(groups):
            elements = self.groups[name][place].elements if name in self.groups else None
            for factor in group:
                dense = factor.dense().reshape(n, q, -1)
                if elements is None:
                    total += dense
                else:
                    total.index_add_(2, elements.to(total.device), dense)
        return total

    def _grouped(self, name: str, factors: Factors) -> list[list[Factor]]:
        result = []
        for group in self.groups[name]:
            alike: dict[tuple, list[Factor]] = {}
            for place, swap, scale in group.uses:
                factor = factors.get(self.coverage.edges[place])
                if factor is not None:
                    factor = (factor.swapped() if swap else factor).scaled(scale)
                    key = (factor.left_has_outputs, type(factor.left), type(factor.right))
                    alike.setdefault(key, []).append(factor)
            result.append([concatenate(f) for f in alike.values()])
        return result

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
                cotangent.index_add_(1, order.reshape(-1), dense)
            (pulled,) = quiet_vmap(pull)(cotangent.reshape(n * q, *value.shape))
            for k in wanted:
                total[k] += pulled[k].reshape(n * q, -1)
        return {k: [[Factor.vector(total[k].reshape(n, q, -1))]] for k in names}


def quiet_vmap(function: Callable, **options: Any) -> Callable:
    """torch.vmap that says nothing where an operation has no batching rule and is looped over."""

    def quiet(*args: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*performance drop.*")
            return torch.vmap(function, **options)(*args)

    return quiet


class Passes(NamedTuple):
    """What a forward and a backward pass brought to each tapped operation, one after the other."""

    out: Tensor
    gradients: list[Tensor | None]  # [q, n, *shape]
    fixed: list[dict[str, Any]]
    moving: list[dict[str, Tensor]]
    jacobians: dict[str, Tensor]  # of weights that entered as copies, [n, q, *shape]


def backward(
    recipe: Recipe,
    x: Any,
    cotangents: Tensor,
    edges: Sequence[Edge],
    copied: tuple[str, ...],
    weights: Weights | None = None,
) -> tuple[Factors, dict[str, Tensor], Tensor]:
    """Run forward under vmap and backward for all cotangents; return factors, Jacobians, outputs."""
    weights = recipe.net.weights if weights is None else weights
    taps = _taps(edges)
    found = recipe.passes(x, cotangents, taps, copied, weights)
    factors: Factors = {}
    for here, g, fixed, moving in zip(taps.values(), found.gradients, found.fixed, found.moving, strict=True):
        if g is not None:
            factors |= {edge: factor_of(edge, g.transpose(0, 1), fixed, moving) for edge in here}
    return factors, found.jacobians, found.out


def run_passes(
    recipe: Recipe,
    taps: Taps,
    copied: tuple[str, ...],
    weights: Weights,
    buffers: Weights,
    x: Any,
    cotangents: Tensor,
    arrived: Callable[[fx.Node, Tensor, dict[str, Any], dict[str, Tensor]], None] | None = None,
) -> Passes:
    """Run forward under vmap, with taps and copies of some weights, and backward for all cotangents.

    With ``arrived``, it gets what each tap gets as soon as it is there, and nothing of it is kept.
    """
    n, graph = batch_size(x), recipe.graph
    fixed: dict[fx.Node, dict] = {}
    with torch.enable_grad():
        zero = cotangents.new_zeros(())
        zeros = {t.name: zero.expand(n, *t.meta["tensor_meta"].shape).requires_grad_() for t in taps}
        copies = {k: weights[k].detach().expand(n, *weights[k].shape).requires_grad_() for k in copied}

        def one(x: Any, zeros: dict[str, Tensor], copies: dict[str, Tensor]) -> tuple:
            merged = {**weights, **copies}
            saved: dict[str, dict] = {}
            if graph is None:
                return recipe.net.sample(merged, x), saved
            mutates = graph.mutates

            def tap(node: fx.Node, args: tuple, kwargs: dict) -> Any:
                args, kwargs = _detached(args, kwargs, node, taps[node])
                seen, saved[node.name] = _split(arguments(node, args, kwargs), copy=mutates)
                fixed[node] = seen
                y = node.target(*args, **kwargs)  # pyright: ignore
                return y + zeros[node.name]

            out = graph.run(merged, buffers, x, dict.fromkeys(taps, tap))
            return out, saved

        out, saved = quiet_vmap(one)(x, zeros, copies)
        leaves = [*zeros.values(), *copies.values()]
        rows = cotangents[:, None].expand(cotangents.shape[0], *out.shape)
        if arrived is not None:
            for node in taps:
                zeros[node.name].register_hook(_handing(node, len(rows), fixed, saved, arrived))
            recipe.gradients(out, leaves, rows, last=True)
            return Passes(out.detach(), [], [], [], {})
        grads = recipe.gradients(out, leaves, rows)
    jacobians = {}
    for k, grad in zip(copied, grads[len(zeros) :], strict=True):
        zero = weights[k].new_zeros(1).expand(n, cotangents.shape[0], *weights[k].shape)
        jacobians[k] = zero if grad is None else grad.transpose(0, 1)
    moving = [saved[t.name] for t in taps]
    return Passes(out, grads[: len(taps)], [fixed[t] for t in taps], moving, jacobians)


def _taps(edges: Sequence[Edge]) -> Taps:
    taps: Taps = {}
    for edge in edges:
        taps.setdefault(edge.node, []).append(edge)
    return taps


def _handing(
    node: fx.Node, rows: int, fixed: dict[fx.Node, dict], saved: dict[str, dict], arrived: Callable[..., None]
) -> Callable[[Tensor], Tensor]:
    """Return a hook that takes the gradient ``[q, n, *shape]`` of a tap out of a batched backward pass."""

    def hook(g: Tensor) -> Tensor:
        if rows == 1:
            whole = g.unsqueeze(0)
        else:
            level = torch._C._vmapmode_increment_nesting() - 1  # that of `is_grads_batched`
            torch._C._vmapmode_decrement_nesting()
            whole = torch._remove_batch_dim(g, level, rows, 0)  # pyright: ignore[reportPrivateImportUsage]
        arrived(node, whole, fixed.pop(node), saved.pop(node.name))
        return g.new_zeros(()).expand(g.shape)

    return hook


def factor_of(edge: Edge, g: Tensor, fixed: dict[str, Any], moving: dict[str, Tensor]) -> Factor | None:
    """Ask the rule of an operation for what one backward pass, ``[n, o, *shape]``, brought to it.

    ``fixed`` holds the arguments alike for all samples, ``moving`` those that have the sample as first axis.
    """
    args, batched = {}, set()
    for name, value in fixed.items():
        if isinstance(value, list):
            args[name] = [moving.get(f"{name}.{i}", v) for i, v in enumerate(value)]
            batched |= {(name, i) for i in range(len(value)) if f"{name}.{i}" in moving}
        else:
            args[name] = moving.get(name, value)
            batched |= {(name, None)} if name in moving else set()
    return RULES[edge.node.target][1](Use(g, args, edge.slot, frozenset(batched)))  # pyright: ignore


def _by_sample(recipe: Recipe, x: Any, cotangents: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Return Jacobians by running the network itself on one sample at a time: always right."""
    rows: dict[str, list[Tensor]] = {k: [] for k in names}
    values = recipe.net.weights
    for i in range(batch_size(x)):
        with torch.enable_grad():
            weights = {k: w.detach().requires_grad_(k in names) for k, w in values.items()}
            out = recipe.net.outputs(weights, take(x, slice(i, i + 1)))
            grads = recipe.gradients(out, [weights[k] for k in names], cotangents[:, None])
        for k, grad in zip(names, grads, strict=True):
            empty = cotangents.new_zeros(cotangents.shape[0], *values[k].shape)
            rows[k].append(empty if grad is None else grad)
    return {k: torch.stack(r) for k, r in rows.items()}


def _detached(args: tuple, kwargs: dict, node: fx.Node, edges: list[Edge]) -> tuple[tuple, dict]:
    """Cut the gradient of the weights that the factors of a node stand for."""
    sources = {e.source for e in edges}

    def walk(value: Any, template: Any) -> Any:
        if isinstance(template, fx.Node):
            return value.detach() if template in sources else value
        if isinstance(template, (list, tuple)):
            return type(value)(walk(v, t) for v, t in zip(value, template, strict=True))
        return value

    names = {k: walk(v, node.kwargs[k]) for k, v in kwargs.items()}
    return tuple(walk(a, t) for a, t in zip(args, node.args, strict=True)), names


def _split(bound: dict[str, Any], copy: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Part the arguments of an operation into those alike for all samples and those that are not."""
    fixed: dict[str, Any] = {}
    moving: dict[str, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        return value.detach().clone() if copy else value.detach()

    for name, value in bound.items():
        if isinstance(value, (list, tuple)):
            items = list(value)
            for i, item in enumerate(items):
                if is_batched(item):
                    moving[f"{name}.{i}"], items[i] = keep(item), None
            fixed[name] = items
        elif is_batched(value):
            moving[name], fixed[name] = keep(value), None
        else:
            fixed[name] = value
    return fixed, moving


def join_index_maps(recipe: Recipe, probe: dict[Edge, Factor]) -> None:
    """Decide for each covered weight which uses share their elements, from the factors of a probe."""
    graph, coverage = recipe.graph, recipe.coverage
    assert graph is not None
    shapes = {k: w.shape for k, w in recipe.net.weights.items()}
    for name in recipe.wanted:
        uses = [(i, e) for i, e in enumerate(coverage.edges) if name in e.weights and e in probe]
        if name in coverage.uncovered or not uses:
            continue
        if any(not e.is_view for _, e in uses):
            recipe.formed[name] = "derived weight"
            continue
        maps: list[Tensor] = []
        groups: list[list[tuple[int, bool, float]]] = []
        for place, edge in uses:
            factor = probe[edge]
            places, scale = index_map(graph, edge, shapes)
            elements = factor.arrange(places)
            swap, group = _find(elements, maps, factor)
            if group is None or scale == 0:
                recipe.formed[name] = "times zero" if scale == 0 else "used in overlapping parts"
                break
            if group == len(maps):
                maps.append(elements)
                groups.append([])
            groups[group].append((place, swap, scale))
        else:
            recipe.groups[name] = [
                Group(g, None if _in_order(m, shapes[name]) else m.reshape(-1))
                for g, m in zip(groups, maps, strict=True)
            ]


def _in_order(elements: Tensor, shape: torch.Size) -> bool:
    flat = elements.reshape(-1)
    return flat.numel() == shape.numel() and bool((flat == torch.arange(flat.numel())).all())


def _find(elements: Tensor, maps: list[Tensor], factor: Factor) -> tuple[bool, int | None]:
    """Find elements among maps: (transposed, place); a new place if disjoint from all, None if neither."""
    for place, other in enumerate(maps):
        if elements.shape == other.shape and bool((elements == other).all()):
            return False, place
        turned = elements.transpose(1, 2)
        if factor.right is not None and turned.shape == other.shape and bool((turned == other).all()):
            return True, place
    overlap = any(bool(torch.isin(elements, other).any()) for other in maps)
    repeated = elements.unique().numel() < elements.numel()
    return False, None if overlap or repeated else len(maps)
