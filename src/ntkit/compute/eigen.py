"""Eigenvalues of kernel matrices: all of them, or the leading ones by Lanczos."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from ntkit.compute.matrix import Matrix
from ntkit.compute.threads import lapack_threads
from ntkit.errors import BadValueError

ROUNDING = 50  # units of the largest eigenvalue's rounding, times sqrt(n), that a zero one may be off by


@dataclass(frozen=True)
class Spectrum:
    """A = U diag(values) U^T, values from small to large, zero where only rounding is left.

    ``raw`` holds the smallest eigenvalue as it was computed, perhaps negative by rounding; ``floor`` is the
    rounding of the matrix itself, below which no penalty or noise means anything.
    """

    values: Tensor
    vectors: Tensor
    raw: float
    floor: float

    @property
    def condition(self) -> float:
        """The condition number; infinite for a singular matrix."""
        low, high = float(self.values[0]), float(self.values[-1])
        return high / low if low > 0 else float("inf")

    def apply(self, factors: Tensor, b: Tensor) -> Tensor:
        """Return U diag(factors) U^T b for columns ``[n, r]``."""
        return self.vectors @ (factors[:, None] * (self.vectors.T @ b))

    def inverse(self, shift: float = 0.0) -> Tensor:
        """Return 1 / (values + shift), and zero on the null space when there is no shift."""
        return torch.where(self.values + shift > 0, 1 / (self.values + shift).clamp_min(1e-300), 0.0)


@dataclass(frozen=True)
class Shifted:
    """A + shift by the spectrum of A: what a `Cholesky` says of it, zero on the null space."""

    whole: Spectrum
    shift: float
    jitter: float = 0.0

    @property
    def condition(self) -> float:
        """The condition number; infinite for a singular matrix."""
        low, high = float(self.whole.values[0]) + self.shift, float(self.whole.values[-1]) + self.shift
        return high / low if low > 0 else float("inf")

    @property
    def min_eigenvalue(self) -> float:
        """The smallest eigenvalue of A itself, as it was computed."""
        return self.whole.raw

    def solve(self, b: Tensor) -> Tensor:
        """Return (A + shift)^-1 b for columns ``[n, r]``."""
        return self.whole.apply(self.whole.inverse(self.shift), b)

    def half(self, b: Tensor) -> Tensor:
        """Return columns whose inner products are those of b in (A + shift)^-1."""
        return self.whole.inverse(self.shift).sqrt()[:, None] * (self.whole.vectors.T @ b)

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of (A + shift)^-1."""
        return self.whole.vectors.square() @ self.whole.inverse(self.shift)


def spectrum(matrix: Tensor, precision: torch.dtype = torch.float64) -> Spectrum:
    """Return all eigenvalues and eigenvectors of a positive semi-definite matrix, in float64.

    Eigenvalues within rounding of zero (of ``precision``, that in which the matrix was made) are set to zero.
    Kernels of networks with kinks are off by the root of rounding where samples are nearly parallel: their
    angle is the arccosine of a number next to 1.

    Raises
    ------
    NtkitError
        An eigenvalue that is negative beyond the root of rounding, times the largest one.

    Examples
    --------
    >>> import torch
    >>> s = spectrum(torch.ones(2, 2, dtype=torch.float64))
    >>> s.values, s.condition
    (tensor([0., 2.], dtype=torch.float64), inf)
    """
    values, vectors = _eigh(matrix.double())
    largest, eps = float(values.abs().max()), torch.finfo(precision).eps
    rounding = ROUNDING * len(values) ** 0.5 * eps * largest
    worst = max(rounding, eps**0.5 * largest)
    if float(values[0]) < -worst:
        raise BadValueError(
            f"The kernel matrix is not positive semi-definite: its eigenvalues go from "
            f"{float(values[0]):.3g} to {float(values[-1]):.3g}, and rounding explains "
            f"{worst:.1g}. Give a positive semi-definite kernel."
        )
    floor = min(max(rounding, -2 * float(values[0])), _noise(values, precision))
    return Spectrum(torch.where(values > floor, values, 0.0), vectors, float(values[0]), floor)


def leading(matrix: Matrix, k: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return the k largest eigenvalues, largest first, and their vectors ``[n, k]``, by Lanczos.

    Only products with the matrix are taken (ARPACK, from a random start that ``seed`` draws).

    Examples
    --------
    >>> import torch
    >>> from ntkit.compute.matrix import Dense
    >>> leading(Dense(torch.diag(torch.arange(1.0, 6.0))), 2)[0].numpy().round(9)
    array([5., 4.])
    """
    n = matrix.n
    if not 0 < k < n:
        raise BadValueError(
            f"k={k}; Lanczos gives between 1 and {n - 1} eigenvalues of {n}. Take all by eigh."
        )
    like = matrix.diag()

    def product(v: np.ndarray) -> np.ndarray:
        return (matrix @ torch.as_tensor(v.reshape(n, -1)).to(like)).cpu().numpy()

    operator = LinearOperator((n, n), matvec=product, matmat=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(seed).normal(size=n)
    values, vectors = eigsh(operator, k, which="LA", v0=start)
    order = np.argsort(values)[::-1].copy()
    return torch.as_tensor(values[order]).to(like), torch.as_tensor(vectors[:, order]).to(like)


def _eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return all eigenvalues and vectors; on a CPU by SciPy, whose LAPACK is faster."""
    if matrix.is_cuda or len(matrix) == 1:  # SciPy 1.12 fails on a single number
        return torch.linalg.eigh(matrix)
    with lapack_threads():
        values, vectors = linalg.eigh(matrix.numpy(), driver="evd", check_finite=False)
    return torch.from_numpy(values), torch.from_numpy(vectors)


def _noise(values: Tensor, precision: torch.dtype) -> float:
    """Return the size below which an eigenvalue is rounding, by the negative ones and n eps."""
    floor = len(values) * torch.finfo(precision).eps * float(values.abs().max())
    return max(floor, 2 * max(0.0, -float(values[0])))
