"""One side of pairs of samples: a batch, and what depends on each of its samples alone."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from torch import Tensor

from ntkit.infinite.moments import expectation, turned
from ntkit.infinite.moments.pairs import Pairs
from ntkit.infinite.variables import vectors as vec
from ntkit.infinite.variables.algebra import Value, add, mapped, times
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.numerics import Numerics
from ntkit.infinite.variables.order import bytes_of
from ntkit.infinite.variables.positions import expand, matvec
from ntkit.infinite.variables.protocols import Remembers
from ntkit.inputs import batch_size


class PairSide(Remembers):
    """A batch of samples, with what depends on each of them alone: means, variances, coefficients."""

    def __init__(self, x: Any, numerics: Numerics) -> None:
        self.x, self.numerics = x, numerics
        self.n = batch_size(x)
        self._memo: dict[Hashable, Any] = {}

    @property
    def itself(self) -> Pairs:
        """Each sample with itself."""
        return self.remember("itself", lambda: Pairs(self, self, outer=False))

    @property
    def bytes(self) -> int:
        """The bytes that what is known of the samples holds."""
        return sum(map(bytes_of, list(self._memo.values()))) + self.itself.bytes

    def mean(self, u: Expression) -> Value:
        """Return E[u], ``[n, *shape]``."""
        return None if u.centered else self.remember(("mean", u), lambda: self._mean(u))

    def variance(self, u: Expression) -> Tensor:
        """Return Var[u] at each position, ``[n, *shape]``."""
        value = self.itself.covariance(u, u, "equal")
        return self.numerics.zeros(1, *(1 for _ in u.shape)) if value is None else value

    def _mean(self, u: Expression) -> Value:
        match u:
            case vec.Vector():
                return self.numerics.zeros(1, *(1 for _ in u.shape)) + u.average
            case vec.Raw():
                return u.data.value(self).mean(-1)
            case vec.Offset():
                return u.coefficient.value(self)
            case vec.VectorSum():
                return add(self.mean(term) for term in u.terms)
            case vec.Multiple():
                return times(self.mean(u.inner), u.number(self))
            case vec.Gain():
                return times(self.mean(u.inner), u.vector.average)
            case vec.Moved():
                return mapped(self.mean(u.inner), u.move.apply)
            case vec.Mixed():
                weights, shape = u.weights, u.inner.shape
                return mapped(self.mean(u.inner), lambda t: matvec(weights.value(self), expand(t, shape)))
            case vec.Stopped():
                return self.mean(u.inner)
            case vec.Turned():
                return turned.mean(self, u)
            case Apply():
                return expectation.mean(self, u)
        raise AssertionError(u)
