"""The relative errors of expectations: measured where they arise, carried through the functions behind.

An error of E[u v'] is relative to sqrt(E[u^2] E[v'^2]), so that a product with a weight and a sum of
independent vectors do not enlarge it. A function of vectors that carry an error adds its own to what it makes
of theirs. Theta is K plus a product of K's derivative with the Theta before: their relative errors add.
What is sampled carries none: the whole kernel is drawn again for that (`infinite/refinement`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ntkit.infinite.duals.dual import Dual
from ntkit.infinite.duals.effort import Effort, effort, some
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.numerics import Numerics
from ntkit.infinite.variables.protocols import SideValues
from ntkit.infinite.variables.vectors import Attended, Inner, Line


def _nearest(u: Expression) -> tuple[Expression, ...]:
    """Return the functions that the Gaussian vectors in a function are made of, not those behind these."""
    if "nearest" not in u.__dict__:
        found: dict[Expression, None] = {}
        seen: set[Expression] = set()
        stack = list(u.basis) if isinstance(u, Apply) else [u]
        while stack:
            e = stack.pop()
            if e in seen:
                continue
            seen.add(e)
            if e is not u and isinstance(e, Apply | Attended):
                found[e] = None
                continue
            stack += e.parts
            if isinstance(e, Line):
                stack += [part for _, part in e.inputs]
            elif isinstance(e, Inner):
                stack += [e.left, e.right]
            elif isinstance(e, Attended):
                stack.append(e.scores.inner)
        u.__dict__["nearest"] = tuple(found)
    return u.__dict__["nearest"]


def carried(numerics: Numerics, *us: Expression) -> tuple[float, float]:
    """Return the error, of K and of Theta, of what two functions meet in: at most that of either's vectors.

    So nothing comes back to a vector from what is made of it.
    """
    if not numerics.found:
        return 0.0, 0.0
    ends = []
    for u in us:
        known = [_enlarged(numerics, e) for e in _nearest(u) if e in numerics.found]
        ends.append((max((k for k, _ in known), default=0.0), max((t for _, t in known), default=0.0)))
    return min(k for k, _ in ends), min(t for _, t in ends)


def enlarge(side: SideValues, us: list[Expression], variance: Tensor) -> None:
    """Count the errors of functions relative to a variance from now on: their mean is taken off."""
    numerics = side.numerics
    if not numerics.found or not variance.numel():
        return
    least = variance.flatten(1).amin(1) if variance.ndim > 1 else variance
    for u in us:
        for e in (u,) if isinstance(u, Apply | Attended) else _nearest(u):
            square = side.itself.moment(e, e, "equal") if e in numerics.found else None
            if square is not None and square.numel():
                most = square.flatten(1).amax(1) if square.ndim > 1 else square
                ratio = float((most / least).max())
                numerics.ratios[e] = max(ratio, numerics.ratios.get(e, 1.0))


def _enlarged(numerics: Numerics, e: Expression) -> tuple[float, float]:
    moment, tangent = numerics.found[e]
    ratio = numerics.ratios.get(e, 1.0)
    return ratio * moment, ratio * tangent


def _of(numerics: Numerics, u: Expression) -> tuple[float, float]:
    """Return the errors of a vector, a function or not."""
    return numerics.found.get(u, (0.0, 0.0)) if isinstance(u, Apply | Attended) else carried(numerics, u)


@contextmanager
def measured(numerics: Numerics, *functions: Expression) -> Iterator[Effort]:
    """Take an expectation of functions at the level that is wanted; keep its error."""
    with effort(numerics.fineness) as found:
        yield found
    account(numerics, functions, found.error)


def account(
    numerics: Numerics,
    functions: tuple[Expression, ...],
    own: float,
    *,
    slope: float | None = None,
    change: tuple[float, float] | None = None,
) -> None:
    """Keep the errors of functions: their own, and what they make of those of their arguments.

    ``own`` of E[u v'], ``slope`` of E[u' v'] (the same if left out), ``change`` what the argument's error
    becomes in both (as large as it was, if left out).
    """
    moment, theta = carried(numerics, *functions)
    value, by_slope = (moment, moment) if change is None else change
    numerics.blame("nodes", max(own, slope or 0.0))
    whole = own + value
    through = theta + by_slope + (own if slope is None else slope)
    for u in functions:
        numerics.tell(u, whole, max(whole, through))


def account_product(numerics: Numerics, u: Apply, a: Expression, b: Expression) -> None:
    """Keep the errors of a product of independent factors: relative errors add."""
    (k1, t1), (k2, t2) = _of(numerics, a), _of(numerics, b)
    numerics.tell(u, k1 + k2, max(t1 + k2, t2 + k1))


def grown(dual: Dual, cov: Tensor, var1: Tensor, var2: Tensor, error: float) -> tuple[float, float]:
    """Return what a relative error of covariances becomes in E[phi phi'] and in E[phi' phi'].

    Measured at some entries: the covariance nearer to zero (by no more than it is away from the variances,
    which would have the same error), and all three larger.
    """
    at = torch.broadcast_tensors(*(t.detach().double() for t in (cov, var1, var2)))
    cov, var1, var2 = some(*(t.reshape(-1) for t in at))
    size = (var1 * var2).sqrt()
    step = torch.minimum(error * size, size - cov.abs()).clamp(min=0)
    changed = ((cov - torch.sign(cov) * step - (cov == 0) * error * size, var1, var2),)
    changed += (tuple(t * (1 + error) for t in (cov, var1, var2)),)
    with effort():
        before = dual.both(cov, var1, var2)
        squares = [dual.both(v, v, v) for v in (var1, var2)]
        most = [0.0, 0.0]
        for near in changed:
            for i, (a, b) in enumerate(zip(before, dual.both(*near), strict=True)):
                scale = (squares[0][i] * squares[1][i]).clamp(min=1e-300).sqrt()
                most[i] = max(most[i], float(((a - b).abs() / scale).max()))
    return most[0], most[1]
