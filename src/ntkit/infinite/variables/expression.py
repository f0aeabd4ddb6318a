"""What a vector of a tensor program is: one coordinate of it as a random array over its positions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from ntkit.infinite.variables.positions import Shape


def always(value: bool) -> cached_property[bool]:
    """Return a property that all vectors of a class have, or none."""
    return cached_property(lambda _: value)


@dataclass(frozen=True, eq=False, repr=False)
class Expression:
    """One coordinate of a vector at each of its positions: a random array of ``shape``.

    Axes of size 1 broadcast. All coordinates of a vector have one law and, in the limit, are independent.
    What is known of a vector is found when it is made, from what is known of its parts: no recursion.
    """

    shape: Shape

    def __post_init__(self) -> None:
        """Find what is known of it."""
        for name in ("gaussian", "centered", "gains", "raw", "names"):
            getattr(self, name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}{list(self.shape)}"  # not its parts: they may be thousands

    @property
    def parts(self) -> tuple[Expression, ...]:
        """The expressions that this one is made of."""
        return ()

    @cached_property
    def gaussian(self) -> bool:
        """Whether all positions together are jointly Gaussian, with those of other G-variables."""
        return True

    @cached_property
    def centered(self) -> bool:
        """Whether the mean is known to be zero, without any number."""
        return bool(self.parts) and all(part.centered for part in self.parts)

    @cached_property
    def gains(self) -> bool:
        """Whether a trained factor sits inside (its tangent kernel is random, not a constant)."""
        return any(part.gains for part in self.parts)

    @cached_property
    def raw(self) -> bool:
        """Whether data sit inside, numbers that differ from channel to channel."""
        return any(part.raw for part in self.parts)

    @cached_property
    def names(self) -> frozenset[str]:
        """The weights of the G-variables in it: without a common one, vectors are independent."""
        return union(part.names for part in self.parts)


def union(sets: Iterable[frozenset[str]]) -> frozenset[str]:
    """Return the union of sets, one of them where it holds all."""
    some = set(sets)
    largest = max(some, key=len, default=frozenset())
    return largest if all(one <= largest for one in some) else largest.union(*some)


def apart(u: Expression, v: Expression) -> bool:
    """Return whether two vectors are made of weights, and have none in common."""
    return bool(u.names) and bool(v.names) and u.names.isdisjoint(v.names)


def walk(*roots: Expression, below: Callable[[Expression], bool] = lambda _: True) -> list[Expression]:
    """Return all expressions that some are made of, up to the G-variables, each once, parts first."""
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
