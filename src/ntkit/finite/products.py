"""Products of Jacobians kept as factors: three orders of summation, the cheapest by shapes.

For two uses of one weight with J[n, o] = sum_t g_not h_nt^T the block of the kernel is

    K[o, n, p, m] = sum_{t, s} (h_nt . h_ms) (g_not . g_mps)

"features" forms U_no = sum_t g_not h_nt^T on both sides and multiplies them; "one-sided" takes the
Gram matrix of h over positions, applies it to one g and multiplies by the other; "gram" takes both
Gram matrices over positions.

A block is a matrix: ``[o n, p m]`` (full; the sample runs fastest), ``[n, m]`` (trace), or one for
each output, ``[o, n, m]`` (diagonal). A block of samples with themselves is symmetric: only its upper
triangle is computed, and `mirror` fills the rest when all parts have been added.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ntkit.compute.counting import FLOPS_PER_BYTE
from ntkit.compute.gemm import product_transposed
from ntkit.compute.plan import chunks
from ntkit.finite.factors import Factor, OneHot, Slot, slot_rows
from ntkit.finite.kinds import Kind

_FORMED = 2**23  # bytes of Jacobians that are formed at a time: they stay in a cache until their product
FactorPairs = Iterable[tuple[Factor, Factor]]


def is_single(a: Factor, b: Factor) -> bool:
    """Return whether two uses have no positions, and their outputs in the same slot."""
    return a.sizes[2] == a.sizes[3] == b.sizes[3] == 1 and a.left_has_outputs == b.left_has_outputs


def add_products(out: Tensor, pairs: FactorPairs, kind: Kind, same: bool, tile: int, limit: int) -> None:
    """Add the products of pairs of uses, with about ``limit`` bytes besides the block.

    ``same``: both are the Jacobian of the same samples and outputs. ``tile``: samples of a row of
    products.
    """
    oriented = list(_oriented(pairs))
    _add_singles(out, [pair for pair in oriented if is_single(*pair)], kind, same, tile)
    for a, b in oriented:
        if is_single(a, b):
            continue
        if b.left_has_outputs:
            _positions(out, a, b, kind, same, limit)
        else:
            out += _crossed(a, b, kind, limit)


def _add_singles(out: Tensor, pairs: FactorPairs, kind: Kind, same: bool, tile: int) -> None:
    """Add the products of pairs of uses without positions: (g . g') (h . h')."""
    terms: dict[tuple, tuple[Tensor, Tensor, list]] = {}
    for a, b in pairs:
        # A layer's bias has the layer's own g, so they share its Gram matrix.
        assert isinstance(a.left, Tensor) and isinstance(b.left, Tensor)
        terms.setdefault((_key(a.left), _key(b.left)), (a.left, b.left, []))[2].append((a.right, b.right))
    for left, right, slots in terms.values():
        n, o, m, p = *left.shape[:2], *right.shape[:2]
        u = left[:, :, 0, 0].transpose(0, 1)
        v = u if left is right else right[:, :, 0, 0].transpose(0, 1)
        if kind.sums_outputs:
            u = u.transpose(0, 1).reshape(1, n, -1)
            v = u if left is right else v.transpose(0, 1).reshape(1, m, -1)
        columns = v.reshape(p * m, -1) if kind.pairs_outputs else v
        for s in chunks(n, tile):
            # Of the columns left of the diagonal, whole outputs are left out and, in one output, samples.
            first = s.start if same and (not kind.pairs_outputs or o == 1) else 0
            weights = _weights(slots, s, first, left)
            if kind.pairs_outputs and weights.shape[1] > 1 and p > 1:
                weights = weights.repeat(1, p)
            for i, rows in enumerate(u[:, s]):
                start = i * m + first if same and kind.pairs_outputs else first
                if kind.pairs_outputs:
                    where = out[i * n + s.start : i * n + s.stop, start:]
                    gram = product_transposed(rows, columns[start:])
                    own = weights[:, start - first :] if weights.shape[1] > 1 else weights
                else:
                    where = (out if kind.sums_outputs else out[i])[s, first:]
                    gram, own = product_transposed(rows, columns[i, first:]), weights
                where.addcmul_(gram, own)


def _weights(slots: list[tuple[Slot | None, Slot | None]], rows: slice, first: int, like: Tensor) -> Tensor:
    """Return the sum of h . h' over uses that share g, ``[rows, m]``; ``[rows, 1]`` where it is constant."""
    constant = sum(a is None for a, _ in slots)
    total: Tensor | None = None
    for a, b in slots:
        if a is not None:
            inner = _inner(slot_rows(a, rows), slot_rows(b, slice(first, None)))[:, 0, 0, :, 0, 0]
            total = inner if total is None else total + inner
    if total is None:
        return like.new_full((rows.stop - rows.start, 1), constant)
    return total.add_(constant) if constant else total


