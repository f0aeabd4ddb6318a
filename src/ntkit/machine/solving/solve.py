"""Which solver an estimator takes, why, and its solution."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ntkit.compute.cg import conjugate_gradients, low_rank_inverse
from ntkit.compute.cholesky import Cholesky, cholesky
from ntkit.compute.eigen import Shifted, spectrum
from ntkit.compute.matrix import Matrix
from ntkit.compute.nystrom import nystrom
from ntkit.compute.pivoted import pivoted_cholesky
from ntkit.compute.plan import format_bytes
from ntkit.errors import one_of

REMADE = 30_000  # samples up to which a matrix that does not fit is made anew for each product
PRODUCTS, ENTRY = 30, 3e-8  # of such a solution; seconds for an entry of the kernel of a ReLU network
SOLVERS = ("auto", "cholesky", "eigen", "cg", "nystrom")


@dataclass(frozen=True)
class Settings:
    """How a system is to be solved: the solver's name, tolerance, most iterations, rank, seed."""

    solver: str
    tol: float
    max_iter: int | None
    rank: int | None
    seed: int


@dataclass(frozen=True)
class Solved:
    """Coefficients ``[n, r]``, zero outside the pivots of Nystrom, and what the solver says of itself."""

    coefficients: Tensor
    factor: Cholesky | Shifted | None = None
    residual: Tensor | None = None
    iterations: int | None = None


def choose(solver: str, n: int, budget: int, spectral: str = "", operator: bool = False) -> tuple[str, str]:
    """Return the solver for n samples and why.

    ``spectral`` says why all eigenvalues are wanted, if so; ``operator``: whether the kernel has products of
    its own, for which the matrix is not made.
    """
    if one_of("solver", solver, SOLVERS) != "auto":
        return solver, "asked for"
    need = 3 * 8 * n * n  # the matrix, its copy with the ridge, the factor
    size = f"{n} samples take {format_bytes(need)} of {format_bytes(budget)}"
    if spectral and need <= budget:
        return "eigen", f"{spectral}; {size}"
    if need <= budget:
        return "cholesky", f"exact, and {size}"
    if operator or 8 * n * n <= budget or n <= REMADE:
        return "cg", f"iterative, for {size}"
    hours = PRODUCTS * n * n * ENTRY / 3600
    return "nystrom", (
        f"an approximation in the span of {columns(n)} samples, for {size}, and products with a matrix "
        f"that is made anew for each of about {PRODUCTS} iterations would take about {hours:.1f} hours; "
        "solver='cg' takes them"
    )


def columns(n: int) -> int:
    """Return how many samples span an approximation, as a rule: 10 sqrt(n)."""
    return max(1, min(n, int(10 * n**0.5)))


def solve(
    matrix: Matrix, dense: Tensor | None, b: Tensor, shift: float, how: Settings, precision: torch.dtype
):
    """Solve (A + shift) c = b for columns ``[n, r]`` with the solver that ``how`` names."""
    if how.solver in ("cholesky", "eigen"):
        assert dense is not None
        exact = how.solver == "cholesky"
        factor = cholesky(dense, shift) if exact else Shifted(spectrum(dense, precision), shift)
        return Solved(factor.solve(b), factor)
    n = matrix.n
    if how.solver == "nystrom":
        low = pivoted_cholesky(matrix, how.rank or columns(n), how.seed)
        coefficients = torch.zeros_like(b)
        coefficients[low.pivots.to(b.device)] = nystrom(low, b, shift)
        return Solved(coefficients)
    low = pivoted_cholesky(matrix, how.rank or max(1, min(n // 4, int(10 * n**0.5))), how.seed)
    inverse = low_rank_inverse(low, shift)
    solution = conjugate_gradients(matrix, b, shift, precondition=inverse, tol=how.tol, max_iter=how.max_iter)
    if not solution.converged:
        warnings.warn(
            f"Conjugate gradients stopped at a relative residual of {float(solution.residual.max()):.1e} "
            f"after {solution.iterations} iterations, tol={how.tol:.1e}. Give a larger alpha, max_iter or "
            "rank, or a model in float64.",
            ConvergenceWarning,
            stacklevel=3,
        )
    return Solved(solution.x, None, solution.residual, solution.iterations)
