"""Weights used element by element: sums, products, concatenations, with broadcasting."""

from __future__ import annotations

import torch

from ntkit.finite.factors import Factor
from ntkit.finite.rules import Use, reduce_to, rule

aten = torch.ops.aten


@rule(aten.add.Tensor, "self", "other")
@rule(aten.add_.Tensor, "other")
def add(use: Use) -> Factor | None:
    """Y = a + alpha b."""
    scale = use.args["alpha"] if use.slot[0] == "other" else 1
    return Factor.vector(reduce_to(use.g if scale == 1 else scale * use.g, use.weight.shape))


@rule(aten.sub.Tensor, "self", "other")
@rule(aten.sub_.Tensor, "other")
def sub(use: Use) -> Factor | None:
    """Y = a - alpha b."""
    scale = -use.args["alpha"] if use.slot[0] == "other" else 1
    return Factor.vector(reduce_to(scale * use.g, use.weight.shape))


@rule(aten.mul.Tensor, "self", "other")
def mul(use: Use) -> Factor | None:
    """Y = a b, element by element; a matrix is reduced over its broadcast axes at once."""
    return Factor.vector(
        reduce_to(use.g * _beside(use, "other" if use.slot[0] == "self" else "self"), use.weight.shape)
    )


@rule(aten.div.Tensor, "self")
def div(use: Use) -> Factor | None:
    """Y = a / b, for a."""
    return Factor.vector(reduce_to(use.g / _beside(use, "other"), use.weight.shape))


@rule(aten.addcmul.default, "self", "tensor1", "tensor2")
def addcmul(use: Use) -> Factor | None:
    """Y = a + value b c."""
    if use.slot[0] == "self":
        return Factor.vector(reduce_to(use.g, use.weight.shape))
    other = _beside(use, "tensor2" if use.slot[0] == "tensor1" else "tensor1")
    return Factor.vector(reduce_to(use.args["value"] * use.g * other, use.weight.shape))


@rule(aten.where.self, "self", "other")
@rule(aten.where.ScalarOther, "self")
@rule(aten.where.ScalarSelf, "other")
def where(use: Use) -> Factor | None:
    """Y = a where a condition holds, else b."""
    taken = _beside(use, "condition") == (use.slot[0] == "self")
    return Factor.vector(reduce_to(use.g * taken, use.weight.shape))


@rule(aten.masked_fill.Scalar, "self")
def masked_fill(use: Use) -> Factor | None:
    """Y = a where a mask does not hold, else a number."""
    return Factor.vector(reduce_to(use.g * (_beside(use, "mask") == 0), use.weight.shape))


def _beside(use: Use, name: str) -> torch.Tensor | float:
    """Return another argument, to be multiplied with the gradient ``[n, o, *shape]``."""
    other = use.args[name]
    if not isinstance(other, torch.Tensor):
        return other
    other = use.tensor(name)
    return other.reshape(other.shape[0], 1, *(1,) * (use.g.ndim - 1 - other.ndim), *other.shape[1:])


@rule(aten.prelu.default, "weight")
def prelu(use: Use) -> Factor | None:
    """Y = max(0, x) + slope min(0, x), a slope for all or one for each channel (axis 1)."""
    x = use.tensor("self")
    g = use.g * x.clamp(max=0).unsqueeze(1)
    n, o = g.shape[:2]
    g = g.reshape(n, o, 1, -1) if use.weight.numel() == 1 else g.transpose(2, 3).flatten(3).transpose(2, 3)
    return Factor.vector(g.sum(-1) if use.weight.numel() == 1 else g.sum(2))


@rule(aten.cat.default, "tensors")
def cat(use: Use) -> Factor | None:
    """Y = [a, b, ...] along an axis, as for a class token: each weight has its own slice of g."""
    place = use.slot[1]
    assert place is not None
    dim = use.args["dim"] % (use.g.ndim - 2)
    widths = [
        t.shape[dim + 1] if ("tensors", i) in use.batched else t.shape[dim]
        for i, t in enumerate(use.args["tensors"])
    ]
    return Factor.vector(use.g.narrow(dim + 2, sum(widths[:place]), widths[place]))