Sizes = tuple[int, int, int, int, int, int]


def order_costs(a: Sizes, b: Sizes, kind: Kind, item: int) -> dict[str, tuple[int, int]]:
    """Return the floating-point operations and the bytes moved of each order, from shapes alone."""
    n, o, g, t, r, c = a
    m, p, _, s, _, _ = b
    pair = o * p if kind.pairs_outputs else o
    both = n * m * g * t * s
    out = n * m * kind.values(o, p)
    if t == s == 1:
        flops = 2 * n * m * (pair * g * r + g * c) if c > 1 else 2 * n * m * pair * g * r
        return {"direct": (flops, item * (n * o + m * p) * g * r + item * out * (3 if c > 1 else 1))}
    features = 2 * g * r * c * (n * o * t + m * p * s) + 2 * n * m * pair * g * r * c
    one_sided = 2 * both * c + 2 * both * o * r + 2 * n * m * g * s * r * pair
    gram_pair = kind.values(o, p)
    gram = 2 * both * c + 2 * both * r * pair + 2 * both * gram_pair
    return {
        "features": (features, item * (2 * g * r * c * (n * o + m * p) + out)),
        "one-sided": (one_sided, item * (3 * both + 2 * n * m * g * s * o * r + out)),
        "gram": (gram, item * (2 * both + 3 * both * gram_pair + out)),
    }


def cheapest(a: Sizes, b: Sizes, kind: Kind, item: int) -> tuple[str, int]:
    """Return the order of summation that takes the least time, by shapes, and its operations."""
    costs = order_costs(a, b, kind, item)
    order = min(costs, key=lambda order: costs[order][0] + FLOPS_PER_BYTE * costs[order][1])
    return order, costs[order][0]


def add_diagonals(out: Tensor, pairs: FactorPairs, kind: Kind) -> None:
    """Add the products of each sample with itself: ``[n, o, p]``, ``[n, o]`` or ``[n]``."""
    for a, b in _oriented(pairs):
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
        out += kind.diagonal_product(u, v)


def _oriented(pairs: FactorPairs) -> Iterator[tuple[Factor, Factor]]:
    """Transpose both uses where needed, so that the outputs are in the left slot of the first."""
    for a, b in pairs:
        yield (a, b) if a.left_has_outputs else (a.swapped(), b.swapped())


