"""The random variables of a tensor program: what one coordinate of a vector is, width to infinity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ntkit.infinite.duals.dual import Dual
    from ntkit.infinite.moments.pairs import Side

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Expression:
    """One coordinate of a vector at each of its positions: a random array of ``shape``.

    Axes of size 1 broadcast. All coordinates of a vector are alike and, in the limit, independent.
    """

    shape: Shape

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The expressions that this one is made of."""
        return ()

    def expanded(self, shape: Shape) -> Expression:
        """Return the same with axes of size 1 repeated to a shape."""
        if self.shape == shape:
            return self
        return Moved(shape, Move((expand, shape), self.shape, shape, True, False), self)

    @cached_property
    def gaussian(self) -> bool:
        """Whether all positions together are jointly Gaussian, with those of other G-variables."""
        return True

    @cached_property
    def centered(self) -> bool:
        """Whether the mean is zero, known without any number."""
        return bool(self.parts) and all(part.centered for part in self.parts)

    @cached_property
    def gains(self) -> bool:
        """Whether a trained factor sits inside (its tangent kernel is random, not a constant)."""
        return any(part.gains for part in self.parts)


@dataclass(frozen=True, eq=False)
class Coefficient:
    """A number for each sample and position that is no random variable: ``[n, *shape]`` for a side."""

    shape: Shape
    of: Callable[[Side], Tensor]

    def value(self, side: Side) -> Tensor:
        """Return the numbers of a batch."""
        return side.remember(self, lambda: self.of(side))


@dataclass(frozen=True)
class Law:
    """How a weight is drawn and trained: what E[h h'] is multiplied with.

    ``K = variance E[h h']`` and ``Theta = step E[h h'] + variance E[h_i' h_j'] Theta_ij``.
    """

    variance: float
    step: float


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight as a matrix of infinite size, as one of its uses sees it."""

    name: str
    transposed: bool
    columns: tuple[int, int]
    law: Law

    def same(self, other: Matrix) -> bool:
        """Return whether two uses are products with the same matrix."""
        mine, theirs = (
            (self.name, self.transposed, self.columns),
            (other.name, other.transposed, other.columns),
        )
        return mine == theirs


@dataclass(frozen=True, eq=False)
class Line(Expression):
    """A G-variable g = W h: the coordinates ``rows`` of a product with a weight."""

    matrix: Matrix
    rows: Tensor
    inputs: tuple[tuple[float, Expression], ...]  # share of fan_in, vector
    contraction: Any  # how positions are summed: see linear.py and conv.py

    @cached_property
    def centered(self) -> bool:
        """A product with a centered weight is centered."""
        return True


@dataclass(frozen=True, eq=False)
class Vector(Expression):
    """A vector of parameters: a G-variable with a mean, its own at each position of ``shape``."""

    name: str
    rows: Tensor
    average: float
    law: Law  # its variance, and its tangent kernel

    @cached_property
    def centered(self) -> bool:
        """Where the parameters are drawn around zero."""
        return self.average == 0


@dataclass(frozen=True, eq=False)
class Inner(Expression):
    """A G-variable sum_i q_i k_i / sqrt(d): a product of two vectors along their coordinates."""

    left: Expression
    right: Expression
    factor: float  # of the covariance: d c^2 for c q.k

    @cached_property
    def centered(self) -> bool:
        """A product of independent centered vectors is centered."""
        return True


@dataclass(frozen=True, eq=False)
class Raw(Expression):
    """Data as a vector: numbers ``[n, *shape, channels]`` for a side, no random variable."""

    data: Coefficient


@dataclass(frozen=True, eq=False)
class Offset(Expression):
    """A number for each sample and position, the same in all coordinates."""

    coefficient: Coefficient


@dataclass(frozen=True, eq=False)
class Sum(Expression):
    """A sum of vectors."""

    terms: tuple[Expression, ...]

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The terms."""
        return self.terms

    @cached_property
    def gaussian(self) -> bool:
        """A sum of jointly Gaussian terms is Gaussian."""
        return all(term.gaussian for term in self.terms)


