"""Products of two vectors: scores of attention, and means of values weighted by them."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import torch
from torch import Tensor

from ntkit.infinite.layers import rotary
from ntkit.infinite.layers.selections import selected
from ntkit.infinite.layers.views import refactored, single
from ntkit.infinite.moments.scores import scores_of
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Known, Operand, Wide, numbered, numbers
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply, Function, sources, unrelated
from ntkit.infinite.variables.positions import Shape, broadcast, expand, matvec
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import (
    Attended,
    Coefficient,
    Inner,
    Mixed,
    Multiple,
    expanded,
    reshaped,
)

aten = torch.ops.aten


def between(read: Reading, a: Operand, b: Operand) -> Wide | Known:
    """Return a product of two vectors, or of numbers and a vector along positions."""
    if isinstance(a, Wide) and isinstance(b, Wide):
        a, b = _own_heads(read, a.canonical()), _own_heads(read, b.canonical())
        a, b = _of_each_head(read, a, b), _of_each_head(read, b, a)
        inner_a, inner_b = a.dims[-1], b.dims[-2]
        if inner_a and inner_b and all(x < 0 for x in inner_a) and all(x < 0 for x in inner_b):
            return scores(read, a, b)
        if all(x >= 0 for x in (*inner_a, *inner_b)):
            return weighted(read, a, b)
    known = numbers(a)
    if known is not None and isinstance(b, Wide):
        return mixed(read, known, b.canonical())
    known = numbers(b)
    if known is not None and isinstance(a, Wide) and not any(x < 0 for x in a.dims[-1]):
        return swapped(mixed(read, _swapped_numbers(known), swapped(a).canonical()))
    raise read.refuse("a product of this kind of values.")


def _own_heads(read: Reading, a: Wide) -> Wide:
    """Return a vector whose heads were repeated for groups of others, with these copies as heads.

    No weight behind the attention is shared by them, so that each is like one of its own.
    """
    for d, dim in enumerate(a.dims):
        copies = [x for x in dim if x >= 0 and any(y < 0 for y in dim)]
        if len(copies) == 1 and all(len(e.shape) and e.shape[copies[0]] == 1 for _, e in a.pieces):
            (axis,) = copies
            dims = [tuple(x - (x > axis) for x in y if x != axis) for y in a.dims]
            shape = a.shape[:axis] + a.shape[axis + 1 :]
            one = replace(a, shape=(*a.shape[:axis], 1, *a.shape[axis + 1 :])).reshaped(shape, dims)
            index = torch.arange(one.sizes[d]).repeat_interleave(a.shape[axis])
            return _own_heads(read, selected(read, one, d, index, False))
    return a


def _of_each_head(read: Reading, a: Wide, other: Wide) -> Wide:
    """Return a vector without heads, of which there are copies for each head of the other, with heads."""
    if len(a.dims) != len(other.dims):
        return a
    for d, (dim, heads) in enumerate(zip(a.dims[:-2], other.dims[:-2], strict=True)):
        copied = len(dim) == 1 and dim[0] >= 0 and all(e.shape[dim[0]] == 1 for _, e in a.pieces if e.shape)
        if copied and any(x < 0 for x in heads):
            (axis,) = dim
            layout = [[x >= 0 for x in y if x != axis] for y in a.dims]
            layout[d] = [False]
            place = sum(x < 0 for y in a.dims[:d] for x in y)
            channels = (*a.channels[:place], 1, *a.channels[place:])
            shape = a.shape[:axis] + a.shape[axis + 1 :]
            one = replace(a, shape=(*a.shape[:axis], 1, *a.shape[axis + 1 :])).reshaped(shape, ())
            one = Wide(one.pieces, shape, channels, numbered(layout))
            return selected(read, one, d, torch.zeros(a.shape[axis], dtype=torch.long), False)
    return a


def _averages(scale: float, width: int) -> bool:
    """Return whether a scale is meant as 1/d, not as 1/sqrt(k d) for k scores that are added (DeBERTa)."""
    few = (abs(scale * (k * width) ** 0.5 - 1) < 1e-6 for k in (1, 2, 3))
    exact = width > 1 and abs(scale * width - 1) < 1e-6
    return exact or (not any(few) and scale * width**0.5 < width**-0.25)


def swapped(a: Wide) -> Wide:
    """Return a vector with its last two dimensions swapped."""
    return replace(a, dims=(*a.dims[:-2], a.dims[-1], a.dims[-2]))


def _swapped_numbers(a: Known) -> Known:
    example = a.example.mT
    return Known(example, Coefficient(tuple(example.shape), lambda side: a.numbers.value(side).mT), a.moments)


def scores(read: Reading, q: Wide, k: Wide) -> Wide | Known:
    """Q K^T: a G-variable of a head, where the heads are many."""
    width = q.sizes[-1]
    q, left = rotary.unturned(read, q, width)
    k, right = rotary.unturned(read, k, width)
    left, right = rotary.along(read, left, q, len(q.dims) - 2), rotary.along(read, right, k, len(k.dims) - 1)
    first, lead, a = _batched(read, q, len(q.dims) - 2)
    second, other, b = _batched(read, k, len(k.dims) - 1)
    turn = rotary.factor(left, right, width, a, b)
    lead, other = _padded(lead, other), _padded(other, lead)
    heads = tuple(s for s, place in zip(q.channels, _places(q), strict=True) if place != len(q.dims) - 1)
    u, constant_u = _unscaled(first)
    v, constant_v = _unscaled(second)
    constant = constant_u * constant_v
    averages = _averages(abs(constant * _later(read)), width)
    if averages:
        if turn is not None:
            raise read.refuse("queries and keys that are turned (rotary embeddings) under a scale of 1/d.")
        if lead:
            raise read.refuse("scores scaled by 1/d over more than one axis of positions.")
        return averaged(read, q, k, reshaped(u, (a, 1)), reshaped(v, (1, b)), constant * width)
    if sources(u) & sources(v) or not (u.centered and v.centered):
        raise read.refuse(
            "scores of queries and keys that are not independent (one projection for both, or a mean that is "
            "not zero) diverge with the width under a scale of 1/sqrt(d): their softmax becomes a maximum; "
            "scale them by 1/d."
        )
    shape = (*broadcast(lead, other), a, b)
    queries, keys = reshaped(u, (*lead, a, 1)), reshaped(v, (*other, 1, b))
    turn = None if turn is None else turn.to(read.dtype)
    inner = Inner(shape, queries, keys, width * (constant_u * constant_v) ** 2, turn)
    layout = [[x >= 0 for x in (d or e)] for d, e in zip(q.dims[:-2], k.dims[:-2], strict=True)]
    if not heads:
        layout, heads = [[False, *layout[0]], *layout[1:]] if layout else [], (1,)
    dims = numbered([*layout, [True], [True]])
    read.note(
        "Attention: the number of heads goes to infinity too (Hron et al. 2020); with few heads the kernel "
        "is random."
    )
    wide = Wide(((prod(heads), inner),), shape, heads, dims)
    turned = "" if turn is None else ", both turned" if left is not None and right is not None else ", turned"
    return read.write("Scores", f"{read.name(q)} . {read.name(k)}   (width {width}{turned})", wide, "g")


def _later(read: Reading) -> float:
    """Return the number by which the next operations multiply the result of this one."""
    factor, node = 1.0, read.node
    while node is not None and len(node.users) == 1:
        node = next(iter(node.users))
        if node.target not in (aten.mul.Tensor, aten.div.Tensor) or not isinstance(node.args[1], float | int):
            break
        factor *= node.args[1] if node.target is aten.mul.Tensor else 1 / node.args[1]
    return factor


def averaged(read: Reading, q: Wide, k: Wide, u: Expression, v: Expression, factor: float) -> Known:
    """Return scores under a scale of 1/d: the numbers factor E[q k]."""
    sizes = (*q.sizes[:-1], k.sizes[-1])

    def of(side: SideValues) -> Tensor:
        value = side.itself.moment(u, v, "equal")
        value = side.numerics.zeros(1, 1, 1) if value is None else factor * value
        value = value.expand(side.n, u.shape[0], v.shape[1])
        return value.reshape(side.n, *(1 for _ in sizes[:-2]), *value.shape[1:]).expand(side.n, *sizes)

    read.note(
        "Attention: scores scaled by 1/d tend to numbers, E[q k], in which no gradient flows "
        "(Hron et al. 2020)."
    )
    example = torch.zeros(sizes, dtype=read.dtype)
    return Known(example, Coefficient(sizes, of), moments=True)


def mixed(read: Reading, weights: Known, v: Wide) -> Wide:
    """Return A V for numbers A of the sample: attention with fixed scores, a graph's adjacency matrix."""
    if any(x < 0 for x in v.dims[-2]):
        raise read.refuse("it mixes channels by numbers of the sample.")
    value, n = _rows(read, v, len(v.dims) - 2)
    sizes = tuple(weights.example.shape)
    t = sizes[-2]

    def of(side: SideValues) -> Tensor:
        full = weights.numbers.value(side)
        index = [0] * (full.ndim - 3)
        return full[(slice(None), *index)]

    if any(s != 1 for s in sizes[:-2]) and not weights.moments:
        raise read.refuse("it mixes positions by several matrices.")
    e = Mixed((t,), Coefficient((t, n), of), value)
    dims = [tuple(x for x in d if x < 0) for d in v.dims]
    dims[-2] = (0,)
    wide = Wide(((v.pieces[0][0], e),), (t,), v.channels, tuple(dims))
    wide = read.write("LinComb", f"{read.name(weights)} {read.name(v)}   (positions mixed)", wide)
    return refactored(read, wide, wide.sizes)


