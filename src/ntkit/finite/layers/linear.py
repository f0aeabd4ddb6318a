"""Linear maps with a weight: linear layers, matrix products, einsum."""

from __future__ import annotations

import torch

from ntkit.finite.factors import Factor
from ntkit.finite.rules import Use, reduce_to, rule

aten = torch.ops.aten


@rule(aten.linear.default, "input", "weight", "bias")
def linear(use: Use) -> Factor | None:
    """Y = h W^T + b: the weight is sum_t g_t h_t^T, the bias sum_t g_t, a learned input g_t W."""
    w, g = use.tensor("weight"), use.g
    if w.ndim != 3:
        return None
    if use.slot[0] == "input":
        return Factor.vector(g @ w.reshape(-1, *[1] * (g.ndim - 3), *w.shape[1:]))
    n, o, out = *g.shape[:2], g.shape[-1]
    if use.slot[0] == "bias":
        g = g.reshape(n, o, -1, out)
        return Factor.vector(g[:, :, 0] if g.shape[2] == 1 else g.sum(2))
    h = use.tensor("input")
    h = h.expand(n, *h.shape[1:]).reshape(n, 1, 1, -1, h.shape[-1])
    return Factor(g.reshape(n, o, 1, -1, out), h, lambda w: w[None])


@rule(aten.addmm.default, "self", "mat1", "mat2")
def addmm(use: Use) -> Factor | None:
    """Y = beta b + alpha A B."""
    if use.slot[0] == "self":
        return Factor.vector(reduce_to(use.g * use.args["beta"], use.weight.shape))
    return _product(use, "mat1", "mat2", use.g * use.args["alpha"])


@rule(aten.mm.default, "self", "mat2")
def mm(use: Use) -> Factor | None:
    """Y = A B, both of them matrices."""
    return _product(use, "self", "mat2", use.g)


@rule(aten.bmm.default, "self", "mat2")
def bmm(use: Use) -> Factor | None:
    """Y_b = A_b B_b, one product for each b."""
    return _product(use, "self", "mat2", use.g)


@rule(aten.matmul.default, "self", "other")
def matmul(use: Use) -> Factor | None:
    """Y = A B with the broadcasting of torch.matmul."""
    return _product(use, "self", "other", use.g)


def _product(use: Use, first: str, second: str, g: torch.Tensor) -> Factor | None:
    """Return the factor of A or B in A B, as an einsum with letters for the axes."""
    a, b = use.args[first].ndim, use.args[second].ndim
    a, b = a - ((first, None) in use.batched), b - ((second, None) in use.batched)
    batch = "abcdefgh"[: max(a, b, 2) - 2]
    left = (batch[len(batch) - max(a - 2, 0) :] + "ik") if a > 1 else "k"
    right = (batch[len(batch) - max(b - 2, 0) :] + "kj") if b > 1 else "k"
    out = batch + ("i" if a > 1 else "") + ("j" if b > 1 else "")
    if use.slot[0] == first:
        return contraction(g, use.tensor(second), left, right, out, use.weight.shape)
    return contraction(g, use.tensor(first), right, left, out, use.weight.shape)


@rule(aten.einsum.default, "tensors")
def einsum(use: Use) -> Factor | None:
    """Any einsum of a weight with one other tensor, each axis named once in each."""
    inputs, arrow, out = use.args["equation"].replace(" ", "").partition("->")
    specs = inputs.split(",")
    if len(specs) != 2 or not arrow or "." in inputs:
        return None
    place = use.slot[1]
    assert place is not None
    other = 1 - place
    return contraction(use.g, use.tensor("tensors", other), specs[place], specs[other], out, use.weight.shape)


def contraction(
    g: torch.Tensor, h: torch.Tensor, weight: str, other: str, out: str, shape: torch.Size
) -> Factor | None:
    """Return the factor of the weight in einsum(weight, other -> out), or None where it is not one.

    Letters of the weight: in both others -> group, in ``out`` -> row, in ``other`` -> column;
    letters in ``other`` and ``out`` only are positions.
    """
    if any(len(set(s)) != len(s) for s in (weight, other, out)):
        return None
    if not set(weight) <= set(other) | set(out) or set(out) - set(weight) - set(other):
        return None
    sizes = {**dict(zip(other, h.shape[1:], strict=True)), **dict(zip(out, g.shape[2:], strict=True))}
    if any(sizes[a] != s for a, s in zip(weight, shape, strict=True)):
        return None  # an axis of size one that is broadcast
    h = h.expand(-1, *(sizes[a] for a in other))
    summed = [i + 1 for i, a in enumerate(other) if a not in weight and a not in out]
    h = h.sum(summed) if summed else h
    other = "".join(a for a in other if a in weight or a in out)
    group = [a for a in weight if a in out and a in other]
    row = [a for a in weight if a in out and a not in other]
    column = [a for a in weight if a in other and a not in out]
    position = [a for a in out if a in other and a not in weight]
    if any(sizes[a] != g.shape[2 + out.index(a)] for a in position):
        return None
    n, o = g.shape[:2]

    def size(letters: list[str]) -> int:
        return int(torch.Size([sizes[a] for a in letters]).numel())

    g = g.permute(0, 1, *(2 + out.index(a) for a in [*group, *position, *row]))
    h = h.permute(0, *(1 + other.index(a) for a in [*group, *position, *column]))
    g = g.reshape(n, o, size(group), size(position), size(row))
    h = h.expand(n, *h.shape[1:]).reshape(n, 1, size(group), size(position), size(column))
    order = [weight.index(a) for a in [*group, *row, *column]]
    arranged = (size(group), size(row), size(column))
    return Factor(g, h, lambda w: w.permute(order).reshape(arranged))
