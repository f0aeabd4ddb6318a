"""The random variables of a tensor program: what one coordinate of a vector is, width to infinity."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ntkit.infinite.variables.algebra import refuse
from ntkit.infinite.variables.expression import Expression, always, union
from ntkit.infinite.variables.positions import Move, Shape, expand, permute, reshape
from ntkit.infinite.variables.protocols import Contraction, SideValues


@dataclass(frozen=True, eq=False)
class Coefficient:
    """A number for each sample and position, not a random variable: ``[n, *shape]`` for a side.

    ``fixed`` are the numbers where they are the network's own, the same for all samples.
    """

    shape: Shape
    of: Callable[[SideValues], Tensor]
    fixed: Tensor | None = None

    def value(self, side: SideValues) -> Tensor:
        """Return the numbers of a batch."""
        return side.remember(self, lambda: self.of(side))


@dataclass(frozen=True)
class WeightLaw:
    """How a weight is drawn and trained: what E[h h'] is multiplied by.

    ``K = variance E[h h']`` and ``Theta = step E[h h'] + variance E[h_i' h_j'] Theta_ij``.
    """

    variance: float
    step: float


@dataclass(frozen=True, eq=False)
class WeightMatrix:
    """A weight as a matrix of infinite size, as one of its uses sees it."""

    name: str
    transposed: bool
    columns: tuple[int, int]
    law: WeightLaw

    def same(self, other: WeightMatrix) -> bool:
        """Return whether two uses are products with the same matrix."""
        mine, theirs = ((m.name, m.transposed, m.columns) for m in (self, other))
        return mine == theirs


@dataclass(frozen=True, eq=False, repr=False)
class Line(Expression):
    """A G-variable g = W h: the coordinates ``rows`` of a product with a weight."""

    matrix: WeightMatrix
    rows: Tensor
    inputs: tuple[tuple[float, Expression], ...]  # share of fan_in, vector
    contraction: Contraction

    centered = always(True)  # a product with a centered weight

    @cached_property
    def names(self) -> frozenset[str]:
        """The weight."""
        return frozenset([self.matrix.name])

    def same(self, other: Line) -> bool:
        """Return whether two products have the same weight and rows."""
        return self.matrix.same(other.matrix) and same_rows(self.rows, other.rows, self.matrix.name)


@dataclass(frozen=True, eq=False, repr=False)
class Vector(Expression):
    """A vector of parameters: a G-variable with a mean, its own at each position of ``shape``."""

    name: str
    rows: Tensor
    average: float
    law: WeightLaw  # its variance, and its tangent kernel

    @cached_property
    def key(self) -> Hashable:
        """The parameters that it holds."""
        return self.name, *self._places

    @cached_property
    def _places(self) -> tuple[Shape, bytes]:
        return tuple(self.rows.shape), self.rows.long().cpu().numpy().tobytes()

    def shares(self, other: Vector) -> bool:
        """Return whether another slice of the same parameter is this one; one that overlaps is refused."""
        return self.rows is other.rows or _shared(self.name, self._places, other._places)

    @cached_property
    def names(self) -> frozenset[str]:
        """The parameter."""
        return frozenset([self.name])

    @cached_property
    def centered(self) -> bool:
        """Where the parameters are drawn around zero."""
        return self.average == 0


@dataclass(frozen=True, eq=False, repr=False)
class Inner(Expression):
    """A G-variable sum_i q_i k_i / sqrt(d): a product of two vectors along their coordinates."""

    left: Expression
    right: Expression
    factor: float  # of the covariance: d c^2 for c q.k
    turn: Tensor | None = None  # [t, s, r]: the covariance times (turn turn')[ts, t's'], summed over r

    centered = always(True)  # a product of independent centered vectors

    @cached_property
    def names(self) -> frozenset[str]:
        """The weights of both."""
        return union((self.left.names, self.right.names))


@dataclass(frozen=True, eq=False, repr=False)
class Raw(Expression):
    """Data as a vector: numbers ``[n, *shape, channels]`` for a side, not a random variable.

    ``places [*shape]`` where it is zero but in one channel, the same for all samples.
    """

    data: Coefficient
    places: Tensor | None = None

    raw = always(True)


@dataclass(frozen=True, eq=False, repr=False)
class Offset(Expression):
    """A number for each sample and position, the same in all coordinates."""

    coefficient: Coefficient


@dataclass(frozen=True, eq=False, repr=False)
class VectorSum(Expression):
    """A sum of vectors."""

    terms: tuple[Expression, ...]

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The terms."""
        return self.terms

    @cached_property
    def centered(self) -> bool:
        """Where all terms are; the sum of none is zero."""
        return all(term.centered for term in self.terms)

    @cached_property
    def gaussian(self) -> bool:
        """A sum of jointly Gaussian terms is Gaussian."""
        return all(term.gaussian for term in self.terms)

    @cached_property
    def varying(self) -> Expression:
        """The sum without the numbers in it, whose covariance is the same."""
        terms = tuple(term for term in self.terms if not isinstance(term, Offset))
        return self if len(terms) == len(self.terms) else VectorSum(self.shape, terms)


class Linear(Expression):
    """A linear function of one vector, as Gaussian as the vector."""

    inner: Expression

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vector."""
        return (self.inner,)

    @cached_property
    def gaussian(self) -> bool:
        """As Gaussian as the vector."""
        return self.inner.gaussian


@dataclass(frozen=True, eq=False, repr=False)
class Multiple(Linear):
    """A vector times a number for each sample and position."""

    factor: float | Coefficient
    inner: Expression

    def number(self, side: SideValues) -> float | Tensor:
        """Return the number, ``[n, *shape]`` or one for all."""
        return self.factor.value(side) if isinstance(self.factor, Coefficient) else self.factor


@dataclass(frozen=True, eq=False, repr=False)
class Moved(Linear):
    """A vector whose positions were permuted, selected, averaged."""

    move: Move
    inner: Expression


@dataclass(frozen=True, eq=False, repr=False)
class Turned(Linear):
    """Fixed matrices times the coordinates of each head: ``[*positions, d', d]``, the same for all heads.

    Its coordinates have not one law: its kernels are means over them.
    """

    matrices: Tensor
    inner: Expression

    gaussian = always(False)
    raw = always(True)


@dataclass(frozen=True, eq=False, repr=False)
class Mixed(Linear):
    """A vector whose positions are summed with weights of the sample: ``[n, t, s]`` for its last axis s."""

    weights: Coefficient
    inner: Expression


@dataclass(frozen=True, eq=False, repr=False)
class Attended(Expression):
    """Means of values ``[*w, s]`` at positions, weighted by a softmax of scores ``[*w, t, s]``: ``[*w, t]``.

    Where numbers differ from head to head its kernels are means over heads. The values are centered and
    independent of the scores, so that its kernels are means over draws of the scores alone.
    """

    scores: Scores
    values: Expression

    gaussian = always(False)
    centered = always(True)

    @cached_property
    def raw(self) -> bool:
        """Whether heads differ."""
        return bool(self.scores.of_heads) or self.values.raw

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vectors that it is made of."""
        return (self.scores.inner, *(table.vector for table in self.scores.tables), self.values)


@dataclass(frozen=True, eq=False)
class Table:
    """Parameters in scores, ``number vector``: at each place one of ``count`` entries of a vector of them.

    ``places [t, s]``, -1 for none; ``scale`` is the number with those inside the vector.
    """

    vector: Expression
    number: float
    name: str
    rows: Tensor
    average: float
    law: WeightLaw
    count: int
    places: Tensor
    scale: float
    trained: bool

    def same(self, other: Table) -> bool:
        """Return whether two are made of the same parameters."""
        return self.name == other.name and same_rows(self.rows, other.rows, self.name)


@dataclass(frozen=True, eq=False)
class Scores:
    """Scores of attention, number inner masks + offsets + tables: what a softmax is taken of."""

    inner: Inner
    number: float
    masks: tuple[Coefficient, ...]
    offsets: tuple[Coefficient, ...]
    shape: Shape
    trained: bool = True  # whether gradients go through them
    tables: tuple[Table, ...] = ()
    of_heads: tuple[tuple[Raw, float], ...] = ()  # numbers [t, s, heads] that are added, and a factor


@dataclass(frozen=True, eq=False, repr=False)
class Stopped(Linear):
    """A G-variable behind a ``detach``: it keeps its covariance, and no gradient passes."""

    inner: Expression

    gaussian = always(True)


@dataclass(frozen=True, eq=False, repr=False)
class Gain(Linear):
    """A vector times a vector of parameters that are all equal at the start (the scale of a norm).

    As Gaussian as the vector: at the start the factor is a number.
    """

    vector: Vector
    inner: Expression

    gains = always(True)

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The factors."""
        return (self.vector, self.inner)

    @cached_property
    def centered(self) -> bool:
        """As the vector."""
        return self.inner.centered


def turns(u: Inner, v: Inner) -> Tensor | None:
    """Return how the channels of queries and keys of two scores are turned, None where they are not."""
    if u.turn is None and v.turn is None:
        return None
    if u.turn is None or v.turn is None or not torch.equal(u.turn, v.turn):
        raise refuse("Scores with other rotations of queries and keys (rotary embeddings) meet.")
    return u.turn


def behind(*roots: Expression) -> Iterator[Expression]:
    """Return all expressions that some are made of, through the products with weights, each once."""
    seen: set[Expression] = set()
    stack = list(roots)
    while stack:
        e = stack.pop()
        if e in seen:
            continue
        seen.add(e)
        stack += e.parts
        if isinstance(e, Line):
            stack += [part for _, part in e.inputs]
        elif isinstance(e, Inner):
            stack += [e.left, e.right]
        yield e


def same_rows(a: Tensor, b: Tensor, name: str) -> bool:
    """Return whether two vectors share their coordinates (all or none; anything else is refused)."""
    if a is b:
        return True
    if a.shape != b.shape:
        raise refuse(f"Slices of {name} of sizes {a.numel()} and {b.numel()} meet in one operation.")
    equal = a == b
    if equal.all():
        return True
    if equal.any():
        raise refuse(f"Slices of {name} that overlap in a part of their coordinates meet.")
    return False


@lru_cache(maxsize=2**14)
def _shared(name: str, *places: tuple[Shape, bytes]) -> bool:
    a, b = (torch.frombuffer(bytearray(data), dtype=torch.long).reshape(shape) for shape, data in places)
    return same_rows(a, b, name)


def reshaped(expression: Expression, shape: Shape) -> Expression:
    """Return a vector whose positions have another shape."""
    if expression.shape == shape:
        return expression
    move = Move((reshape, len(expression.shape), shape), expression.shape, shape, True)
    return Moved(shape, move, expression)


def expanded(expression: Expression, shape: Shape) -> Expression:
    """Return a vector with axes of size 1 repeated to a shape."""
    if expression.shape == shape:
        return expression
    return Moved(shape, Move((expand, shape), expression.shape, shape, True), expression)


def permuted(expression: Expression, order: tuple[int, ...]) -> Expression:
    """Return a vector whose axes of positions come in another order."""
    if order == tuple(range(len(order))):
        return expression
    after = tuple(expression.shape[i] for i in order)
    return Moved(after, Move((permute, order), expression.shape, after, True), expression)
