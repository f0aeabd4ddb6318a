"""The covariance and tangent kernel of the vectors of a tensor program, for pairs of samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor

from ntkit.graph import batch_size
from ntkit.infinite.moments import expectation
from ntkit.infinite.moments.numerics import Numerics
from ntkit.infinite.moments.vectors import (
    Apply,
    Expression,
    Gain,
    Inner,
    Line,
    Mixed,
    Moved,
    Offset,
    Raw,
    Scaled,
    Shape,
    Stopped,
    Sum,
    Vector,
    as_function,
    broadcast,
)

Value = Tensor | None  # None is an exact zero
Need = Literal["equal", "all"]  # [*batch, *shape] at equal positions, [*batch, *shape, *shape] for all pairs

COMPOUND = (Sum, Scaled, Moved, Mixed)


class Side:
    """A batch of samples, with what depends on each of them alone: means, variances, coefficients."""

    def __init__(self, x: Any, numerics: Numerics) -> None:
        self.x, self.numerics = x, numerics
        self.n = batch_size(x)
        self._memo: dict[Any, Any] = {}

    @property
    def own(self) -> Pairs:
        """Each sample with itself."""
        return self.remember("own", lambda: Pairs(self, self, outer=False))

    @property
    def bytes(self) -> int:
        """What is known of the samples holds in memory."""
        return self.own.bytes[0] if "own" in self._memo else 0

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made for a key, made on the first call."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def mean(self, u: Expression) -> Value:
        """Return E[u], ``[n, *shape]``."""
        return None if u.centered else self.remember(("mean", u), lambda: self._mean(u))

    def variance(self, u: Expression) -> Tensor:
        """Return Var[u] at each position, ``[n, *shape]``."""
        value = self.own.covariance(u, u, "equal")
        return self.numerics.zeros(1, *(1 for _ in u.shape)) if value is None else value

    def factor(self, u: Scaled) -> Any:
        """Return the number of a scaled vector, ``[n, *shape]`` or one for all."""
        return u.factor if isinstance(u.factor, float | int) else u.factor.value(self)

    def _mean(self, u: Expression) -> Value:
        match u:
            case Vector():
                return self.numerics.zeros(1, *(1 for _ in u.shape)) + u.average
            case Raw():
                return u.data.value(self).mean(-1)
            case Offset():
                return u.coefficient.value(self)
            case Sum():
                return add(self.mean(term) for term in u.terms)
            case Scaled():
                return times(self.mean(u.inner), self.factor(u))
            case Gain():
                return times(self.mean(u.inner), u.vector.average)
            case Moved():
                inner = self.mean(u.inner)
                return None if inner is None else u.move.apply(inner)
            case Mixed():
                inner = self.mean(u.inner)
                if inner is None:
                    return None
                return _mixed(u.weights.value(self), inner.expand(*inner.shape[:1], *u.inner.shape))
            case Stopped():
                return self.mean(u.inner)
            case Apply():
                return expectation.mean(self, u)
        raise AssertionError(u)


class Pairs:
    """Pairs of samples: all of two batches (``outer``), or the first with the first and so on.

    ``derive`` if tangent kernels will be asked for: functions that are sampled are then derived at once.
    """

    def __init__(self, left: Side, right: Side, outer: bool, derive: bool = False) -> None:
        self.left, self.right, self.outer, self.derive = left, right, outer, derive
        self._memo: dict[Any, Any] = {}

    @property
    def bytes(self) -> tuple[int, int]:
        """What the values made so far hold in memory, and what the largest does."""
        held = [v for v in list(self._memo.values()) if isinstance(v, Tensor)]
        sizes = [v.numel() * v.element_size() for v in held]
        return max([1, sum(sizes)]), max([1, *sizes])

    @property
    def batch(self) -> Shape:
        """The first axes of all values: ``(n1, n2)`` or ``(n,)``."""
        return (self.left.n, self.right.n) if self.outer else (self.left.n,)

    def lift(self, value: Tensor, side: Literal["left", "right"], need: Need, other: int) -> Tensor:
        """Let a value ``[n, *shape]`` of one side broadcast with values of pairs (``other`` axes there)."""
        shape = list(value.shape[1:])
        if need == "all":
            shape = shape + [1] * other if side == "left" else [1] * other + shape
        n = value.shape[0]
        lead = [n] if not self.outer else [n, 1] if side == "left" else [1, n]
        return value.reshape(*lead, *shape)

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made for a key, made on the first call."""
        if key not in self._memo:
            self._memo[key] = make()
        return self._memo[key]

    def moment(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return E[u v'] for u of the left sample and v of the right one."""
        return self._recall("moment", u, v, need, self._moment)

    def tangent(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return Theta(u, v'): the product of the gradients of both with respect to all weights."""
        return self._recall("tangent", u, v, need, self._tangent)

    def covariance(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return Cov[u, v']."""
        u, v = _varying(u), _varying(v)
        moment = self.moment(u, v, need)
        if moment is None or u.centered or v.centered:
            return moment
        means = self.means(u, v, need)
        return moment if means is None else moment - means

    def means(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return E[u] E[v']."""
        left, right = self.left.mean(u), self.right.mean(v)
        if left is None or right is None:
            return None
        return self.lift(left, "left", need, len(v.shape)) * self.lift(right, "right", need, len(u.shape))

    def _recall(self, what: str, u: Expression, v: Expression, need: Need, make: Callable) -> Value:
        key = (what, u, v, need)
        if key not in self._memo:
            whole = self._memo.get((what, u, v, "all"), self)
            self._memo[key] = make(u, v, need) if whole is self else at_equal(whole, u.shape, v.shape)
        return self._memo[key]

    def _moment(self, u: Expression, v: Expression, need: Need) -> Value:
        if isinstance(u, COMPOUND) or isinstance(v, COMPOUND):
            return self._bilinear(self.moment, u, v, need)
        match u, v:
            case Stopped(), _:
                return self.moment(u.inner, v, need)
            case _, Stopped():
                return self.moment(u, v.inner, need)
            case Gain(), _:
                return times(self.moment(u.inner, v, need), u.vector.average)
            case _, Gain():
                return times(self.moment(u, v.inner, need), v.vector.average)
            case (Offset(), _) | (_, Offset()):
                return self.means(u, v, need)
            case Line(), Line():
                if not _same_line(u, v):
                    return None
                return self._contracted(self.moment, u, v, need)
            case Vector(), Vector():
                return add((self._same_vector(u, v, need, u.law.variance), self.means(u, v, need)))
            case Inner(), Inner():
                return self._inner(u, v, need, self.moment, self.moment)
            case Raw(), Raw():
                return self._data(u, v, need)
            case (Raw(), _) | (_, Raw()):
                return self.means(u, v, need)
            case (Apply(), _) | (_, Apply()):
                return expectation.product(self, u, v, need)
        return self.means(u, v, need)

    def _tangent(self, u: Expression, v: Expression, need: Need) -> Value:
        if isinstance(u, Offset | Raw | Stopped) or isinstance(v, Offset | Raw | Stopped):
            return None
        if isinstance(u, COMPOUND) or isinstance(v, COMPOUND):
            return self._bilinear(self.tangent, u, v, need)
        match u, v:
            case (Gain(), Apply()) | (Apply(), Gain()) if expectation.entangled(u, v):
                return expectation.tangent(self, as_function(u), as_function(v), need)
            case Gain(), Gain():
                own = self._same_vector(u.vector, v.vector, need, u.vector.law.step)
                moment = self.moment(u.inner, v.inner, need)
                factor = u.vector.average * v.vector.average
                through = times(self.tangent(u.inner, v.inner, need), factor)
                return add((through, None if own is None or moment is None else moment * own))
            case Gain(), _:
                return times(self.tangent(u.inner, v, need), u.vector.average)
            case _, Gain():
                return times(self.tangent(u, v.inner, need), v.vector.average)
            case Line(), Line():
                if not _same_line(u, v):
                    return None
                return self._line_tangent(u, v, need)
            case (Apply(), _) | (_, Apply()):
                return expectation.tangent(self, u, v, need)
            case Vector(), Vector():
                return self._same_vector(u, v, need, u.law.step)
            case Inner(), Inner():
                first = self._inner(u, v, need, self.tangent, self.moment)
                return add((first, self._inner(u, v, need, self.moment, self.tangent)))
        return None

    def _bilinear(self, of: Callable[..., Value], u: Expression, v: Expression, need: Need) -> Value:
        match u, v:
            case Moved(), Moved() if need == "equal" and u.move == v.move and u.move.selects:
                inner = of(u.inner, v.inner, "equal")
                return None if inner is None else u.move.apply(inner)
            case (Moved(), _) | (_, Moved()) if need == "equal":
                whole = of(u, v, "all")
                return None if whole is None else at_equal(whole, u.shape, v.shape)
            case Moved(), _:
                inner = of(u.inner, v, "all")
                return (
                    None if inner is None else _on_left(u.move.apply, inner, len(u.inner.shape), len(v.shape))
                )
            case _, Moved():
                inner = of(u, v.inner, "all")
                return None if inner is None else v.move.apply(inner)
            case (Mixed(), _) | (_, Mixed()) if need == "equal":
                whole = of(u, v, "all")
                return None if whole is None else at_equal(whole, u.shape, v.shape)
            case Mixed(), _:
                inner = of(u.inner, v, "all")
                if inner is None:
                    return None
                inner = inner.expand(
                    *inner.shape[: inner.ndim - 1 - len(v.shape)],
                    *u.inner.shape,
                    *inner.shape[inner.ndim - len(v.shape) :],
                )
                weights = self.lift(u.weights.value(self.left), "left", "all", len(v.shape) - 1)
                flat = inner.flatten(len(self.batch) + 1)
                mixed = weights.reshape(*weights.shape[: len(self.batch)], *u.weights.shape) @ flat
                return mixed.reshape(*mixed.shape[:-1], *inner.shape[len(self.batch) + 1 :])
            case _, Mixed():
                inner = of(u, v.inner, "all")
                if inner is None:
                    return None
                inner = inner.expand(*inner.shape[:-1], *v.inner.shape)
                weights = self.lift(v.weights.value(self.right), "right", "all", 0)
                flat = inner.flatten(len(self.batch), -2)
                mixed = flat @ weights.mT
                return mixed.reshape(
                    *mixed.shape[: len(self.batch)], *inner.shape[len(self.batch) : -1], mixed.shape[-1]
                )
            case Sum(), _:
                return add(of(term, v, need) for term in u.terms)
            case _, Sum():
                return add(of(u, term, need) for term in v.terms)
            case Scaled(), _:
                factor = self.left.factor(u)
                if isinstance(factor, Tensor):
                    factor = self.lift(factor, "left", need, len(v.shape))
                return times(of(u.inner, v, need), factor)
            case _, Scaled():
                factor = self.right.factor(v)
                if isinstance(factor, Tensor):
                    factor = self.lift(factor, "right", need, len(u.shape))
                return times(of(u, v.inner, need), factor)
        raise AssertionError((u, v))

    def _line_tangent(self, u: Line, v: Line, need: Need) -> Value:
        """Return the contraction of step E[h h'] + variance Theta(h, h'), of their sum at once."""
        law = u.matrix.law
        pairs = [(a, b) for (_, a), (_, b) in zip(u.inputs, v.inputs, strict=False)]
        wanted = u.contraction.needs(v.contraction, need)
        if law.variance and all(self.tangent(a, b, wanted) is None for a, b in pairs):
            return times(self.moment(u, v, need), law.step / law.variance)
        ratio = law.step / law.variance if law.variance else 0.0

        def both(a: Expression, b: Expression, need: Need) -> Value:
            return add((times(self.moment(a, b, need), ratio), self.tangent(a, b, need)))

        return self._contracted(both, u, v, need)

    def _contracted(self, of: Callable[..., Value], u: Line, v: Line, need: Need) -> Value:
        """Return the variance of the weight times the mean over fan_in of a kernel of the inputs."""
        if len(u.inputs) != len(v.inputs):
            return None
        batch = len(self.batch)
        values = []
        for (share, a), (_, b) in zip(u.inputs, v.inputs, strict=True):
            inner = of(a, b, u.contraction.needs(v.contraction, need))
            if inner is not None:
                value = u.contraction.sum(v.contraction, inner, a.shape, b.shape, batch, need)
                values.append(times(value, share * u.contraction.scale * u.matrix.law.variance))
        return add(values)

    def _same_vector(self, u: Vector, v: Vector, need: Need, value: float) -> Value:
        if u.name != v.name or not value or not same_rows(u.rows, v.rows, u.name):
            return None
        shape = [1] * len(self.batch)
        if need == "equal" or all(s == 1 for s in u.shape):
            return (
                self.left.numerics.zeros(*shape, *([1] * len(u.shape) * (2 if need == "all" else 1))) + value
            )
        size = int(torch.Size(u.shape).numel())
        return value * self.left.numerics.eye(size).reshape(*shape, *u.shape, *v.shape)

    def _inner(self, u: Inner, v: Inner, need: Need, first: Callable, second: Callable) -> Value:
        """Return the covariance of two sums over coordinates, positions ``[t]`` and ``[s]`` in ``[t, s]``."""
        a, b = first(u.left, v.left, need), second(u.right, v.right, need)
        return None if a is None or b is None else u.factor * a * b

    def _data(self, u: Raw, v: Raw, need: Need) -> Tensor:
        a, b = u.data.value(self.left), v.data.value(self.right)
        other = "j" if self.outer else "i"
        if need == "all":
            first, second = (
                a.flatten(1, -2) if a.ndim > 2 else a[:, None],
                b.flatten(1, -2) if b.ndim > 2 else b[:, None],
            )
            block = torch.einsum(f"itc,{other}sc->i{other.strip('i')}ts", first, second)
            block = block.reshape(*self.batch, *a.shape[1:-1], *b.shape[1:-1])
        else:
            block = torch.einsum(f"i...c,{other}...c->i{other.strip('i')}...", a, b)
        return block / a.shape[-1]


def _mixed(weights: Tensor, t: Tensor) -> Tensor:
    return (weights @ t.unsqueeze(-1)).squeeze(-1)


def _varying(u: Expression) -> Expression:
    """Return a vector without the numbers in its sum, whose covariance is the same."""
    if not isinstance(u, Sum) or not any(isinstance(t, Offset) for t in u.terms):
        return u
    known = u.__dict__.setdefault("varying", [])
    if not known:
        known.append(Sum(u.shape, tuple(t for t in u.terms if not isinstance(t, Offset))))
    return known[0]


def same_rows(a: Tensor, b: Tensor, name: str) -> bool:
    """Return whether two vectors share their coordinates (all or none; anything else is refused)."""
    if a is b:
        return True
    if a.shape != b.shape:
        raise expectation.refuse(
            f"Slices of {name} of sizes {a.numel()} and {b.numel()} meet in one operation."
        )
    equal = a == b
    if equal.all():
        return True
    if equal.any():
        raise expectation.refuse(f"Slices of {name} that overlap in a part of their coordinates meet.")
    return False


def _same_line(u: Line, v: Line) -> bool:
    return u.matrix.same(v.matrix) and same_rows(u.rows, v.rows, u.matrix.name)


def add(values: Iterable[Value]) -> Value:
    """Return a sum in which None is zero."""
    some = [value for value in values if value is not None]
    return reduce(torch.add, some) if some else None


def times(value: Value, factor: Any) -> Value:
    """Return a product in which None is zero."""
    if value is None or (isinstance(factor, float | int) and factor == 1):
        return value
    return None if isinstance(factor, float | int) and factor == 0 else value * factor


def at_equal(whole: Value, left: Shape, right: Shape) -> Value:
    """Return the values at equal positions from those of all pairs."""
    if whole is None:
        return None
    shape, nd = broadcast(left, right), len(left)
    lead = whole.shape[: whole.ndim - 2 * nd]
    whole = whole.expand(*lead, *shape, *shape)
    for i in range(nd):
        whole = torch.diagonal(whole, dim1=len(lead), dim2=len(lead) + nd - i)
    return whole


def _on_left(apply: Callable[[Tensor], Tensor], t: Tensor, left: int, right: int) -> Tensor:
    """Apply a map to the positions of the left one of a pair."""
    batch = t.ndim - left - right
    lead = range(batch)
    first, second = range(batch, batch + left), range(batch + left, t.ndim)
    moved = apply(t.permute(*lead, *second, *first))
    after = range(batch + right, moved.ndim)
    return moved.permute(*lead, *after, *range(batch, batch + right))
