"""The covariance and tangent kernel of the vectors of a tensor program, for pairs of samples."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal

import torch
from torch import Tensor

from ntkit.infinite.moments import attention, expectation, turned
from ntkit.infinite.moments.bilinear import COMPOUND, KernelOf, bilinear
from ntkit.infinite.variables import vectors as vec
from ntkit.infinite.variables.algebra import Need, Value, add, at_equal, multiply, refuse, times
from ntkit.infinite.variables.demand import reader
from ntkit.infinite.variables.expression import Expression, apart
from ntkit.infinite.variables.functions import Apply, KernelSum, unrelated
from ntkit.infinite.variables.order import KINDS, Order, bytes_of
from ntkit.infinite.variables.positions import Shape
from ntkit.infinite.variables.protocols import Remembers, SideValues, T

WITHOUT_GRADIENT = (vec.Offset, vec.Raw, vec.Stopped)  # no gradient goes through them


class Pairs(Remembers):
    """Pairs of samples: all of two batches (``outer``), or the first with the first and so on.

    ``derive`` if tangent kernels will be asked for: functions that are sampled are then derived at once.
    """

    def __init__(self, left: SideValues, right: SideValues, outer: bool, derive: bool = False) -> None:
        self.left, self.right, self.outer, self.derive = left, right, outer, derive
        self._memo: dict[Hashable, Any] = {}
        self._readers: dict[Hashable, set[Hashable]] = {}  # which values asked for each

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what belongs to a key, computed on the first call; note who asked."""
        value = super().remember(key, make)
        self._readers.setdefault(key, set()).add(reader(self._memo, KINDS))
        return value

    def follow(self, order: Order) -> None:
        """Make all values in an order that is known, and forget each after its last use."""
        for (what, u, v, need), done in order.steps:
            of = self.moment if what == "moment" else self.tangent
            of(u, v, need)
            for key in done:
                self._memo.pop(key, None)

    @property
    def order(self) -> Order:
        """The order in which all values were made."""
        return Order.of(self._memo, self._readers)

    @property
    def bytes(self) -> int:
        """What the values computed so far hold in memory."""
        return sum(map(bytes_of, list(self._memo.values())))

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

    def moment(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return E[u v'] for u of the left sample and v of the right one."""
        return self._recall("moment", u, v, need, self._moment)

    def tangent(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return Theta(u, v'): the product of the gradients of both with respect to all weights."""
        return self._recall("tangent", u, v, need, self._tangent)

    def covariance(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return Cov[u, v']."""
        u, v = (e.varying if isinstance(e, vec.VectorSum) else e for e in (u, v))
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

    def _recall(self, what: str, u: Expression, v: Expression, need: Need, make: KernelOf) -> Value:
        if apart(u, v):  # independent, and trained by different weights
            return self.means(u, v, need) if what == "moment" else None

        def value() -> Value:
            whole = (what, u, v, "all")
            if need == "equal" and whole in self._memo:
                return at_equal(self.remember(whole, value), u.shape, v.shape)
            return make(u, v, need)

        return self.remember((what, u, v, need), value)

    def _moment(self, u: Expression, v: Expression, need: Need) -> Value:
        match u, v:
            case vec.Stopped(), _:
                return self.moment(u.inner, v, need)
            case _, vec.Stopped():
                return self.moment(u, v.inner, need)
            case vec.Gain(), _:
                return times(self.moment(u.inner, v, need), u.vector.average)
            case _, vec.Gain():
                return times(self.moment(u, v.inner, need), v.vector.average)
        if isinstance(u, KernelSum) and u.same(v):
            return self._depthwise(self.moment, u, v, need, u.law.variance)
        if isinstance(u, COMPOUND) or isinstance(v, COMPOUND):
            return bilinear(self, self.moment, u, v, need)
        match u, v:
            case (vec.Offset(), _) | (_, vec.Offset()):
                return self.means(u, v, need)
            case vec.Line(), vec.Line():
                law = u.matrix.law
                return self._contracted(self.moment, u, v, need, law.variance) if u.same(v) else None
            case vec.Vector(), vec.Vector():
                return add((self._same_vector(u, v, need, u.law.variance), self.means(u, v, need)))
            case vec.Inner(), vec.Inner():
                return self._inner(u, v, need, self.moment, self.moment)
            case vec.Attended(), vec.Attended():
                return attention.moment(self, u, v, need)
            case (vec.Attended(), _) | (_, vec.Attended()):
                return _aside(u, v)
            case vec.Raw(), vec.Raw():
                return self._data(u, v, need)
            case (vec.Raw(), _) | (_, vec.Raw()):
                return self.means(u, v, need)
            case (vec.Turned(), _) | (_, vec.Turned()):
                return turned.moment(self, u, v, need)
            case (Apply(), _) | (_, Apply()):
                return expectation.product(self, u, v, need)
        return self.means(u, v, need)

    def _tangent(self, u: Expression, v: Expression, need: Need) -> Value:
        if isinstance(u, WITHOUT_GRADIENT) or isinstance(v, WITHOUT_GRADIENT):
            return None
        if isinstance(u, KernelSum) and u.same(v):
            through = self._depthwise(self.tangent, u, v, need, u.law.variance)
            return add((self._depthwise(self.moment, u, v, need, u.law.step), through))
        if isinstance(u, COMPOUND) or isinstance(v, COMPOUND):
            return bilinear(self, self.tangent, u, v, need)
        match u, v:
            case (vec.Gain(), Apply()) | (Apply(), vec.Gain()) if expectation.entangled(u, v):
                return expectation.tangent(self, u, v, need)
            case vec.Gain(), vec.Gain():
                step = self._same_vector(u.vector, v.vector, need, u.vector.law.step)
                factor = u.vector.average * v.vector.average
                through = times(self.tangent(u.inner, v.inner, need), factor)
                return add((through, multiply(self.moment(u.inner, v.inner, need), step)))
            case vec.Gain(), _:
                return times(self.tangent(u.inner, v, need), u.vector.average)
            case _, vec.Gain():
                return times(self.tangent(u, v.inner, need), v.vector.average)
            case vec.Line(), vec.Line():
                return self._line_tangent(u, v, need) if u.same(v) else None
            case vec.Attended(), vec.Attended():
                return attention.tangent(self, u, v, need)
            case (vec.Attended(), _) | (_, vec.Attended()):
                return _aside(u, v)
            case (vec.Turned(), _) | (_, vec.Turned()):
                return turned.tangent(self, u, v, need)
            case (Apply(), _) | (_, Apply()):
                return expectation.tangent(self, u, v, need)
            case vec.Vector(), vec.Vector():
                return self._same_vector(u, v, need, u.law.step)
            case vec.Inner(), vec.Inner():
                first = self._inner(u, v, need, self.tangent, self.moment)
                return add((first, self._inner(u, v, need, self.moment, self.tangent)))
        return None

    def _depthwise(self, of: KernelOf, u: KernelSum, v: Expression, need: Need, factor: float) -> Value:
        """Return a factor times the sum over the window of a kernel of what the entries see."""
        assert isinstance(v, KernelSum)
        inner = of(u.inner, v.inner, u.window.needs(v.window, need)) if factor else None
        if inner is None:
            return None
        expectation.account_terms(self, u)
        value = u.window.sum(v.window, inner, u.inner.shape, v.inner.shape, len(self.batch), need)
        return times(value, factor)

    def _line_tangent(self, u: vec.Line, v: vec.Line, need: Need) -> Value:
        """Return the contraction of step E[h h'] + variance Theta(h, h'), both at once."""
        law = u.matrix.law
        pairs = [(a, b) for (_, a), (_, b) in zip(u.inputs, v.inputs, strict=False)]
        wanted = u.contraction.needs(v.contraction, need)
        if law.variance and all(self.tangent(a, b, wanted) is None for a, b in pairs):
            return times(self.moment(u, v, need), law.step / law.variance)
        if not law.variance:  # weights that start at zero let no gradient through
            return self._contracted(self.moment, u, v, need, law.step)
        ratio = law.step / law.variance

        def both(a: Expression, b: Expression, need: Need) -> Value:
            return add((times(self.moment(a, b, need), ratio), self.tangent(a, b, need)))

        return self._contracted(both, u, v, need, law.variance)

    def _contracted(self, of: KernelOf, u: vec.Line, v: vec.Line, need: Need, factor: float) -> Value:
        """Return a factor times the mean over fan_in of a kernel of the inputs."""
        if len(u.inputs) != len(v.inputs):
            return None
        batch = len(self.batch)
        values = []
        for (share, a), (_, b) in zip(u.inputs, v.inputs, strict=True):
            inner = of(a, b, u.contraction.needs(v.contraction, need))
            if inner is not None:
                value = u.contraction.sum(v.contraction, inner, a.shape, b.shape, batch, need)
                values.append(times(value, share * u.contraction.scale * factor))
        return add(values)

    def _same_vector(self, u: vec.Vector, v: vec.Vector, need: Need, value: float) -> Value:
        if u.name != v.name or not value or not u.shares(v):
            return None
        shape = [1] * len(self.batch)
        if need == "equal" or all(s == 1 for s in u.shape):
            positions = [1] * len(u.shape) * (2 if need == "all" else 1)
            return self.left.numerics.zeros(*shape, *positions) + value
        size = int(torch.Size(u.shape).numel())
        return value * self.left.numerics.eye(size).reshape(*shape, *u.shape, *v.shape)

    def _inner(self, u: vec.Inner, v: vec.Inner, need: Need, first: KernelOf, second: KernelOf) -> Value:
        """Return the covariance of two sums over coordinates, positions ``[t]`` and ``[s]`` in ``[t, s]``."""
        a, b = first(u.left, v.left, need), second(u.right, v.right, need)
        if a is None or b is None:
            return None
        turn = vec.turns(u, v)
        if turn is None:
            return u.factor * a * b
        if need == "equal":
            return u.factor * a * b * turn.square().sum(-1)
        t, s, _ = turn.shape
        turn = turn.flatten(0, 1)
        lead = [1] * (len(u.shape) - 2)
        return u.factor * a * b * (turn @ turn.T).reshape(*lead, t, s, *[1] * (len(v.shape) - 2), t, s)

    def _data(self, u: vec.Raw, v: vec.Raw, need: Need) -> Tensor:
        """Return products of data; a constant of the network has one row for all samples."""
        a, b = u.data.value(self.left), v.data.value(self.right)
        left, right = a.shape[1:-1], b.shape[1:-1]
        if need == "equal":
            a, b = self.lift(a, "left", need, 0), self.lift(b, "right", need, 0)
            return torch.einsum("...c,...c->...", a, b) / a.shape[-1]
        a, b = (t.flatten(1, -2) if t.ndim > 2 else t[:, None] for t in (a, b))
        block = torch.einsum("itc,jsc->ijts" if self.outer else "itc,isc->its", a, b) / a.shape[-1]
        return block.reshape(*block.shape[: len(self.batch)], *left, *right)


def _aside(u: Expression, v: Expression) -> None:
    """Return zero for an attention and a vector that has nothing to do with its values."""
    values, other = (u.values, v) if isinstance(u, vec.Attended) else (v, u)
    values = values.values if isinstance(values, vec.Attended) else values
    if not unrelated((values,), (other,)):
        raise refuse("The values of an attention meet the attention itself.")
