"""Which way each parameter went: by rule and in which order of summation, or by contraction."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ntkit.compute.plan import Plan, format_bytes
from ntkit.display.notebook import Printed
from ntkit.finite.blocks import Measure
from ntkit.finite.jacobian.recipe import Recipe
from ntkit.finite.kinds import Kind
from ntkit.finite.products import cheapest


@dataclass(frozen=True)
class Row:
    """One parameter: its uses, how they are summed, and what that costs for the kernel of a batch.

    ``way`` is ``"structure"`` (never formed), ``"formed"`` (known by rules, but formed because its
    uses see it derived or in overlapping parts) or ``"contraction"`` (formed by autograd).
    """

    parameter: str
    shape: tuple[int, ...]
    uses: tuple[str, ...]
    way: str
    reason: str
    order: str
    flops: int
    bytes: int


@dataclass(frozen=True, repr=False)
class Explanation(Printed):
    """A table of rows, one for each parameter; prints as text.

    ``precision`` is the lowest that the network computes in: what it is known to, and proved to.
    """

    rows: tuple[Row, ...]
    precision: torch.dtype
    dtype: torch.dtype

    def __getitem__(self, parameter: str) -> Row:
        return next(row for row in self.rows if row.parameter == parameter)

    def __str__(self) -> str:
        head = ("parameter", "shape", "uses", "way", "order", "FLOPs", "bytes")
        lines: list[tuple[str, ...]] = [head]
        for r in self.rows:
            uses = ", ".join(f"{n} {op}" if n > 1 else op for op, n in _counted(r.uses))
            way = f"{r.way} ({r.reason})" if r.reason else r.way
            shape = "x".join(map(str, r.shape))
            lines.append(
                (r.parameter, shape, uses or "-", way, r.order, f"{r.flops:.2g}", format_bytes(r.bytes))
            )
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        if self.precision != self.dtype:
            inside, outside = (str(d).removeprefix("torch.") for d in (self.precision, self.dtype))
            text.append(
                f"The network computes in {inside} inside; its kernel, in {outside}, is as exact as that."
            )
        return "\n".join(text)


def explain(recipe: Recipe, size: Measure, plan: Plan, kind: Kind) -> Explanation:
    """Make the table for the kernel of ``plan``."""
    n, m = plan.shape[:2]
    weights = recipe.net.weights
    rows = []
    for name in recipe.wanted:
        edges = [e for e in recipe.coverage.edges if name in e.weights]
        uses = tuple(str(e.node.target).removeprefix("aten.").removesuffix(".default") for e in edges)
        flops, orders = 0, []
        for sizes in size.uses.get(name, []):
            order, cost = cheapest(
                (n, size.outputs, *sizes[2:]), (m, size.outputs, *sizes[2:]), kind, size.item
            )
            orders.append(order)
            flops += cost // 2 if plan.symmetric else cost
        if name in recipe.coverage.uncovered:
            way, reason = "contraction", recipe.coverage.uncovered[name]
        elif name in recipe.formed:
            way, reason = "formed", recipe.formed[name]
        else:
            way, reason = "structure", "" if edges else "no use: zero"
        slots = sum(g * t * (size.outputs * r + c) for _, _, g, t, r, c in size.uses.get(name, []))
        held = max(n, m) * size.item * slots
        order = "/".join(dict.fromkeys(orders)) or "-"
        rows.append(Row(name, tuple(weights[name].shape), uses, way, reason, order, flops, held))
    return Explanation(tuple(rows), recipe.lowest, recipe.net.dtype)


def _counted(uses: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(op, uses.count(op)) for op in dict.fromkeys(uses)]
