"""A network at weights along a step of training: its outputs, slopes, kinks, and Jacobian by structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import jacrev

from ntkit.compute.scripted import jvp
from ntkit.finite.jacobian.backward import quiet_vmap
from ntkit.finite.jacobian.recipe import Jacobian, Recipe
from ntkit.finite.jacobian.taps import Factors, Tapped, Taps, factors_at, replaced, taps_of, zeros_at
from ntkit.graph import Arguments, Graph, arguments
from ntkit.inputs import Batch, batch_size
from ntkit.training.functional.kink_signs import switching


@dataclass(frozen=True)
class Place:
    """A network at given weights; ``s [n]`` says where along a step each row of a batch stands."""

    recipe: Recipe
    graph: Graph
    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    sources: Mapping[fx.Node, list[Tensor]]

    def outputs(self, x: Batch, s: Tensor) -> Tensor:
        """Return the outputs ``[n, o]``."""
        return quiet_vmap(lambda x, s: self._run(x, s, {}))(x, s)

    def slopes(self, x: Batch, s: Tensor) -> Tensor:
        """Return d outputs / d s, ``[n, o]``."""
        try:
            return jvp(lambda s: self.outputs(x, s), (s,), (torch.ones_like(s),))[1]
        except NotImplementedError:  # an operation without a forward derivative; rows depend on their own s
            return jacrev(lambda s: self.outputs(x, s).sum(0))(s).T

    def switches(self, x: Batch, s: Tensor) -> Tensor:
        """Return the numbers ``[n, u]`` at whose changes of sign the outputs have a kink."""

        def one(x: Batch, s: Tensor) -> Tensor:
            seen: list[Tensor] = []

            def look(node: fx.Node, args: tuple, kwargs: dict) -> Any:
                seen.extend(switching(node, args, kwargs))
                return node.target(*args, **kwargs)  # pyright: ignore

            smooth = {e.node for e in self.recipe.coverage.edges}
            self._run(x, s, dict.fromkeys((n for n in self.graph.nodes if n not in smooth), look))
            return torch.cat([v.reshape(-1) for v in seen]) if seen else s.new_zeros(0)

        return quiet_vmap(one)(x, s)

    def jacobian(self, x: Batch, s: Tensor | None, rows: Tensor) -> Jacobian:
        """Return the factors of d (rows . outputs) / d weights, for ``rows [q, n, o]``."""
        factors = self.factors(x, s, rows)
        return {name: self.recipe.grouped(name, factors) for name in self.recipe.wanted}

    def factors(self, x: Batch, s: Tensor | None, rows: Tensor) -> Factors:
        """Return the factor of each use of a weight."""
        n, taps = batch_size(x), taps_of(self.recipe.coverage.edges)
        fixed: dict[str, Arguments] = {}
        s = rows.new_zeros(n) if s is None else s
        with torch.enable_grad():
            zeros = zeros_at(taps, rows, n)
            out, moving = quiet_vmap(self._tapped(taps, fixed))(x, s, zeros)
            grads = self.recipe.backward.gradients(out, list(zeros.values()), rows)
        return factors_at(taps, grads, fixed, moving)

    def _tapped(self, taps: Taps, fixed: dict[str, Arguments]) -> Callable[..., tuple[Tensor, Any]]:
        """Return a row's run with taps, which gives outputs and its own arguments of the operations."""

        def one(x: Batch, s: Tensor, zeros: dict[str, Tensor]) -> tuple[Tensor, dict[str, dict[str, Tensor]]]:
            def between(node: fx.Node, args: tuple, kwargs: dict) -> tuple[Arguments, Tensor]:
                first = self._ends(node, args, kwargs)[0]
                return arguments(node, *first), self._affine(node, args, kwargs, s)

            tap = Tapped(between, zeros, fixed, self.graph.mutates)
            return self._run(x, s, dict.fromkeys(taps, tap)), tap.moving

        return one

    def _run(self, x: Batch, s: Tensor, at: Mapping[fx.Node, Callable]) -> Tensor:
        """Run one row; operations with weights are interpolated, unless ``at`` does that itself."""
        edges = self.recipe.coverage.edges
        lerp: dict[fx.Node, Callable] = dict.fromkeys(
            (e.node for e in edges), lambda node, args, kwargs: self._affine(node, args, kwargs, s)
        )
        return self.graph.run(self.weights, self.buffers, x, {**lerp, **at})

    def _affine(self, node: fx.Node, args: tuple, kwargs: dict, s: Tensor) -> Any:
        ends = [node.target(*a, **k) for a, k in self._ends(node, args, kwargs)]  # pyright: ignore
        return ends[0] if len(ends) == 1 else torch.lerp(ends[0], ends[1], s)

    def _ends(self, node: fx.Node, args: tuple, kwargs: dict) -> list[tuple[tuple, dict]]:
        """Return the arguments of an operation at both ends of the step (or at the one that there is)."""
        count = max(len(self.sources[a]) for a in node.all_input_nodes if a in self.sources)
        return [
            replaced(node, args, kwargs, lambda n, v, i=i: self.sources[n][i] if n in self.sources else v)
            for i in range(count)
        ]


class Places(Place):
    """A network at T places at once: ``sources`` are ``[T, ...]``, rows are one place's after the other."""

    def factors(self, x: Batch, s: Tensor | None, rows: Tensor) -> Factors:
        """Return the factor of each use of a weight, for ``rows [q, T n, o]`` of n samples at ``s [n]``."""
        n, taps = batch_size(x), taps_of(self.recipe.coverage.edges)
        fixed: dict[str, Arguments] = {}
        s = rows.new_zeros(n) if s is None else s

        def step(sources: dict[fx.Node, list[Tensor]], zeros: dict[str, Tensor]) -> tuple[Tensor, Any]:
            place = Place(self.recipe, self.graph, self.weights, self.buffers, sources)
            return quiet_vmap(place._tapped(taps, fixed))(x, s, zeros)

        with torch.enable_grad():
            zeros = zeros_at(taps, rows, rows.shape[1] // n, n)
            out, moving = quiet_vmap(step)(self.sources, zeros)
            grads = self.recipe.backward.gradients(out.flatten(0, 1), list(zeros.values()), rows)
        for node, edges in taps.items():
            for edge in edges:  # rules ask for a weight's shape only, and would not expect one for each row
                name, number = edge.slot
                shape = self.sources[edge.source][0].shape[1:]
                like = rows.new_full((), torch.nan).expand(shape)
                if number is None:
                    fixed[node.name][name] = like
                    moving[node.name].pop(name, None)
                else:
                    fixed[node.name][name][number] = like
                    moving[node.name].pop(f"{name}.{number}", None)
        moving = {name: {k: v.flatten(0, 1) for k, v in seen.items()} for name, seen in moving.items()}
        return factors_at(taps, [g if g is None else g.flatten(1, 2) for g in grads], fixed, moving)
