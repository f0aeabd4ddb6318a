"""Functions of vectors, coordinate by coordinate: the H-variables of a tensor program."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cached_property
from math import prod

from torch import Tensor

from ntkit.infinite.duals.dual import Dual
from ntkit.infinite.variables.expression import Expression, always, union, walk
from ntkit.infinite.variables.protocols import Contraction
from ntkit.infinite.variables.vectors import (
    Attended,
    Coefficient,
    Inner,
    Line,
    Mixed,
    Moved,
    Multiple,
    Offset,
    Vector,
    VectorSum,
    WeightLaw,
)


@dataclass(frozen=True)
class Function:
    """A function of coordinates: ``call`` takes tensors ``[..., *shape]`` and returns one.

    ``local`` if each position of the result depends on the same position of the arguments only, ``rows`` if
    it depends on a row of them, which lies along their last axis.
    """

    name: str
    call: Callable[..., Tensor]
    dual: Dual | None = None
    local: bool = True
    rows: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class Apply(Expression):
    """An H-variable h = phi(...): a function of vectors and of numbers, coordinate by coordinate."""

    function: Function
    arguments: tuple[Expression | Coefficient, ...]

    gaussian = always(False)
    centered = always(False)  # not in general

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The vectors among the arguments."""
        return tuple(a for a in self.arguments if isinstance(a, Expression))

    @cached_property
    def basis(self) -> tuple[Expression, ...]:
        """The largest Gaussian vectors that it is a function of, and the parameters in it."""
        return basis_of(self)

    @property
    def local(self) -> bool:
        """Whether a position depends on the same position of the basis only."""
        return self.axes is not None and not any(self.axes.values())

    @cached_property
    def axes(self) -> dict[Expression, int] | None:
        """How many more axes each vector of the basis has than the function: those of rows.

        None where positions are mixed otherwise.
        """
        known: dict[Expression, dict[Expression, int] | None] = {b: {b: 0} for b in self.basis}
        for e in walk(self, below=lambda e: e not in known):
            if e not in known:
                known[e] = _axes(e, [known[part] for part in e.parts])
        return known[self]

    @cached_property
    def factors(self) -> tuple[Expression, Expression] | None:
        """The factors of a product of two vectors that are independent."""
        if self.function.name != "mul" or len(self.arguments) != 2:
            return None
        a, b = self.arguments
        if not isinstance(a, Expression) or not isinstance(b, Expression) or not unrelated((a,), (b,)):
            return None
        return a, b


def terms_that_meet(u: VectorSum, v: VectorSum) -> list[tuple[Expression, Expression]]:
    """Return the pairs of terms of two sums, without products with independent entries of one kernel.

    A depthwise convolution is a sum of as many products as its kernel has entries.
    """
    ours, theirs = _marks(u), _marks(v)
    if None in ours or set(ours) != set(theirs):  # other slices of one weight may overlap, and are refused
        return [(a, b) for a in u.terms for b in v.terms]
    return [
        (a, b)
        for a, i in zip(u.terms, ours, strict=True)
        for b, j in zip(v.terms, theirs, strict=True)
        if i == j
    ]


def _marks(u: VectorSum) -> tuple[Hashable, ...]:
    """Return for each term which vector of centered parameters it is an independent multiple of, or None."""
    if "marks" not in u.__dict__:
        u.__dict__["marks"] = tuple(map(_mark, u.terms))
    return u.__dict__["marks"]


def _mark(e: Expression) -> Hashable:
    factors = e.factors if isinstance(e, Apply) else (e,)
    alike = [f for f in factors or () if isinstance(f, Vector) and not f.average and prod(f.shape) == 1]
    return alike[0].key if len(alike) == 1 else None


@dataclass(frozen=True, eq=False, repr=False)
class KernelSum(VectorSum):
    """A depthwise convolution: entries of a kernel for each channel, times what they see of ``inner``.

    The entries are centered and independent of it, so that K is a contraction of its K, as of a `Line`.
    """

    inner: Expression
    window: Contraction
    law: WeightLaw  # of one entry
    keys: tuple[Hashable, ...]  # of all entries

    centered = always(True)

    def same(self, other: Expression) -> bool:
        """Return whether both have the same kernels and window."""
        return isinstance(other, KernelSum) and self.keys == other.keys and self.window == other.window


def _axes(e: Expression, parts: list[dict[Expression, int] | None]) -> dict[Expression, int] | None:
    if isinstance(e, Attended | Moved | Mixed) or (
        isinstance(e, Apply) and not (e.function.local or e.function.rows)
    ):
        return None
    more = int(isinstance(e, Apply) and e.function.rows)
    merged: dict[Expression, int] = {}
    for part in parts:
        if part is None or any(merged.get(b, n + more) != n + more for b, n in part.items()):
            return None
        merged |= {b: n + more for b, n in part.items()}
    return merged


def basis_of(u: Expression) -> tuple[Expression, ...]:
    """Return the largest Gaussian vectors that a vector is a function of, and the parameters in it."""
    found: dict[Expression, None] = {}
    seen: set[Expression] = set()
    stack = [u]
    while stack:
        e = stack.pop()
        if e in seen or isinstance(e, Offset):
            continue
        seen.add(e)
        if isinstance(e, Multiple) and not isinstance(
            e.factor, Coefficient
        ):  # a function of the vector itself
            stack.append(e.inner)
        elif isinstance(e, Vector) or (e.gaussian and not e.gains and not _moved_by_numbers(e)):
            found[e] = None
        else:
            stack += reversed(e.parts)
    return tuple(found)


def _moved_by_numbers(e: Expression) -> bool:
    """Return whether a vector is another one plus numbers, which may be infinite: the mask of scores."""
    while isinstance(e, Multiple | Moved):
        e = e.inner
    return isinstance(e, VectorSum) and sum(not isinstance(t, Offset) for t in e.terms) == 1 < len(e.terms)


def as_function(u: Expression) -> Apply:
    """Return a vector as a function of its basis, the identity."""
    if isinstance(u, Apply):
        return u
    return u.__dict__.setdefault("function", Apply(u.shape, Function("identity", lambda t: t), (u,)))


def sources(u: Expression) -> frozenset:
    """Return which coordinates of which weights a vector is made of."""
    if "sources" not in u.__dict__:
        coordinates: set[tuple] = set()
        stack = [u]
        while stack:
            for e in walk(stack.pop()):
                if isinstance(e, Line):
                    coordinates.add((e.matrix.name, tuple(e.rows.flatten().tolist())))
                elif isinstance(e, Vector):
                    coordinates.add((e.name, tuple(e.rows.flatten().tolist())))
                elif isinstance(e, Inner):
                    stack += [e.left, e.right]
        u.__dict__["sources"] = frozenset(coordinates)
    return u.__dict__["sources"]


def unrelated(us: tuple[Expression, ...], vs: tuple[Expression, ...]) -> bool:
    """Return whether no vector of some shares a coordinate of a weight with one of others."""
    if union(u.names for u in us).isdisjoint(union(v.names for v in vs)):
        return True
    return not frozenset().union(*map(sources, us)) & frozenset().union(*map(sources, vs))
