"""Kernels of vectors whose coordinates are mixed by fixed matrices, means over the coordinates.

For u = M g and v = N g', of iid coordinates g: mean_i E[u_i v_i] = tr(M N^T) / d Cov[g, g'] and, of their
means, the mean_i of sum_j M_ij sum_k N_ik times E[g] E[g'].
"""

from __future__ import annotations

from torch import Tensor

from ntkit.infinite.variables.algebra import Need, Value, add, multiply
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.protocols import PairValues, SideValues
from ntkit.infinite.variables.vectors import Turned


def mean(side: SideValues, u: Turned) -> Value:
    """Return the mean over coordinates of E[u]."""
    value = side.mean(u.inner)
    return None if value is None else value * u.matrices.sum(-1).mean(-1)


def moment(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Value:
    """Return the mean over coordinates of E[u v']."""
    a, b = inner(u), inner(v)
    varying = multiply(pairs.covariance(a, b, need), _shared(pairs, u, v, need))
    return add((varying, multiply(pairs.means(a, b, need), _sums(pairs, u, v, need))))


def tangent(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Value:
    """Return the mean over coordinates of Theta(u, v')."""
    return multiply(pairs.tangent(inner(u), inner(v), need), _shared(pairs, u, v, need))


def inner(u: Expression) -> Expression:
    """Return the vector of which one is made."""
    return u.inner if isinstance(u, Turned) else u


def _shared(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Tensor:
    """Return tr(M N^T) / d for equal or for all pairs of positions."""
    if isinstance(u, Turned) and isinstance(v, Turned):
        a, b = (e.matrices.flatten(-2) for e in (u, v))
    else:
        matrices = u.matrices if isinstance(u, Turned) else v.matrices  # pyright: ignore
        a = matrices.diagonal(dim1=-2, dim2=-1)
        a, b = (a, a.new_ones(1)) if isinstance(u, Turned) else (a.new_ones(1), a)
    count = (u if isinstance(u, Turned) else v).matrices.shape[-2]  # pyright: ignore
    return _placed(pairs, a, b, len(u.shape), len(v.shape), need) / count


def _sums(pairs: PairValues, u: Expression, v: Expression, need: Need) -> Tensor:
    """Return the mean over coordinates of the products of the sums of rows."""
    a, b = (e.matrices.sum(-1) if isinstance(e, Turned) else None for e in (u, v))
    a, b = (a, b) if a is not None and b is not None else (a, None) if a is not None else (None, b)
    one = a if a is not None else b
    assert one is not None
    a, b = (one.new_ones(1) if t is None else t for t in (a, b))
    return _placed(pairs, a, b, len(u.shape), len(v.shape), need) / one.shape[-1]


def _placed(pairs: PairValues, a: Tensor, b: Tensor, left: int, right: int, need: Need) -> Tensor:
    """Return the sums over the last axis of products, at equal or at all pairs of positions."""
    batch = [1] * len(pairs.batch)
    ours, theirs = ([1] * (n + 1 - t.ndim) + list(t.shape[:-1]) for t, n in ((a, left), (b, right)))
    if need == "equal":
        a, b = a.reshape(*batch, *ours, a.shape[-1]), b.reshape(*batch, *theirs, b.shape[-1])
    else:
        a = a.reshape(*batch, *ours, *[1] * right, a.shape[-1])
        b = b.reshape(*batch, *[1] * left, *theirs, b.shape[-1])
    return (a * b).sum(-1)
