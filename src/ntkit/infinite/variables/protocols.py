"""What vectors and expectations ask of the batches and pairs of samples that they are evaluated on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from ntkit.infinite.variables.algebra import Need, Value
from ntkit.infinite.variables.demand import made
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.numerics import Numerics
from ntkit.infinite.variables.positions import Shape

T = TypeVar("T")


class Remembers(Protocol):
    """What computes each of its values once."""

    _memo: dict[Hashable, Any]

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """Return what belongs to a key, computed on the first call."""
        if key not in self._memo:
            made(self._memo, key, make)
        return self._memo[key]


class SideValues(Remembers, Protocol):
    """What depends on each sample of a batch alone."""

    x: Any  # the inputs, as the network takes them
    n: int
    numerics: Numerics

    @property
    def itself(self) -> PairValues:
        """Each sample with itself."""
        ...

    def mean(self, u: Expression) -> Value:
        """Return E[u], ``[n, *shape]``."""
        ...

    def variance(self, u: Expression) -> Tensor:
        """Return Var[u] at each position, ``[n, *shape]``."""
        ...


class PairValues(Remembers, Protocol):
    """What depends on a pair of samples: all of two batches (``outer``), or the first with the first..."""

    left: SideValues
    right: SideValues
    outer: bool
    derive: bool  # tangent kernels will be asked for

    @property
    def batch(self) -> Shape:
        """The first axes of all values: ``(n1, n2)`` or ``(n,)``."""
        ...

    def lift(self, value: Tensor, side: Literal["left", "right"], need: Need, other: int) -> Tensor:
        """Let a value ``[n, *shape]`` of one side broadcast with values of pairs (``other`` axes there)."""
        ...

    def moment(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return E[u v'] for u of the left sample and v of the right one."""
        ...

    def tangent(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return Theta(u, v'): the product of the gradients of both with respect to all weights."""
        ...

    def covariance(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return Cov[u, v']."""
        ...

    def means(self, u: Expression, v: Expression, need: Need) -> Value:
        """Return E[u] E[v']."""
        ...


class Contraction(Protocol):
    """How a product with a weight sums over the positions of its input."""

    @property
    def scale(self) -> float:
        """What makes a mean of the sum."""
        ...

    def needs(self, other: Any, need: Need) -> Need:
        """Return which pairs of positions of the inputs it takes, beside another use of the weight."""
        ...

    def sum(self, other: Any, inner: Tensor, a: Shape, b: Shape, batch: int, need: Need) -> Tensor:
        """Return the sum of a kernel of the inputs, of shapes ``a`` and ``b``, behind ``batch`` axes."""
        ...
