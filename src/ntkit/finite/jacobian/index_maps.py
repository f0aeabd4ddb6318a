"""Which uses of a weight see the same elements of it, and in which order."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.finite.factors import Factor
from ntkit.finite.jacobian.coverage import Edge, index_map
from ntkit.finite.jacobian.recipe import Group, Recipe


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
        if len(uses) == 1 and _keeps_order(uses[0][1], probe[uses[0][1]], shapes[name]):
            recipe.groups[name] = [Group([(uses[0][0], False, 1.0)], None)]
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


def _keeps_order(edge: Edge, factor: Factor, shape: torch.Size) -> bool:
    """Return whether a factor has the elements of a weight in its own order, without going through them."""
    if edge.source.op != "placeholder":
        return False
    weight = torch.empty(shape, dtype=torch.uint8)
    arranged = factor.arrange(weight)
    same = arranged.data_ptr() == weight.data_ptr() and arranged.numel() == weight.numel()
    return same and arranged.is_contiguous()


def _in_order(elements: Tensor, shape: torch.Size) -> bool:
    flat = elements.reshape(-1)
    return flat.numel() == shape.numel() and bool((flat == torch.arange(flat.numel())).all())


def _find(elements: Tensor, maps: list[Tensor], factor: Factor) -> tuple[bool, int | None]:
    """Find elements among maps: (transposed, place); a new place if disjoint from all, else None."""
    for place, other in enumerate(maps):
        if elements.shape == other.shape and bool((elements == other).all()):
            return False, place
        turned = elements.transpose(1, 2)
        if factor.right is not None and turned.shape == other.shape and bool((turned == other).all()):
            return True, place
    overlap = any(bool(torch.isin(elements, other).any()) for other in maps)
    repeated = elements.unique().numel() < elements.numel()
    return False, None if overlap or repeated else len(maps)
