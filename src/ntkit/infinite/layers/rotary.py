"""Numbers that differ from channel to channel times vectors: rotary embeddings of queries and keys.

Each head of a vector h is mixed by fixed matrices, M_t h_t: products with numbers and concatenations of
parts of one vector make them, whatever the order of the channels. For queries q and keys k of iid coordinates
and z_ts = (M_t q_t) . (N_s k_s) c, a sum over many independent coordinates,

    Cov[z_ts, z'_t's'] = d c^2 Kq(t, t') Kk(s, s') G,   G[ts, t's'] = tr(M_t^T N_s N_s'^T M_t') / d

so that for rotations by the angles t theta_i G is the mean over i of cos((t - s - t' + s') theta_i): the
frequencies of the module count as they are, and their number as one that goes to infinity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.reading.rules import Reading
from ntkit.infinite.reading.values import Wide
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.positions import Move
from ntkit.infinite.variables.vectors import Coefficient, Moved, Multiple, Turned, VectorSum, expanded

TINY = 1e-13  # of the largest variance, below which one is zero

Term = tuple[
    Expression, Tensor | float
]  # a vector, and matrices in front of it, or numbers [*positions, 1, 1]


def varies(a: Wide, numbers: Tensor) -> bool:
    """Return whether numbers differ from channel to channel of a vector, in a way that all heads share."""
    found = _laid_out(a.canonical(), numbers)
    return found is not None and found[1] is not None


def _laid_out(a: Wide, numbers: Tensor) -> tuple[Wide, Tensor | None] | None:
    """Return a vector and numbers ``[*positions, group]`` of the channels of a head.

    None in their place where they are the same for all channels; None where they do not fit.
    """
    rank = max(len(a.dims), numbers.ndim)
    a = replace(a, dims=((),) * (rank - len(a.dims)) + a.dims)
    numbers = numbers.reshape(*[1] * (rank - numbers.ndim), *numbers.shape)
    shape: list[int] = []
    for dim, size in zip(a.dims, numbers.shape, strict=True):
        own = [a.size(x) for x in dim]
        if size not in (1, prod(own)):
            return None
        shape += own if size != 1 else [1] * len(own)
    axes = [x for dim in a.dims for x in dim]
    order = [axes.index(i) for i in range(len(a.shape))] + [
        axes.index(-j - 1) for j in range(len(a.channels))
    ]
    t = numbers.reshape(shape).permute(order)
    first, rank = None, len(a.shape)
    for j in range(len(a.channels)):
        one = t.narrow(rank + j, 0, 1)
        if bool((one == t).all()):
            t = one
        elif first is None:
            first = j
    if first is None:
        return a, None
    group = a.channels[first:]
    t = t.expand(*t.shape[: rank + first], *group)
    return a, t.reshape(*t.shape[:rank], prod(group))


def scaled(read: Reading, a: Wide, numbers: Tensor) -> Wide:
    """Return a vector times numbers that differ from channel to channel."""
    found = _laid_out(a.canonical(), numbers)
    assert found is not None
    a, t = found
    assert t is not None
    size = t.shape[-1]
    heads = prod(a.channels) // size
    joined = _joined(a, heads)
    if joined is None:
        raise read.refuse("numbers that differ from channel to channel meet concatenated vectors.")
    root, matrices = joined
    matrices = torch.diag_embed(t).to(read.dtype) @ matrices
    value = Turned(a.shape, matrices, expanded(root, a.shape))
    text = f"{read.name(a)} * numbers of the channels"
    return read.write("LinComb", text, Wide(((a.width, value),), a.shape, a.channels, a.dims))


def rejoined(read: Reading, wides: Sequence[Wide], dim: int, new: bool) -> Wide | None:
    """Return parts of the channels of one vector side by side: in a dimension, or (``new``) a new one.

    None where they are not parts of one vector, each at most once turned, scaled or exchanged.
    """
    wides = [w.canonical() for w in wides]
    first = wides[0]
    alike = all(w.shape == first.shape and w.dims == first.dims and len(w.pieces) == 1 for w in wides)
    if not alike or not first.channels:
        return None
    last = -len(first.channels)
    if (dim != len(first.dims)) if new else (first.dims[dim] != (last,)):
        return None
    if (
        any(w.channels != first.channels for w in wides)
        if new
        else any(w.channels[:-1] != first.channels[:-1] for w in wides)
    ):
        return None
    heads = prod(first.channels[:-1])
    parts = _shared_root([(w.only, w.channels[-1]) for w in wides], heads)
    if parts is None:
        return None
    root, matrices = parts
    positions = torch.broadcast_shapes(*(m.shape[:-2] for m in matrices))
    matrices = [m.expand(*positions, *m.shape[-2:]) for m in matrices]
    if new:
        whole = torch.stack(matrices, -2).flatten(-3, -2)
        channels, dims = (*first.channels, len(wides)), (*first.dims, (last - 1,))
    else:
        whole = torch.cat(matrices, -2)
        channels, dims = (*first.channels[:-1], whole.shape[-2]), first.dims
    return Wide(((prod(channels), _turned(root, whole, first.shape)),), first.shape, channels, dims)


def _turned(root: Expression, matrices: Tensor, shape: tuple[int, ...]) -> Expression:
    size = matrices.shape[-1]
    if matrices.shape[-2] == size and bool((matrices == torch.eye(size, dtype=matrices.dtype)).all()):
        return root
    return Turned(shape, matrices, expanded(root, shape))


def unturned(read: Reading, a: Wide, size: int) -> tuple[Wide, Tensor | None]:
    """Return queries or keys before their heads of a size were turned, and the matrices that turn them."""
    a = a.canonical()
    if not any(e.raw for _, e in a.pieces):
        return a, None
    joined = _joined(a, prod(a.channels) // size)
    if joined is None:
        raise read.refuse(
            "its queries or keys meet numbers that differ from channel to channel otherwise than in a "
            "product with parts of one vector (as rotary embeddings do)."
        )
    root, matrices = joined
    scale = float((matrices.square().sum() / matrices[..., 0].numel()).sqrt())  # the rest turns
    if scale > 0:
        root, matrices = Multiple(root.shape, scale, root), matrices / scale
    return replace(a, pieces=((a.width, root),)), matrices


def along(read: Reading, matrices: Tensor | None, a: Wide, dim: int) -> Tensor | None:
    """Return matrices ``[t, d, d]`` at the positions of a dimension."""
    if matrices is None:
        return None
    mine = [x for x in a.dims[dim] if x >= 0]
    positions = [1] * (len(a.shape) + 2 - matrices.ndim) + list(matrices.shape[:-2])
    if any(size != 1 for x, size in enumerate(positions) if x not in mine):
        raise read.refuse("its queries or keys are turned otherwise at other positions than those of tokens.")
    sizes = [a.size(x) for x in mine]
    return (
        matrices.reshape(*(positions[x] for x in mine), *matrices.shape[-2:])
        .expand(*sizes, *matrices.shape[-2:])
        .reshape(prod(sizes), *matrices.shape[-2:])
    )


def factor(left: Tensor | None, right: Tensor | None, size: int, t: int, s: int) -> Tensor | None:
    """Return F ``[t, s, r]`` with G = F F^T; None where nothing is turned."""
    if left is None and right is None:
        return None
    one = torch.eye(size, dtype=torch.float64).expand(1, size, size)
    left, right = (one if m is None else m.double() for m in (left, right))
    left, right = left.expand(t, *left.shape[1:]), right.expand(s, *right.shape[1:])
    where = (left.abs().sum(0).mT @ right.abs().sum(0) > 0).flatten()
    rows = [(m.mT @ right).flatten(1)[:, where] for m in left]
    v = torch.stack(rows).flatten(0, 1) / size**0.5
    rest = v.square().sum(1)
    largest, columns = rest.max(), []
    while len(columns) < min(v.shape) and rest.max() > TINY * largest:  # Cholesky, the largest first
        pivot = int((rest >= (1 - 1e-6) * rest.max()).nonzero()[0])
        column = v @ v[pivot] - sum((c * c[pivot] for c in columns), torch.zeros_like(rest))
        columns.append(column / rest[pivot].sqrt())
        rest = (rest - columns[-1].square()).clamp(min=0)
    return torch.stack(columns, -1).reshape(t, s, -1)


def _joined(a: Wide, heads: int) -> tuple[Expression, Tensor] | None:
    """Return the vector that all pieces are parts of, and the matrices in front of it."""
    parts = _shared_root([(e, width // heads) for width, e in a.pieces], heads)
    if parts is None or (len(a.pieces) > 1 and heads > 1):
        return None
    root, matrices = parts
    positions = torch.broadcast_shapes(*(m.shape[:-2] for m in matrices))
    return root, torch.cat([m.expand(*positions, *m.shape[-2:]) for m in matrices], -2)


def _shared_root(
    parts: Sequence[tuple[Expression, int]], heads: int
) -> tuple[Expression, list[Tensor]] | None:
    """Return the nearest vector of which all parts are coordinates, and the matrices of each part."""
    found = [_terms(e) for e, _ in parts]
    chains = [_chain(leaf, heads) for terms in found for leaf, _ in terms]
    root = next((e for e in chains[0] if all(e in chain for chain in chains)), None)
    if root is None:
        return None
    matrices, left = [], iter(chains)
    size = None
    for terms, (_, own) in zip(found, parts, strict=True):
        total = None
        for _, m in terms:
            rows = next(left)[root]
            if rows is None:
                of_root = torch.eye(own if _plain(m) else m.shape[-1], dtype=torch.float64)  # pyright: ignore
            else:
                of_root = torch.eye(rows[1], dtype=torch.float64)[rows[0]]
            if size not in (None, of_root.shape[-1]):
                return None
            size = of_root.shape[-1]
            if not _plain(m) and m.shape[-1] != of_root.shape[-2]:  # pyright: ignore
                return None
            term = m * of_root if _plain(m) else m.double() @ of_root  # pyright: ignore
            total = term if total is None else total + term
        assert total is not None
        if total.shape[-2] != own:
            return None
        matrices.append(total)
    return root, matrices


def _plain(m: Tensor | float) -> bool:
    return isinstance(m, float | int) or tuple(m.shape[-2:]) == (1, 1)


def _terms(e: Expression) -> list[Term]:
    """Return a sum of vectors, with matrices in front of them."""
    match e:
        case Multiple(factor=float() | int() as number):
            return [(leaf, m * number) for leaf, m in _terms(e.inner)]
        case Multiple(factor=Coefficient(fixed=Tensor() as numbers)):
            return [(leaf, m * numbers[..., None, None]) for leaf, m in _terms(e.inner)]
        case Turned():
            return [(e.inner, e.matrices)]
        case VectorSum() if e.raw or all(isinstance(part, Multiple) for part in e.terms):
            return [term for part in e.terms for term in _terms(part)]
        case Moved() if e.move.selects and e.move.before == e.inner.shape:
            return [_moved(e, leaf, m) for leaf, m in _terms(e.inner)]
    return [(e, 1.0)]


def _at(e: Expression, move: Move) -> Expression:
    """Return a vector at other positions, at the same ones the same vector; a part stays a part."""
    moved = e.__dict__.setdefault("at positions", {})
    if move not in moved:
        moved[move] = Moved(move.after, move, expanded(e, move.before))
        if "part" in e.__dict__:
            whole, index, width = e.__dict__["part"]
            moved[move].__dict__["part"] = (_at(whole, move), index, width)
    return moved[move]


def _moved(e: Moved, leaf: Expression, m: Tensor | float) -> Term:
    """Return a vector and its matrices at other positions; the vector itself, where it is back at its own."""
    if isinstance(m, Tensor):
        m = m.expand(*e.move.before, *m.shape[-2:]).movedim((-2, -1), (0, 1))
        m = e.move.apply(m).movedim((0, 1), (-2, -1))
    whole = base = _at(leaf, e.move)
    moves = []
    while isinstance(base, Moved) and base.move.selects:
        moves.append(base.move)
        base = base.inner
        if base.shape == e.shape:
            places = own = torch.arange(1.0, 1 + prod(e.shape), dtype=torch.float64).reshape(1, *e.shape)
            for move in reversed(moves):
                places = move.apply(places)
            if bool(((places == own) | (places == 0)).all()):
                return base, m * (places[0] > 0).double()[..., None, None]
    return whole, m


def _chain(e: Expression, heads: int) -> dict[Expression, tuple[Tensor, int] | None]:
    """Return a vector, what it is a part of, and so on; with the coordinates of a head, and their number."""
    chain: dict[Expression, tuple[Tensor, int] | None] = {e: None}
    rows = None
    while "part" in e.__dict__:
        e, index, width = e.__dict__["part"]
        if width % heads or len(index) % heads:
            break
        size = width // heads
        own = index.reshape(heads, -1) - size * torch.arange(heads)[:, None]
        if not bool((own == own[:1]).all()) or own.min() < 0 or own.max() >= size:
            break
        rows = own[0] if rows is None else own[0][rows]
        chain[e] = (rows, size)
    return chain