def _places(w: Wide) -> list[int]:
    return [d for d, dim in enumerate(w.dims) for x in dim if x < 0]


def _rows(read: Reading, w: Wide, dim: int) -> tuple[Expression, int]:
    if len(w.pieces) > 1 or len(w.shape) > 1:
        raise read.refuse("attention over more than one axis of positions, or of concatenated vectors.")
    w, _ = single(w, dim)
    return expanded(w.only, w.shape), w.shape[0]


def _batched(read: Reading, w: Wide, dim: int) -> tuple[Expression, Shape, int]:
    """Return a vector with one axis of positions in a dimension, the axes in front of it, and its size."""
    if len(w.pieces) > 1:
        raise read.refuse("attention of concatenated vectors.")
    w, _ = single(w, dim)
    (*lead, size) = w.shape
    return expanded(w.only, w.shape), tuple(lead), size


def _padded(shape: Shape, like: Shape) -> Shape:
    return (1,) * (len(like) - len(shape)) + shape


def _unscaled(e: Expression) -> tuple[Expression, float]:
    if isinstance(e, Multiple) and isinstance(e.factor, float | int):
        inner, factor = _unscaled(e.inner)
        return inner, factor * e.factor
    return e, 1.0


def weighted(read: Reading, a: Wide, v: Wide) -> Wide:
    """Return A V: a mean of values at positions, weighted by another function; by sampling."""
    weights, values = a.canonical(), v.canonical()
    rank = len(weights.dims)
    weights, _ = single(weights, rank - 2)
    weights, _ = single(weights, rank - 1)
    value, lead, _ = _batched(read, values, len(values.dims) - 2)
    if len(weights.pieces) > 1:
        raise read.refuse("attention of concatenated vectors.")
    *front, t, _ = weights.shape
    if _padded(lead, tuple(front)) != tuple(front):
        alike = [prod(w.size(x) for x in d if x >= 0) for w in (weights, values) for d in w.dims[:-2]]
        if alike[: len(alike) // 2] != alike[len(alike) // 2 :]:
            raise read.refuse("attention whose values have other axes of positions than its scores.")
        value = reshaped(value, (*front, value.shape[-1]))
    shape = (*front, t)
    soft, how = weights.only, "sampling"
    inside = soft.parts if isinstance(soft, Apply) and soft.function.name == "softmax" else ()
    found = scores_of(inside[0]) if inside else None
    apart = found is not None and unrelated(tuple(table.vector for table in found.tables), (value,))
    if found is not None and value.centered and apart:  # a coordinate of the values is 1/sqrt(d) of a score
        e: Expression = Attended(shape, replace(found, shape=weights.shape), value)
        how = "draws of the scores"
    elif found is not None and found.of_heads:
        raise read.refuse("scores with numbers that differ from head to head and values of this kind.")
    elif front:
        raise read.refuse("attention over more than one axis of positions with this kind of scores.")
    else:
        function = Function("weighted mean", lambda p, x: matvec(expand(p, weights.shape), x), None, False)
        e = Apply(shape, function, (expanded(soft, weights.shape), value))
    fronts = (*[()] * (rank - len(values.dims)), *values.dims[:-2])
    layout = [
        [*([True] * sum(x >= 0 for x in one)), *([False] * sum(x < 0 for x in other))]
        for one, other in zip(weights.dims[:-2], fronts, strict=True)
    ]
    dims = numbered([*layout, [True], [x >= 0 for x in values.dims[-1]]])
    wide = Wide(((values.pieces[0][0], e),), shape, values.channels, dims)
    wide = read.write("Nonlin", f"{read.name(a)} {read.name(v)}   [{how}]", wide)
    return refactored(read, wide, wide.sizes)


def _over_positions(*ops: torch._ops.OpOverload) -> None:
    """Register a function of all positions along a dimension, each head by itself."""

    @rule(*ops)
    def normalized(read: Reading, a: Wide, dim: int, *_: object, **__: object) -> Wide:
        name = str(ops[0].overloadpacket).removeprefix("aten.")
        a = a.canonical()
        dim %= len(a.dims)
        if any(x < 0 for x in a.dims[dim]):
            raise read.refuse(
                f"a {name} over channels of infinite width has no limit; leave it out, and give "
                f"ntkit the logits."
            )
        a, axis = single(a, dim)
        back, shape = axis - len(a.shape), a.shape
        function = Function(name, lambda t: ops[0](expand(t, shape), back), None, False)

        def of(e: Expression) -> Expression:
            e = expanded(e, shape)
            found = scores_of(e) if name == "softmax" and back == -1 else None
            if found is not None and found.of_heads:  # for the product with values
                return Apply(shape, function, (e,))
            return read.apply(function, e)

        value = a.map(of)
        return read.write("Nonlin", f"{name}({read.name(a)})   [sampling]", value)


_over_positions(aten.softmax.int, aten._softmax.default)
_over_positions(aten.log_softmax.int, aten._log_softmax.default)
