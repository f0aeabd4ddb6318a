"""Cholesky in float64, with a ladder of jitter that is reported, never silent."""

from __future__ import annotations

import warnings
from functools import cached_property

import numpy as np
import torch
from scipy import linalg
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor

from ntkit.compute.threads import lapack_threads
from ntkit.errors import BadValueError

LADDER = tuple(10.0**k for k in range(-13, -5))  # of the mean diagonal; float32 needs its own rounding
SMALL = 64  # rows up to which all eigenvalues cost nothing


class JitterWarning(UserWarning):
    """A matrix was singular to rounding, and its diagonal was raised to be factored."""


class Cholesky:
    """The factorization A + shift + jitter = L L^T, and what it says about A.

    Attributes
    ----------
    jitter : float
        What had to be added to the diagonal besides the shift; zero where nothing had to.
    """

    def __init__(self, factor: Tensor, shift: float, jitter: float) -> None:
        self.factor, self.shift, self.jitter = factor, shift, jitter

    def solve(self, b: Tensor) -> Tensor:
        """Return (A + shift + jitter)^-1 b for columns ``[n, r]``."""
        if b.is_cuda:
            return torch.cholesky_solve(b, self.factor)
        with lapack_threads():
            found = linalg.cho_solve((self.factor.numpy(), True), b.numpy(), check_finite=False)
        return torch.from_numpy(found)

    def half(self, b: Tensor) -> Tensor:
        """Return L^-1 b, whose squares are b^T (A + shift + jitter)^-1 b."""
        return torch.linalg.solve_triangular(self.factor, b, upper=False)

    def inverse_diagonal(self) -> Tensor:
        """Return the diagonal of (A + shift + jitter)^-1."""
        eye = torch.eye(len(self.factor), dtype=self.factor.dtype, device=self.factor.device)
        return self.half(eye).square().sum(0)

    @property
    def logdet(self) -> float:
        """The logarithm of the determinant."""
        return float(2 * self.factor.diagonal().log().sum())

    @cached_property
    def extremes(self) -> tuple[float, float]:
        """The smallest and largest eigenvalue of L L^T, by Lanczos with the factor (three digits)."""
        n = len(self.factor)
        if n <= SMALL:
            values = torch.linalg.eigvalsh(self.factor @ self.factor.T)
            return float(values[0]), float(values[-1])

        def product(v: np.ndarray) -> np.ndarray:
            t = self._column(v)
            return (self.factor @ (self.factor.T @ t)).cpu().numpy()

        largest = _largest(product, n)
        return 1 / _largest(lambda v: self.solve(self._column(v)).cpu().numpy(), n), largest

    @property
    def condition(self) -> float:
        """The condition number of what was factored."""
        low, high = self.extremes
        return high / low

    @property
    def min_eigenvalue(self) -> float:
        """The smallest eigenvalue of A itself, as far as rounding lets it be seen."""
        return self.extremes[0] - self.shift - self.jitter

    def _column(self, v: np.ndarray) -> Tensor:
        return torch.as_tensor(v.reshape(len(v), -1)).to(self.factor)


def cholesky(matrix: Tensor, shift: float = 0.0, what: str = "kernel matrix") -> Cholesky:
    """Factor A + shift, adding as little jitter as makes it positive definite, and warn if any was needed.

        A + shift + jitter = L L^T,    jitter in {0, 1e-13, 1e-12, ..., 1e-6} x mean diagonal

    Parameters
    ----------
    matrix : Tensor
        A, ``[n, n]``, symmetric; only its lower triangle is read, in float64.
    shift : float
        What is added to the diagonal by intention: a ridge, a noise variance.
    what : str
        The name of the matrix in what is raised and warned.

    Raises
    ------
    NtkitError
        No jitter of the ladder makes the matrix positive definite; the error gives its smallest eigenvalue.

    Warns
    -----
    JitterWarning
        With the jitter.

    Examples
    --------
    >>> import torch
    >>> a = cholesky(torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64), shift=1.0)
    >>> a.solve(torch.ones(2, 1, dtype=torch.float64)).flatten(), a.jitter, round(a.condition, 9)
    (tensor([0.2500, 0.2500], dtype=torch.float64), 0.0, 2.0)
    """
    diagonal = matrix.diagonal().double()
    scale = float(diagonal.abs().mean())
    for relative in (0.0, *LADDER):
        jitter = relative * scale
        work = matrix.to(torch.float64, copy=True)
        work.diagonal().add_(shift + jitter)
        factor = _factor(work)
        del work
        # a pivot that is rounding only would pass as positive, and its solution would be noise
        rounding = torch.finfo(torch.float64).eps * float(diagonal.max())
        if factor is not None and float(factor.diagonal().min()) ** 2 > rounding:
            if jitter:
                warnings.warn(
                    f"The {what} is singular to rounding: {jitter:.1e} ({relative:.0e} of its mean "
                    f"diagonal) was added to its diagonal. Duplicated samples do this; a larger alpha or "
                    f"noise avoids it.",
                    JitterWarning,
                    stacklevel=3,
                )
            return Cholesky(factor, shift, jitter)
    smallest = float(torch.linalg.eigvalsh(matrix.double())[0])
    raise BadValueError(
        f"The {what} is not positive definite: its smallest eigenvalue is {smallest:.3g}, with {shift:.3g} "
        f"added to the diagonal (mean diagonal {scale:.3g}). Give a positive semi-definite kernel, a larger "
        f"alpha or noise, or a model in float64."
    )


def _factor(work: Tensor) -> Tensor | None:
    """Return L with L L^T = A, in place of A on a CPU; None where a pivot is not positive."""
    if work.is_cuda:
        factor, info = torch.linalg.cholesky_ex(work)
        return None if int(info) else factor
    try:  # LAPACK wants columns: a symmetric matrix read by columns is itself
        with lapack_threads():
            found = linalg.cholesky(work.numpy().T, lower=True, overwrite_a=True, check_finite=False)
    except linalg.LinAlgError:
        return None
    return torch.from_numpy(found)


def _largest(product: object, n: int) -> float:
    """Return the largest eigenvalue of a symmetric product on NumPy columns."""
    start = np.random.default_rng(0).normal(size=n)
    operator = LinearOperator((n, n), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    try:
        found = eigsh(operator, 1, which="LA", v0=start, tol=1e-3, return_eigenvectors=False)  # pyright: ignore[reportArgumentType]
        return float(found[0])
    except ArpackNoConvergence as error:
        found = error.eigenvalues
        return float(found[-1]) if len(found) else float("nan")
