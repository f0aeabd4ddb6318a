"""The structure of a network whose weights enter only operations with known factors, proved or absent."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from ntkit.faults import foreign
from ntkit.finite.factors import form
from ntkit.finite.jacobian.backward import quiet_vmap
from ntkit.finite.jacobian.coverage import cover, evaluate
from ntkit.finite.jacobian.index_maps import join_index_maps
from ntkit.finite.jacobian.recipe import Recipe
from ntkit.graph import Graph, is_mutable, trace
from ntkit.inputs import Batch, batch_size, take
from ntkit.network import Network, Weights
from ntkit.training.functional.place import Place, Places

_PROBE, _PROBED = 0.375, 32  # a place on a step, and how many samples are compared
_SINGLE = 2e-4  # what float32 may differ by
_SMALL = 2**20  # weights of a network of which several steps may go together


@dataclass(frozen=True)
class Structure:
    """A network whose trained weights enter only operations that are affine in them, with known factors.

    Along a step from w to w' such an operation gives (1 - s) op(h; w) + s op(h; w'), so that rows at
    different s share both products and no weights are made for each of them.
    """

    recipe: Recipe
    graph: Graph
    together: bool = False  # several places go through it at once, with the same result

    @classmethod
    def of(cls, net: Network, wanted: tuple[str, ...], x: Batch) -> Structure | None:
        """Return the structure of a network at inputs of a shape, or None where there is none."""
        try:
            graph = trace(net, x)
            if graph.reads:  # a constant of the graph that other samples may have another of
                return None
            recipe = Recipe(net, wanted, graph, cover(graph, frozenset(wanted)), net.dtype)
            structure = cls(recipe, graph)
            if not structure._holds(take(x, slice(0, 1))) or not structure._knows(take(x, slice(0, _PROBED))):
                return None
        except Exception as error:  # whatever a user's network may raise when traced or batched
            foreign(error, "reading the structure of a network")
            return None
        if sum(net.weights[name].numel() for name in wanted) > _SMALL:
            return structure
        try:
            return replace(structure, together=structure._holds_together(take(x, slice(0, 2))))
        except Exception as error:  # the same, for what cannot be batched twice
            foreign(error, "running several steps at once")
            return structure

    @property
    def width(self) -> int:
        """About how many numbers one row holds on its way through the network."""
        shapes = (getattr(n.meta.get("tensor_meta"), "shape", None) for n in self.graph.nodes)
        return 1 + sum(shape.numel() for shape in shapes if shape is not None)

    def at(self, first: Weights, last: Weights | None, buffers: Weights) -> Place:
        """Return the network at weights ``first``, or along the step from there to ``last``."""
        ends = [{**buffers, **w} for w in (first, last) if w is not None]
        return Place(self.recipe, self.graph, dict(first), dict(buffers), self._sources(ends))

    def at_once(self, weights: Weights, fixed: Weights, buffers: Weights) -> Places:
        """Return the network at T places at once; weights are ``[T, ...]``, but those that are ``fixed``."""

        def sources(weights: Weights) -> dict[fx.Node, list[Tensor]]:
            return self._sources([{**buffers, **fixed, **weights}])

        one = {name: w[0] for name, w in weights.items()}
        return Places(
            self.recipe, self.graph, {**fixed, **one}, dict(buffers), quiet_vmap(sources)(dict(weights))
        )

    def _sources(self, ends: list[dict[str, Tensor]]) -> dict[fx.Node, list[Tensor]]:
        sources = dict.fromkeys(e.source for e in self.recipe.coverage.edges)
        return {source: [evaluate(self.graph, source, w) for w in ends] for source in sources}

    def _holds(self, x: Batch) -> bool:
        """Compare with the network and autograd, along a step of random direction."""
        recipe, net = self.recipe, self.recipe.net
        if recipe.coverage.uncovered or any(is_mutable(e.node) for e in recipe.coverage.edges):
            return False
        first, last, buffers = net.weights, self._elsewhere(), net.buffers
        middle = {
            k: torch.lerp(w, last[k], _PROBE).requires_grad_(k in recipe.wanted) for k, w in first.items()
        }
        with torch.enable_grad():
            truth = net.outputs(middle, x, {k: b.clone() for k, b in buffers.items()})
            leaves = [middle[k] for k in recipe.wanted]
            gradients = torch.autograd.grad(truth.sum(), leaves, allow_unused=True)
        place, s = self.at(first, last, buffers), truth.new_full((1,), _PROBE)
        rows = torch.ones_like(truth.detach())[None]
        join_index_maps(recipe, {e: f for e, f in place.factors(x, s, rows).items() if f is not None})
        if recipe.formed or not _close(place.outputs(x, s), truth.detach()):
            return False
        factors = place.jacobian(x, s, rows)
        for name, gradient in zip(recipe.wanted, gradients, strict=True):
            flat = truth.new_zeros(1, 1, first[name].numel())
            form(factors[name], flat)
            if not _close(flat, torch.zeros_like(flat) if gradient is None else gradient.reshape(1, 1, -1)):
                return False
        return True

    def _knows(self, x: Batch) -> bool:
        """Compare outputs of several samples: what a network reads from one is a constant of its graph."""
        net = self.recipe.net
        first, buffers, truth = net.weights, net.buffers, net.outputs(net.weights, x)
        return _close(self.at(first, None, buffers).outputs(x, truth.new_zeros(len(truth))), truth.detach())

    def _holds_together(self, x: Batch) -> bool:
        """Compare two places at once with each by itself."""
        wanted, net = self.recipe.wanted, self.recipe.net
        first, last, buffers = net.weights, self._elsewhere(), net.buffers
        fixed = {k: w for k, w in first.items() if k not in wanted}
        apart = [self.at(weights, None, buffers) for weights in (first, last)]
        rows = torch.ones_like(net.outputs(first, x).detach())[None]
        both = self.at_once({k: torch.stack([first[k], last[k]]) for k in wanted}, fixed, buffers)
        factors = both.jacobian(x, None, rows.repeat(1, 2, 1))
        expected = [place.jacobian(x, None, rows) for place in apart]
        for name in wanted:
            flat = rows.new_zeros(2 * batch_size(x), 1, first[name].numel())
            truth = torch.zeros_like(flat)
            form(factors[name], flat)
            for part, jacobian in zip(truth.chunk(2), expected, strict=True):
                form(jacobian[name], part)
            if not _close(flat, truth):
                return False
        return True

    def _elsewhere(self) -> dict[str, Tensor]:
        """Return weights a step of random direction away from those of the network."""
        net = self.recipe.net
        draw = torch.Generator(net.device).manual_seed(0)
        return {
            k: w + w.abs().mean() * torch.randn(w.shape, dtype=w.dtype, device=w.device, generator=draw)
            if k in self.recipe.wanted
            else w
            for k, w in net.weights.items()
        }


def _close(a: Tensor, b: Tensor) -> bool:
    if a.numel() == 0:
        return True
    tol = 1e-10 if b.dtype == torch.float64 else _SINGLE
    return bool((a - b).abs().max() <= tol * (b.abs().max() + tol))