def _positions(out: Tensor, a: Factor, b: Factor, kind: Kind, same: bool, limit: int) -> None:
    """Add the product of two uses with positions, outputs in the left slots, by the cheapest order."""
    order, _ = cheapest(a.sizes, b.sizes, kind, _item(a))
    n, o = a.sizes[:2]
    m, p = b.sizes[:2]
    if order in ("features", "direct"):  # direct: groups of one position each
        _features(out, a, b, kind)
        return
    if order == "one-sided":
        per_sample = _item(a) * a.sizes[3] * (m * b.sizes[3] + a.sizes[4] * p)
        size = min(n, max(1, limit // per_sample))
        half = same and a is b and size >= n
        for i in range(0, n, size):
            rows = slice(i, min(n, i + size))
            _one_sided(kind.window(out, rows, slice(0, m), o, p), a.rows(rows), b, kind, half)
        return
    per_pair = order_costs((1, *a.sizes[1:]), (1, *b.sizes[1:]), kind, _item(a))["gram"][1]
    rows = min(n, max(1, limit // (per_pair * m)))
    columns = min(m, max(1, limit // (per_pair * rows)))
    for x in chunks(n, rows):
        for y in chunks(m, columns):
            if not same or kind.pairs_outputs or y.stop > x.start:
                _gram(kind.window(out, x, y, o, p), a.rows(x), b.rows(y), kind)


def _features(out: Tensor, a: Factor, b: Factor, kind: Kind) -> None:
    """Form the Jacobians of some rows of the weight at a time, and add their product."""
    (n, o, g, _, r, c), (m, p) = a.sizes, b.sizes[:2]
    count = n * o if a is b else n * o + m * p
    for rows in chunks(r, max(1, _FORMED // (_item(a) * g * c * count))):
        u = _left_rows(a, rows).dense().reshape(n, o, -1)
        v = u if a is b else _left_rows(b, rows).dense().reshape(m, p, -1)
        out += kind.product(u, v)


def _one_sided(out: Tensor, a: Factor, b: Factor, kind: Kind, half: bool) -> None:
    """Move the g of the second to the positions of the first, one sample after the other.

    With ``half`` both are the same: what samples n >= j give with sample j is what j gives with them.
    """
    n, o, groups, t, r, _ = a.sizes
    m, p = b.sizes[:2]
    assert isinstance(a.left, Tensor) and isinstance(b.left, Tensor)
    for g in range(groups):
        h = _inner(*_group(a.right, b.right, g))[:, 0, :, :, 0]  # [n, t, m, s]
        own, other = a.left[:, :, g], b.left[:, :, g].permute(0, 2, 3, 1).flatten(2)  # [m, s, r p]
        own = own.reshape(n, o, t * r) if kind.pairs_outputs else own.permute(0, 2, 3, 1).reshape(n, t * r, o)
        for j in range(m):
            first = j if half else 0
            moved = h[first:, :, j].reshape((n - first) * t, -1) @ other[j]
            moved = moved.reshape(n - first, t * r, p)
            if kind.pairs_outputs:
                value = own[first:] @ moved  # [n, o, p]
                out[:, first:, :, j] += value.transpose(0, 1)
                if half:
                    out[:, j, :, j + 1 :] += value[1:].permute(2, 1, 0)
            else:
                value = torch.linalg.vecdot(own[first:], moved, dim=1).T  # [o, n]
                value = value.sum(0) if kind.sums_outputs else value
                where = out[..., j, first:] if half else out[..., j]
                where += value


def _gram(out: Tensor, a: Factor, b: Factor, kind: Kind) -> None:
    for g in range(a.sizes[2]):
        h = _inner(*_group(a.right, b.right, g))[:, 0, :, :, 0]
        left, right = _group(a.left, b.left, g)
        assert isinstance(left, Tensor) and isinstance(right, Tensor)
        if kind.sums_outputs:
            left, right = (s.permute(0, 2, 3, 1, 4).flatten(3).unsqueeze(1) for s in (left, right))
            out += (_inner(left, right)[:, 0, :, :, 0] * h).sum((1, 3))
        else:
            out += torch.einsum(kind.gram_equation, _inner(left, right), h)


def _crossed(a: Factor, b: Factor, kind: Kind, limit: int) -> Tensor:
    """Return the product of two uses, the first with its outputs left, the second right."""
    n, o, groups, t, r, c = a.sizes
    m, p, _, s, _, _ = b.sizes
    gram = groups * n * m * t * s * (o + p)
    if gram * _item(a) > limit or gram * (r + c) > groups * r * c * (n * o * t + m * p * s + n * m * o * p):
        u, v = a.dense().reshape(n, o, -1), b.dense().reshape(m, p, -1)
        return kind.product(u, v)
    total: Tensor | int = 0
    for g in range(groups):
        left = _inner(*_group(a.left, b.left, g))[:, :, :, :, 0]  # [n, o, t, m, s]
        right = _inner(*_group(a.right, b.right, g))[:, 0]  # [n, t, m, p, s]
        total = total + torch.einsum(kind.crossed_equation, left, right)
    assert isinstance(total, Tensor)
    return total.reshape(kind.block_shape(n, m, o, p))


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
    second = first if a is b else b.reshape(-1, r)
    return product_transposed(first, second).reshape(n, o, t, m, p, s)


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
