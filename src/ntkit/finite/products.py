"""Products of Jacobians kept as factors: three orders of summation, the cheapest by shapes.

For two uses of one weight with J[n, o] = sum_t g_not h_nt^T the block of the kernel is

    K[n, m, o, p] = sum_{t, s} (h_nt . h_ms) (g_not . g_mps)

"features" forms U_no = sum_t g_not h_nt^T on both sides and multiplies them; "one-sided" takes the
Gram matrix of h over positions, applies it to one g and multiplies by the other; "gram" takes both
Gram matrices over positions. Blocks are laid out as ``[o1, n1, o2, n2]`` (full), ``[o, n1, n2]``
(diagonal) or ``[n1, n2]`` (trace).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ntkit.finite.factors import Factor, OneHot, Slot

# A byte moved costs about as much time as this many floating-point operations.
_FLOPS_PER_BYTE = 12
_SHARED_EQUATIONS = {"full": "notmps,ntms->onpm", "diagonal": "notmos,ntms->onm"}
_CROSSED_EQUATIONS = {
    "full": "notms,ntmps->onpm",
    "diagonal": "notms,ntmos->onm",
    "trace": "notms,ntmos->nm",
}

Pairs = Iterable[tuple[Factor, Factor]]


def block_shape(kind: str, n: int, m: int, o: int, p: int) -> tuple[int, ...]:
    """Return the layout of a block in this file."""
    return {"full": (o, n, p, m), "diagonal": (o, n, m), "trace": (n, m)}[kind]


def is_single(a: Factor, b: Factor) -> bool:
    """Return whether two uses have no positions, and their outputs in the same slot."""
    return a.sizes[2] == a.sizes[3] == b.sizes[3] == 1 and a.left_has_outputs == b.left_has_outputs


def add_singles(out: Tensor, pairs: Pairs, kind: str) -> None:
    """Add the products of pairs of uses without positions: (g . g') (h . h')."""
    terms: dict[tuple, list] = {}
    for a, b in (_oriented(a, b) for a, b in pairs if is_single(a, b)):
        # A layer's bias has the layer's own g, so they share its Gram matrix.
        term = terms.setdefault((_key(a.left), _key(b.left)), [a.left, b.left, 0, 0])
        if a.right is None:
            term[2] = term[2] + 1
        else:
            term[3] = term[3] + _inner(a.right, b.right)[:, 0, 0, :, 0, 0]
    for left, right, constant, weights in terms.values():
        u = left[:, :, 0, 0]
        gram = _outer(u, u if left is right else right[:, :, 0, 0], kind)
        if isinstance(weights, Tensor):
            weights = weights + constant if constant else weights
            out.addcmul_(gram, weights[:, None] if kind == "full" else weights)
        else:
            out.add_(gram, alpha=constant)


def add_positions(out: Tensor, pairs: Pairs, kind: str, limit: int) -> None:
    """Add the products of all other pairs, with about ``limit`` bytes besides the block.

    A pair of a use with itself is symmetric, and done by half.
    """
    for a, b in (_oriented(a, b) for a, b in pairs if not is_single(a, b)):
        if b.left_has_outputs:
            _positions(out, a, b, kind, limit)
        else:
            out += _crossed(a, b, kind, limit)


Sizes = tuple[int, int, int, int, int, int]


def order_costs(a: Sizes, b: Sizes, kind: str, item: int) -> dict[str, tuple[int, int]]:
    """Return the floating-point operations and the bytes moved of each order, from shapes alone."""
    n, o, g, t, r, c = a
    m, p, _, s, _, _ = b
    pair = o * p if kind == "full" else o
    both = n * m * g * t * s
    out = n * m * (1 if kind == "trace" else pair)
    if t == s == 1:
        flops = 2 * n * m * (pair * g * r + g * c) if c > 1 else 2 * n * m * pair * g * r
        return {"direct": (flops, item * (n * o + m * p) * g * r + item * out * (3 if c > 1 else 1))}
    features = 2 * g * r * c * (n * o * t + m * p * s) + 2 * n * m * pair * g * r * c
    one_sided = 2 * both * c + 2 * both * o * r + 2 * n * m * g * s * r * pair
    gram_pair = 1 if kind == "trace" else pair
    gram = 2 * both * c + 2 * both * r * pair + 2 * both * gram_pair
    return {
        "features": (features, item * (2 * g * r * c * (n * o + m * p) + out)),
        "one-sided": (one_sided, item * (3 * both + 2 * n * m * g * s * o * r + out)),
        "gram": (gram, item * (2 * both + 3 * both * gram_pair + out)),
    }


def cheapest(a: Sizes, b: Sizes, kind: str, item: int) -> tuple[str, int]:
    """Return the order of summation that takes the least time, by shapes, and its operations."""
    costs = order_costs(a, b, kind, item)
    order = min(costs, key=lambda order: costs[order][0] + _FLOPS_PER_BYTE * costs[order][1])
    return order, costs[order][0]


def add_diagonals(out: Tensor, pairs: Pairs, kind: str) -> None:
    """Add the products of each sample with itself: ``[n, o, p]``, ``[n, o]`` or ``[n]``."""
    for a, b in pairs:
        a, b = _oriented(a, b)
        n, o, g, t, r, c = a.sizes
        s = b.sizes[3]
        crossed = not b.left_has_outputs
        one_sided = t * s * g * (c + o * r) + o * o * t * g * r
        if crossed or o * t * g * r * c + o * o * g * r * c < one_sided:
            u, v = a.dense().reshape(n, o, -1), b.dense().reshape(n, o, -1)
        elif a.right is None:
            u, v = a.left.reshape(n, o, -1), b.left.reshape(n, o, -1)  # pyright: ignore
        else:
            assert isinstance(a.left, Tensor) and isinstance(b.left, Tensor)
            v = _inner_same(a.right, b.right).unsqueeze(1) @ b.left
            u, v = a.left.reshape(n, o, -1), v.reshape(n, o, -1)
        if kind == "full":
            out += u @ v.transpose(1, 2)
        else:
            out += torch.linalg.vecdot(u, v).sum(-1) if kind == "trace" else torch.linalg.vecdot(u, v)


def _oriented(a: Factor, b: Factor) -> tuple[Factor, Factor]:
    """Transpose both where needed, so that the outputs are in the left slot of the first."""
    return (a, b) if a.left_has_outputs else (a.swapped(), b.swapped())


def _positions(out: Tensor, a: Factor, b: Factor, kind: str, limit: int) -> None:
    """Add the product of two uses with positions, outputs in the left slots, by the cheapest order."""
    order, _ = cheapest(a.sizes, b.sizes, kind, _item(a))
    n, o, g, _, r, c = a.sizes
    m, p = b.sizes[:2]
    if order == "features":
        per_row = _item(a) * g * c * (n * o + m * p) * 2
        step = min(r, max(1, limit // per_row))
        for i in range(0, r, step):
            u = _left_rows(a, slice(i, i + step)).dense().reshape(n, o, -1)
            v = u if a is b else _left_rows(b, slice(i, i + step)).dense().reshape(m, p, -1)
            out += _outer(u, v, kind)
        return
    if order == "one-sided":
        per_sample = _item(a) * o * b.sizes[3] * (b.sizes[4] + a.sizes[3])
        rows = min(n, max(1, limit // per_sample))
        for i in range(0, n, rows):
            where = out[:, i : i + rows] if kind != "trace" else out[i : i + rows]
            _one_sided(where, a.rows(slice(i, i + rows)), b, kind, mirror=a is b and rows == n)
        return
    per_pair = order_costs((1, *a.sizes[1:]), (1, *b.sizes[1:]), kind, _item(a))["gram"][1]
    rows = min(n, max(1, limit // (per_pair * m)))
    columns = min(m, max(1, limit // (per_pair * rows)))
    for i in range(0, n, rows):
        for j in range(0, m, columns):
            x, y = slice(i, i + rows), slice(j, j + columns)
            where = out[:, x, :, y] if kind == "full" else out[..., x, y]
            _gram(where, a.rows(x), b.rows(y), kind)


def _one_sided(out: Tensor, a: Factor, b: Factor, kind: str, mirror: bool) -> None:
    """Move the g of the first over to the positions of the second, one sample of the second at a time."""
    n, o, groups, _, _, _ = a.sizes
    m, p, _, s, r, _ = b.sizes
    assert isinstance(a.left, Tensor) and isinstance(b.left, Tensor)
    for g in range(groups):
        h = _inner(*_group(a.right, b.right, g))[:, 0, :, :, 0].permute(2, 0, 3, 1)  # [m, n, s, t]
        left, right = a.left[:, :, g].transpose(0, 1), b.left[:, :, g]
        for j in range(m):
            first = j if mirror else 0
            moved = (h[j, first:] @ left[:, first:]).reshape(o, n - first, s * r)
            there = right[j].reshape(p, s * r)
            if kind == "full":
                value = (moved.flatten(0, 1) @ there.T).reshape(o, n - first, p)
                out[:, first:, :, j] += value
                if mirror:
                    out[:, j, :, first + 1 :] += value[:, 1:].permute(2, 0, 1)
                continue
            value = (moved @ there.unsqueeze(-1)).squeeze(-1)
            value = value.sum(0) if kind == "trace" else value
            out[..., first:, j] += value
            if mirror:
                out[..., j, first + 1 :] += value[..., 1:]


def _gram(out: Tensor, a: Factor, b: Factor, kind: str) -> None:
    for g in range(a.sizes[2]):
        h = _inner(*_group(a.right, b.right, g))[:, 0, :, :, 0]
        left, right = _group(a.left, b.left, g)
        assert isinstance(left, Tensor) and isinstance(right, Tensor)
        if kind == "trace":
            left, right = (s.permute(0, 2, 3, 1, 4).flatten(3).unsqueeze(1) for s in (left, right))
            out += (_inner(left, right)[:, 0, :, :, 0] * h).sum((1, 3))
        else:
            out += torch.einsum(_SHARED_EQUATIONS[kind], _inner(left, right), h)


def _crossed(a: Factor, b: Factor, kind: str, limit: int) -> Tensor:
    """Return the product of two uses of which the first has the outputs left, the second right."""
    n, o, groups, t, r, c = a.sizes
    m, p, _, s, _, _ = b.sizes
    gram = groups * n * m * t * s * (o + p)
    if gram * _item(a) > limit or gram * (r + c) > groups * r * c * (n * o * t + m * p * s + n * m * o * p):
        u, v = a.dense().reshape(n, o, -1), b.dense().reshape(m, p, -1)
        return _outer(u, v, kind)
    total: Tensor | int = 0
    for g in range(groups):
        left = _inner(*_group(a.left, b.left, g))[:, :, :, :, 0]  # [n, o, t, m, s]
        right = _inner(*_group(a.right, b.right, g))[:, 0]  # [n, t, m, p, s]
        total = total + torch.einsum(_CROSSED_EQUATIONS[kind], left, right)
    assert isinstance(total, Tensor)
    return total


def _inner(a: Slot | None, b: Slot | None) -> Tensor:
    """Return the inner products ``[n, o, t, m, p, s]`` of two slots of one group."""
    if isinstance(a, OneHot) and isinstance(b, OneHot):
        same = a.index[:, :, None, None] == b.index
        return same[:, None, :, :, None].to(a.dtype)
    if isinstance(a, OneHot):
        assert isinstance(b, Tensor)
        return _inner(b, a).permute(3, 4, 5, 0, 1, 2)
    assert isinstance(a, Tensor) and b is not None
    n, o, _, t, r = a.shape
    if isinstance(b, OneHot):
        m, s = b.index.shape
        return a.reshape(n, o, t, r)[..., b.index.reshape(-1)].reshape(n, o, t, m, 1, s)
    m, p, _, s, _ = b.shape
    first = a.reshape(-1, r)
    return (first @ (first if a is b else b.reshape(-1, r)).T).reshape(n, o, t, m, p, s)


def _inner_same(a: Slot, b: Slot | None) -> Tensor:
    """Return the inner products ``[n, g, t, s]`` of each sample with itself."""
    if isinstance(a, OneHot) and isinstance(b, OneHot):
        same = a.index[:, :, None] == b.index[:, None]
        return same[:, None].to(a.dtype)
    if isinstance(a, OneHot):
        assert isinstance(b, Tensor)
        return _inner_same(b, a).transpose(-1, -2)
    if isinstance(b, OneHot):
        index = b.index[:, None, None].expand(*a.shape[:1], a.shape[2], a.shape[3], -1)
        return torch.gather(a[:, 0], 3, index)
    assert b is not None
    return a[:, 0] @ b[:, 0].transpose(-1, -2)


def _outer(u: Tensor, v: Tensor, kind: str) -> Tensor:
    """Return the block of two dense Jacobians ``[n, o, k]`` and ``[m, p, k]``."""
    (n, o, _), (m, p, _) = u.shape, v.shape
    if kind == "diagonal":
        return torch.bmm(u.transpose(0, 1), v.permute(1, 2, 0))
    if kind == "trace":
        return _product(u.reshape(n, -1), v.reshape(m, -1), u is v)
    if u.is_contiguous() and v.is_contiguous():  # rather than the Jacobians, turn their small product
        product = _product(u.flatten(0, 1), v.flatten(0, 1), u is v)
        return product.reshape(n, o, m, p).permute(1, 0, 3, 2)
    a, b = u.transpose(0, 1).flatten(0, 1), v.transpose(0, 1).flatten(0, 1)
    return _product(a, b, u is v).reshape(o, n, p, m)


def _product(a: Tensor, b: Tensor, symmetric: bool) -> Tensor:
    """Return A B^T; where both are the same and the product is large, its upper half twice."""
    n, k = a.shape
    if not symmetric or n < 64 or n * n * k < 2**26:
        return a @ b.T
    out = a.new_empty(n, n)
    step = max(32, -(-n // 8))
    for i in range(0, n, step):
        end = min(n, i + step)
        torch.mm(a[i:end], a[i:].T, out=out[i:end, i:])
        out[end:, i:end] = out[i:end, end:].T
    return out


def _left_rows(f: Factor, index: slice) -> Factor:
    assert isinstance(f.left, Tensor)
    return replace(f, left=f.left[..., index])


def _group(a: Slot | None, b: Slot | None, g: int) -> tuple[Slot, Slot]:
    """Return the slots of one group, the group axis kept with size one."""
    assert a is not None and b is not None
    return tuple(s if isinstance(s, OneHot) else s[:, :, g : g + 1] for s in (a, b))  # pyright: ignore


def _key(slot: Slot) -> tuple:
    assert isinstance(slot, Tensor)
    return slot.data_ptr(), slot.shape, slot.stride()


def _item(f: Factor) -> int:
    return next(s.element_size() for s in (f.left, f.right) if isinstance(s, Tensor))
