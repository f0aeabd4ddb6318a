"""Solutions made exact with residuals in float64, whatever the precision of the factor."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.compute.cg import Solution, conjugate_gradients
from ntkit.compute.matrix import Matrix
from ntkit.compute.out_of_core.factor import ColumnFactor

MOST = 30  # steps of refinement, or of conjugate gradients behind them


def refined(matrix: Matrix, factor: ColumnFactor, b: Tensor, tol: float = 1e-8) -> Solution:
    """Solve (K + shift) x = b by a factor, then by the factor again for what is left, in float64.

        x <- x + (L L^T)^-1 r,    r = b - (K + shift) x

    until |r| <= tol |b| for each column. Where a step does not halve r, because the rounding of the factor
    times the condition number is near one, conjugate gradients with the factor as preconditioner go on.

    Parameters
    ----------
    matrix : Matrix
        K, with products in float64.
    factor : ColumnFactor
        Of K + shift.
    b : Tensor
        Right-hand sides, ``[n, r]``.
    tol : float
        How small the residual is to be, relative to b.

    References
    ----------
    Higham, "Accuracy and stability of numerical algorithms", chapter 12.
    """
    b = b.double()
    norm = b.norm(dim=0)
    norm = torch.where(norm > 0, norm, 1.0)
    x, r = torch.zeros_like(b), b
    size = torch.ones_like(norm)
    for step in range(1, MOST + 1):
        trial = x + factor.solve(r)
        rest = b - (matrix @ trial + factor.shift * trial)
        found = rest.norm(dim=0) / norm
        if bool((found <= tol).all()):
            return Solution(trial, found, step, True)
        if not bool((found < 0.5 * size).all()):
            break
        x, r, size = trial, rest, found
    else:
        return Solution(x, size, MOST, False)
    worst = float(size.max())
    more = conjugate_gradients(
        matrix, r, factor.shift, precondition=factor.solve, tol=0.5 * tol / worst, max_iter=MOST
    )
    x = x + more.x
    found = (b - (matrix @ x + factor.shift * x)).norm(dim=0) / norm
    return Solution(x, found, step + more.iterations, bool((found <= tol).all()))
