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
from math import prod

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


def add_products(out: Tensor, pairs: Pairs, kind: str, limit: int) -> None:
    """Add the products of pairs of factors to a block, with at most ``limit`` bytes besides it."""
    single: dict[tuple, list] = {}
    for a, b in pairs:
        a, b = _oriented(a, b)
        if not b.left_has_outputs:
            out += _crossed(a, b, kind, limit)
        elif a.sizes[2] == a.sizes[3] == b.sizes[3] == 1:
            # Uses without positions: a layer's bias has the layer's own g, so they share its Gram.
            terms = single.setdefault((_key(a.left), _key(b.left)), [a.left, b.left, 0, 0])
            if a.right is None:
                terms[2] = terms[2] + 1
            else:
                terms[3] = terms[3] + _inner(a.right, b.right)[:, 0, 0, :, 0, 0]
        else:
            _positions(out, a, b, kind, limit)
    for left, right, constant, weights in single.values():
        u = left[:, :, 0, 0]
        gram = _outer(u, u if left is right else right[:, :, 0, 0], kind)
        if isinstance(weights, Tensor):
            weights = weights + constant if constant else weights
            out.addcmul_(gram, weights[:, None] if kind == "full" else weights)
        else:
            out.add_(gram, alpha=constant)


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
    one_sided = 2 * both * c + 2 * both * p * r + 2 * n * m * g * t * r * pair
    gram_pair = 1 if kind == "trace" else pair
    gram = 2 * both * c + 2 * both * r * pair + 2 * both * gram_pair
    return {
        "features": (features, item * (2 * g * r * c * (n * o + m * p) + out)),
        "one-sided": (one_sided, item * (2 * both + 4 * n * m * g * t * p * r + out)),
        "gram": (gram, item * (2 * both + 3 * both * gram_pair + out)),
    }


def cheapest(a: Sizes, b: Sizes, kind: str, item: int) -> str:
    """Return the order of summation that takes the least time, by shapes."""
    costs = order_costs(a, b, kind, item)
    return min(costs, key=lambda order: costs[order][0] + _FLOPS_PER_BYTE * costs[order][1])


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
    order = cheapest(a.sizes, b.sizes, kind, _item(a))
    n, o, g, _, r, c = a.sizes
    m, p = b.sizes[:2]
    if order == "features":
        per_row = _item(a) * g * c * (n * o + m * p) * 2
        step = min(r, max(1, limit // per_row))
        for i in range(0, r, step):
            u = _left_rows(a, slice(i, i + step)).dense()
            v = u if a is b else _left_rows(b, slice(i, i + step)).dense()
            u = u.reshape(n, o, -1)
            out += _outer(u, u if a is b else v.reshape(m, p, -1), kind)
        return
    per_sample = order_costs((1, *a.sizes[1:]), (1, *b.sizes[1:]), kind, _item(a))[order][1]
    rows = min(n, max(1, limit // (per_sample * m)))
    columns = min(m, max(1, limit // (per_sample * rows)))
    product = _one_sided if order == "one-sided" else _gram
    for i in range(0, n, rows):
        for j in range(0, m, columns):
            x, y = slice(i, i + rows), slice(j, j + columns)
            where = out[:, x, :, y] if kind == "full" else out[..., x, y]
            product(where, a.rows(x), b.rows(y), kind)


def _one_sided(out: Tensor, a: Factor, b: Factor, kind: str) -> None:
    n, o, groups, t, r, _ = a.sizes
    m, p, _, s, _, _ = b.sizes
    assert isinstance(a.left, Tensor) and isinstance(b.left, Tensor)
    for g in range(groups):
        h = _inner(*_group(a.right, b.right, g))[:, 0, :, :, 0]  # [n, t, m, s]
        moved = h.permute(2, 0, 1, 3).reshape(m, n * t, s)
        right = b.left[:, :, g].permute(0, 2, 1, 3).reshape(m, s, p * r)
        y = torch.bmm(moved, right).reshape(m, n, t, p, r)
        left = a.left[:, :, g]
        if kind == "full":
            y = y.permute(1, 2, 4, 3, 0).reshape(n, t * r, p * m)
            out += torch.bmm(left.reshape(n, o, t * r), y).reshape(n, o, p, m).transpose(0, 1)
        elif kind == "diagonal":
            y = y.permute(3, 1, 2, 4, 0).reshape(p, n, t * r, m)
            left = left.reshape(n, o, 1, t * r).transpose(0, 1)
            out += (left @ y).reshape(o, n, m)
        else:
            y = y.permute(1, 0, 3, 2, 4).reshape(n, m, o * t * r)
            out += (y @ left.reshape(n, o * t * r, 1)).reshape(n, m)


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
    a = _flat(u, kind)
    b = a if u is v else _flat(v, kind)
    return (a @ b.T).reshape(block_shape(kind, n, m, o, p))


def _flat(u: Tensor, kind: str) -> Tensor:
    """Bring ``[n, o, k]`` to the rows of a product: ``[o n, k]``, or ``[n, o k]`` for a trace."""
    n, o, k = u.shape
    return u.reshape(n, o * k) if kind == "trace" else u.transpose(0, 1).reshape(o * n, k)


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


def block_bytes(kind: str, n: int, m: int, o: int, item: int) -> int:
    """Return the bytes of a block."""
    return item * prod(block_shape(kind, n, m, o, o))