@dataclass(frozen=True, eq=False)
class Scaled(Expression):
    """A vector times a number for each sample and position."""

    factor: float | Coefficient
    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vector."""
        return (self.inner,)

    @cached_property
    def gaussian(self) -> bool:
        """As Gaussian as the vector."""
        return self.inner.gaussian


@dataclass(frozen=True)
class Move:
    """A linear map of positions: ``apply`` acts on the last axes of a tensor ``[..., *before]``.

    ``selects``: each position takes at most one, so that equal positions stay equal; ``fills``: some
    positions take none and are zero.
    """

    key: tuple
    before: Shape
    after: Shape
    selects: bool
    fills: bool

    def apply(self, t: Tensor) -> Tensor:
        """Map the last axes of a tensor."""
        t = t.expand(*t.shape[: t.ndim - len(self.before)], *self.before)
        return self.key[0](t, *self.key[1:])


@dataclass(frozen=True, eq=False)
class Moved(Expression):
    """A vector whose positions were permuted, selected, averaged."""

    move: Move
    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vector."""
        return (self.inner,)

    @cached_property
    def gaussian(self) -> bool:
        """As Gaussian as the vector."""
        return self.inner.gaussian


@dataclass(frozen=True, eq=False)
class Mixed(Expression):
    """A vector whose positions are summed with weights of the sample: ``[n, t, s]`` for its last axis s."""

    weights: Coefficient
    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vector."""
        return (self.inner,)

    @cached_property
    def gaussian(self) -> bool:
        """As Gaussian as the vector."""
        return self.inner.gaussian


@dataclass(frozen=True, eq=False)
class Stopped(Expression):
    """A G-variable behind a ``detach``: it keeps its covariance, no gradient goes through it."""

    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vector."""
        return (self.inner,)


@dataclass(frozen=True, eq=False)
class Gain(Expression):
    """A vector times a vector of parameters that are all equal at the start (the scale of a norm)."""

    vector: Vector
    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The factors."""
        return (self.vector, self.inner)

    @cached_property
    def gaussian(self) -> bool:
        """As Gaussian as the vector: at the start the factor is a number."""
        return self.inner.gaussian

    @cached_property
    def gains(self) -> bool:
        """Itself."""
        return True

    @cached_property
    def centered(self) -> bool:
        """As the vector."""
        return self.inner.centered


@dataclass(frozen=True)
class Function:
    """A function of coordinates: ``call`` takes tensors ``[..., *shape]`` and returns one.

    ``local`` if each position of the result depends on the same position of the arguments only.
    """

    name: str
    call: Callable[..., Tensor]
    dual: Dual | None = None
    local: bool = True


@dataclass(frozen=True, eq=False)
class Apply(Expression):
    """An H-variable h = phi(...): a function of vectors and of numbers, coordinate by coordinate."""

    function: Function
    arguments: tuple[Expression | Coefficient, ...]

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vectors among the arguments."""
        return tuple(a for a in self.arguments if isinstance(a, Expression))

    @cached_property
    def gaussian(self) -> bool:
        """A function of Gaussians is none."""
        return False

    @cached_property
    def centered(self) -> bool:
        """Not in general."""
        return False

    @cached_property
    def basis(self) -> tuple[Expression, ...]:
        """The largest Gaussian vectors that it is a function of, and the parameters in it."""
        return _basis(self)

    @cached_property
    def local(self) -> bool:
        """Whether a position depends on the same position of the basis only."""
        inside = [e for e in walk(self, below=lambda e: e not in self.basis) if e not in self.basis]
        return all(
            e.function.local if isinstance(e, Apply) else not isinstance(e, Moved | Mixed) for e in inside
        )

    @cached_property
    def factors(self) -> tuple[Expression, Expression] | None:
        """The factors of a product of two vectors that are independent."""
        if self.function.name != "mul" or len(self.arguments) != 2:
            return None
        a, b = self.arguments
        if not isinstance(a, Expression) or not isinstance(b, Expression) or sources(a) & sources(b):
            return None
        return a, b


