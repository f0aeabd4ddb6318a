"""Preconditioned conjugate gradients for several right-hand sides, with the true residual."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ntkit.compute.matrix import Matrix
from ntkit.compute.pivoted import LowRank
from ntkit.errors import BadValueError

STATE = ("x", "r", "p", "rz", "best", "best_x")
STALE = 3  # times that the true residual may not halve while the recurrence says that it is small: rounding


class Kept(Protocol):
    """What keeps the state of an iteration, and gives it back."""

    def load(self) -> dict[str, Tensor] | None:
        """Return the state; None where there is none."""
        ...

    def save(self, state: dict[str, Tensor]) -> None:
        """Keep a state."""
        ...


@dataclass(frozen=True)
class Solution:
    """What conjugate gradients found: x, the true relative residual of each column, the iterations."""

    x: Tensor
    residual: Tensor
    iterations: int
    converged: bool


def conjugate_gradients(
    matrix: Matrix,
    b: Tensor,
    shift: float = 0.0,
    *,
    precondition: Callable[[Tensor], Tensor] | None = None,
    tol: float = 1e-8,
    max_iter: int | None = None,
    kept: Kept | None = None,
) -> Solution:
    """Solve (A + shift) x = b for columns ``[n, r]`` at once, from products with A only.

    The iteration ends when |b - (A + shift) x| <= tol |b| holds for every column of the residual as it is
    recomputed from x, not only for the one of the recurrence, which drifts away from it.

    Parameters
    ----------
    matrix : Matrix
        A, symmetric, positive semi-definite.
    b : Tensor
        The right-hand sides, ``[n, r]``.
    shift : float
        What is added to the diagonal: a ridge, a noise variance.
    precondition : callable, optional
        An approximate inverse applied to columns, as `low_rank_inverse` makes.
    tol : float
        How small the residual is to be, relative to b.
    max_iter : int, optional
        The most iterations; None: ten times n.
    kept : optional
        Where the state is kept between iterations, from which a process that was killed goes on to the
        same bits: a `Checkpoint`.

    Raises
    ------
    NtkitError
        A direction of negative curvature: the matrix is not positive definite.

    Examples
    --------
    >>> import torch
    >>> from ntkit.compute.matrix import Dense
    >>> a = Dense(torch.diag(torch.arange(1.0, 9.0)))
    >>> s = conjugate_gradients(a, torch.ones(8, 2, dtype=torch.float64), shift=1.0, tol=1e-12)
    >>> torch.allclose((a @ s.x) + s.x, torch.ones(8, 2, dtype=torch.float64)), s.converged
    (True, True)
    """
    precondition = precondition or (lambda r: r)
    norm = b.norm(dim=0)
    norm = torch.where(norm > 0, norm, 1.0)
    limit = 10 * matrix.n if max_iter is None else max_iter
    state = None if kept is None else kept.load()
    if state is None:
        x, r = torch.zeros_like(b), b.clone()
        best, best_x = r.norm(dim=0) / norm, x
        p = z = precondition(r)
        rz = (r * z).sum(0)
        stale = iterations = 0
    else:
        x, r, p, rz, best, best_x = (state[name].to(b) for name in STATE)
        stale, iterations = state["counts"].tolist()
    while iterations < limit and bool((best > tol).any()) and stale < STALE:
        ap = matrix @ p + shift * p
        curvature = (p * ap).sum(0)
        if bool((curvature < -1e-14 * ap.norm(dim=0) * p.norm(dim=0)).any()):
            raise BadValueError(
                "The matrix is not positive definite: conjugate gradients met a direction of negative "
                "curvature. Give a positive semi-definite kernel, or a larger alpha or noise."
            )
        step = _ratio(rz, curvature)
        x, r = x + step * p, r - step * ap
        iterations += 1
        if bool((r.norm(dim=0) <= 0.5 * tol * norm).all()) or iterations == limit:
            r = b - (matrix @ x + shift * x)  # the truth, from which to start again where it says more
            found = r.norm(dim=0) / norm
            stale = 0 if bool((found < 0.5 * best).any()) else stale + 1
            better = found < best
            best, best_x = torch.where(better, found, best), torch.where(better, x, best_x)
            p = z = precondition(r)
            rz = (r * z).sum(0)
            continue
        z = precondition(r)
        new = (r * z).sum(0)
        p, rz = z + _ratio(new, rz) * p, new
        if kept is not None:
            values = dict(zip(STATE, (x, r, p, rz, best, best_x.clone()), strict=True))
            kept.save({**values, "counts": torch.tensor([stale, iterations])})
    return Solution(best_x, best, iterations, bool((best <= tol).all()))


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, zero for columns that are solved exactly."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1.0), 0.0)


def low_rank_inverse(low: LowRank, shift: float) -> Callable[[Tensor], Tensor]:
    """Return (F F^T + mu)^-1 as a function of columns, for a low-rank part of a matrix.

    mu is the shift and the mean of what F F^T leaves of the diagonal: the scale of the rest of the spectrum.
    """
    mu = shift + low.trace / len(low.factor)
    if mu <= 0:
        raise BadValueError(
            f"A preconditioner that leaves nothing of the matrix needs a positive shift, got {shift}; give "
            "alpha or noise, or the solver 'eigen'."
        )
    u, s, _ = torch.linalg.svd(low.factor, full_matrices=False)
    weights = (1 / (s.square() + mu) - 1 / mu)[:, None]
    return lambda r: r / mu + u @ (weights * (u.T @ r))
