"""Blocks of a tangent kernel from factors, in panels of samples and outputs that fit a budget."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ntkit.compute.gemm import mirror
from ntkit.compute.plan import Plan, chunks, plan_chunks
from ntkit.compute.threads import fitting_threads
from ntkit.finite.factors import Factor, form
from ntkit.finite.jacobian.coverage import VIEWS
from ntkit.finite.jacobian.recipe import Jacobian, Recipe
from ntkit.finite.kinds import Kind, Panel
from ntkit.finite.products import Sizes, add_diagonals, add_products, cheapest
from ntkit.finite.project import Projection
from ntkit.inputs import Batch, batch_size, take

_GRADIENTS = 8  # of the largest value, that a backward pass holds at a time


@dataclass(frozen=True)
class Measure:
    """What one sample costs: outputs, bytes, and the sizes of the factors of each weight."""

    outputs: int
    per_sample: int
    per_output: int
    at_a_time: int  # of the bytes of an output, where weights are handed over one after the other
    item: int
    uses: dict[str, list[Sizes]]
    by_weight: dict[str, int]  # bytes for one sample and one output


def measure(recipe: Recipe, x: Batch) -> Measure:
    """Measure one sample of a batch."""
    one = take(x, slice(0, 1))
    with torch.no_grad():
        o = recipe.net.direct(one).shape[1]
    cotangents = torch.ones(min(o, 2), o, dtype=recipe.net.dtype, device=recipe.net.device)
    jacobian = recipe.jacobian(one, cotangents)  # of two outputs: whether they can go together shows here
    item = cotangents.element_size()
    activations, taps, largest = 0, 0, 0
    tapped = {e.node for e in recipe.coverage.edges}
    for node in recipe.graph.nodes if recipe.graph is not None else ():
        shape = getattr(node.meta.get("tensor_meta"), "shape", None)
        moves = getattr(node.target, "overloadpacket", None) in VIEWS
        largest = max(largest, 0 if shape is None else shape.numel() * item)
        activations += 0 if shape is None or moves else shape.numel() * item
        taps += shape.numel() * item if shape is not None and node in tapped else 0
    uses, by_weight, seen = {}, {}, 0
    weights = recipe.net.weights
    for name, groups in jacobian.items():
        factors = [f if f.left_has_outputs else f.swapped() for part in groups for f in part.factors]
        uses[name] = [f.sizes for f in factors]
        formed = name in recipe.formed or name in recipe.coverage.uncovered
        by_weight[name] = weights[name].numel() * item if formed else 0
        seen += sum(_right_bytes(f) for f in factors)
    if recipe.graph is None:  # what a network that cannot be read saves for its backward is not known
        activations = 4 * max(by_weight.values(), default=0)
    held = int(1.1 * taps)
    at_a_time = min(held, _GRADIENTS * largest) if recipe.streams else held
    return Measure(o, activations + seen, held, at_a_time, item, uses, by_weight)


def _right_bytes(factor: Factor) -> int:
    right = factor.right
    return right.numel() * right.element_size() if isinstance(right, Tensor) else 0


def plan(recipe: Recipe, size: Measure, n: int, m: int, kind: Kind, symmetric: bool, budget: int) -> Plan:
    """Choose chunks of samples, outputs and weights whose factors take most of the budget."""
    o = size.outputs
    held = budget * 8 // 10
    groups = _weight_groups(recipe, size, held // 4)
    share = max((sum(size.by_weight.get(k, 0) for k in g) for g in groups), default=0)
    per_output = size.per_output + 2 * share
    whole = n * (size.per_sample + o * (size.at_a_time + 2 * share))
    if not symmetric:
        whole = (n + m) * (size.per_sample + o * per_output)
    if whole <= held:  # one backward pass serves each side
        b, q = max(n, m), o
    else:
        b, q = plan_chunks(max(n, m), o, size.per_sample, per_output, held // 2)
    tile = min(b, 256)
    if symmetric and (not kind.pairs_outputs or o == 1):  # half of each tile on the diagonal is lost
        tile = min(tile, max(128, -(-n // 8)))
    while tile > 1 and 2 * tile * b * q * size.item > budget // 8:
        tile = -(-tile // 2)
    flops = 0
    for sizes in size.uses.values():
        for _, _, g, t, r, c in sizes:
            passes = 2 * g * t * r * c * ((n if symmetric else n + m) * (1 + o))
            _, product = cheapest((n, o, g, t, r, c), (m, o, g, t, r, c), kind, size.item)
            flops += passes + (product // 2 if symmetric else product)
    shape = kind.shape(n, m, o)
    result = size.item * int(torch.Size(shape).numel())
    together = whole if b >= max(n, m) and q == o else 2 * b * (size.per_sample + q * per_output)
    peak = together + 3 * tile * b * q * size.item
    return Plan(shape, symmetric, b, q, tile, groups, result, peak, budget, flops)


def _weight_groups(recipe: Recipe, size: Measure, budget: int) -> tuple[tuple[str, ...], ...]:
    """Divide the weights so that the Jacobians of each group fit for one sample and one output."""
    groups: list[list[str]] = [[]]
    held = 0
    for name in recipe.wanted:
        need = 2 * size.by_weight.get(name, 0)
        if groups[-1] and held + need > budget:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += need
    return tuple(tuple(g) for g in groups)


def block(
    recipe: Recipe, plan: Plan, x1: Batch, x2: Batch | None, kind: Kind, o: int, only: frozenset | None
) -> Tensor:
    """Return the block as users get it; ``x2=None`` is ``x1``, of which half is computed."""
    n, m = batch_size(x1), batch_size(x1 if x2 is None else x2)
    out = recipe.net.weights[recipe.wanted[0]].new_zeros(kind.layout(n, m, o))
    with fitting_threads(plan.flops) if out.device.type == "cpu" else nullcontext():
        for group in plan.weights:
            names = frozenset(group) if only is None else only & frozenset(group)
            if names:
                _add_group(out, recipe, plan, x1, x2, kind, o, names)
    return kind.view(out, o)


def _add_group(
    out: Tensor, recipe: Recipe, plan: Plan, x1: Batch, x2: Batch | None, kind: Kind, o: int, names: frozenset
) -> None:
    symmetric = x2 is None
    second = x1 if symmetric else x2
    rows = _panels(o, batch_size(x1), plan)
    columns = rows if symmetric else _panels(o, batch_size(second), plan)
    eye = torch.eye(o, dtype=out.dtype, device=out.device)

    for number, row in enumerate(rows):
        left: Jacobian | None = None
        for column in columns[number:] if symmetric else columns:
            if not kind.pairs_outputs and row[0] != column[0]:
                continue
            same = symmetric and row == column
            if left is None and not same:
                left = recipe.jacobian(take(x1, row[1]), eye[row[0]], names)
            window = kind.panel(out, row, column)
            block = kind.block(window)
            _add_parts(block, recipe, plan, left, take(second, column[1]), eye[column[0]], kind, same, names)
            if same:
                mirror(block)
            if block.data_ptr() != window.data_ptr():
                window += block.view(window.shape)
            if symmetric and not same:
                kind.panel(out, column, row).copy_(kind.transposed(window))


def _add_parts(
    block: Tensor,
    recipe: Recipe,
    plan: Plan,
    left: Jacobian | None,
    x: Batch,
    cotangents: Tensor,
    kind: Kind,
    same: bool,
    names: frozenset,
) -> None:
    """Add what each weight contributes as its Jacobian arrives, with that of ``left`` or with itself."""

    def add(part: Jacobian) -> None:
        other = part if left is None else {name: left[name] for name in part}
        add_products(block, pairs(other, part), kind, same, plan.tile, plan.budget // 8)

    recipe.stream(x, cotangents, add, names)


def _panels(o: int, n: int, plan: Plan) -> list[Panel]:
    return [(q, s) for q in chunks(o, plan.outputs) for s in chunks(n, plan.samples)]


def pairs(left: Jacobian, right: Jacobian) -> Iterator[tuple[Factor, Factor]]:
    """Return all pairs of uses of the same elements of the same weight."""
    for name, groups in left.items():
        for part, other in zip(groups, right[name], strict=True):
            for a in part.factors:
                for b in other.factors:
                    yield a, b


def diagonal(recipe: Recipe, plan: Plan, x: Batch, kind: Kind, o: int) -> Tensor:
    """Return each sample with itself, as users get it, without any n x n matrix."""
    n = batch_size(x)
    out = recipe.net.weights[recipe.wanted[0]].new_zeros(kind.diagonal_shape(n, o))
    eye = torch.eye(o, dtype=out.dtype, device=out.device)
    for group in plan.weights:
        for samples in chunks(n, plan.samples):
            for q in chunks(o, plan.outputs):
                left = recipe.jacobian(take(x, samples), eye[q], frozenset(group))
                for p in chunks(o, plan.outputs) if kind.pairs_outputs else (q,):
                    right = left if p == q else recipe.jacobian(take(x, samples), eye[p], frozenset(group))
                    add_diagonals(kind.diagonal_panel(out, samples, q, p), pairs(left, right), kind)
    return kind.diagonal_view(out, o)


def features(recipe: Recipe, plan: Plan, x: Batch, o: int, projection: Projection | None = None) -> Tensor:
    """Return the Jacobian ``[n, o, P]``, weights in the order of the network, or its projection."""
    n = batch_size(x)
    weights = recipe.net.weights
    widths = [weights[k].numel() for k in recipe.wanted]
    width = sum(widths) if projection is None else projection.m
    out = weights[recipe.wanted[0]].new_zeros(n, o, width)
    eye = torch.eye(o, dtype=out.dtype, device=out.device)
    starts = dict(zip(recipe.wanted, [sum(widths[:i]) for i in range(len(widths))], strict=True))
    for group in plan.weights:
        for samples in chunks(n, plan.samples):
            for q in chunks(o, plan.outputs):
                jacobian = recipe.jacobian(take(x, samples), eye[q], frozenset(group))
                for name, factors in jacobian.items():
                    start, size = starts[name], weights[name].numel()
                    where = out[samples, q]
                    if projection is None:
                        form(factors, where[..., start : start + size])
                    else:
                        formed = out.new_empty(*where.shape[:2], size)
                        form(factors, formed)
                        projection.add(where, formed, start)
    return out