def _basis(u: Expression) -> tuple[Expression, ...]:
    if isinstance(u, Offset):
        return ()
    if isinstance(u, Vector) or (u.gaussian and not u.gains):
        return (u,)
    return tuple(dict.fromkeys(b for part in u.parts for b in _basis(part)))


def as_function(u: Expression) -> Apply:
    """Return a vector as a function of its basis, the identity."""
    if isinstance(u, Apply):
        return u
    return u.__dict__.setdefault("function", Apply(u.shape, Function("identity", lambda t: t), (u,)))


def sources(u: Expression) -> frozenset:
    """Return which coordinates of which weights a vector is made of."""
    found: set[tuple] = set()
    for e in walk(u):
        if isinstance(e, Line):
            found.add((e.matrix.name, tuple(e.rows.flatten().tolist())))
        elif isinstance(e, Vector):
            found.add((e.name, tuple(e.rows.flatten().tolist())))
        elif isinstance(e, Inner):
            found |= sources(e.left) | sources(e.right)
    return frozenset(found)


def stopped(u: Expression) -> Expression:
    """Return a vector through which no gradient goes."""
    known = u.__dict__.setdefault("stopped", [])
    if not known:
        known.append(_stopped(u))
    return known[0]


def _stopped(u: Expression) -> Expression:
    if isinstance(u, Sum):
        return replace(u, terms=tuple(map(stopped, u.terms)))
    if isinstance(u, Scaled | Moved | Mixed):
        return replace(u, inner=stopped(u.inner))
    if isinstance(u, Gain):
        return Scaled(u.shape, u.vector.average, stopped(u.inner))
    if isinstance(u, Apply):
        return replace(
            u, arguments=tuple(stopped(a) if isinstance(a, Expression) else a for a in u.arguments)
        )
    return u if isinstance(u, Raw | Offset | Stopped) else Stopped(u.shape, u)


def walk(*roots: Expression, below: Callable[[Expression], bool] = lambda _: True) -> list[Expression]:
    """Return all expressions that some are made of up to the G-variables, each once, parts first."""
    done: dict[Expression, None] = {}
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        expression, ready = stack.pop()
        if expression in done:
            continue
        if ready:
            done[expression] = None
        else:
            stack.append((expression, True))
            stack.extend((part, False) for part in (expression.parts if below(expression) else ()))
    return list(done)


def moved(expression: Expression, move: Move) -> Expression:
    """Return a vector with its positions moved; moves that do nothing are left out."""
    if move.before == move.after and move.key[0] is reshape:
        return expression
    return Moved(move.after, move, expression)


def reshape(t: Tensor, before: int, after: Shape) -> Tensor:
    """Give the last ``before`` axes of a tensor other sizes."""
    return t.reshape(*t.shape[: t.ndim - before], *after)


def permute(t: Tensor, order: tuple[int, ...]) -> Tensor:
    """Permute the last axes of a tensor."""
    lead = t.ndim - len(order)
    return t.permute(*range(lead), *(lead + i for i in order))


def reshaped(expression: Expression, shape: Shape) -> Expression:
    """Return a vector whose positions have another shape."""
    if expression.shape == shape:
        return expression
    return moved(
        expression, Move((reshape, len(expression.shape), shape), expression.shape, shape, True, False)
    )


def expand(t: Tensor, shape: Shape) -> Tensor:
    """Repeat the last axes of a tensor to a shape."""
    return t.expand(*t.shape[: t.ndim - len(shape)], *shape)


def permuted(expression: Expression, order: tuple[int, ...]) -> Expression:
    """Return a vector whose axes of positions come in another order."""
    if order == tuple(range(len(order))):
        return expression
    after = tuple(expression.shape[i] for i in order)
    return moved(expression, Move((permute, order), expression.shape, after, True, False))


def broadcast(*shapes: Shape) -> Shape:
    """Return the shape that several broadcast to."""
    return tuple(torch.broadcast_shapes(*shapes))
