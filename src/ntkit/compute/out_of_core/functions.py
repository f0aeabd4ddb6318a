"""Functions of a matrix times vectors, from products: the leading spectrum, and polynomials for the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.polynomial import chebyshev
from scipy.fft import dct
from torch import Tensor

from ntkit.compute.eigen import leading
from ntkit.compute.matrix import Matrix
from ntkit.errors import BadValueError

LEADING = 16  # eigenvectors that are taken out
SLACK = 1.0 + 1e-3  # of the largest eigenvalue that is left
MOST = 2**12  # the highest degree

Spectral = Callable[[Tensor], Tensor]


def matrix_functions(
    matrix: Matrix, functions: Sequence[Spectral], b: Tensor, tol: float = 1e-10, seed: int = 0
) -> Tensor:
    """Return g(A) b ``[functions, n, r]`` for a positive semi-definite A, from products with A only.

        g(A) b = U g(L) U^T b + p(A) (b - U U^T b)

    with the 16 leading eigenvalues L by Lanczos, and p the Chebyshev interpolant of g between 0 and the
    smallest of them, whose last coefficients are below ``tol`` of the largest.

    Raises
    ------
    NtkitError
        A function that takes a polynomial of a degree above 4,096.

    References
    ----------
    Higham, "Functions of matrices" (2008), section 13.3; Trefethen, "Approximation theory and approximation
    practice", chapter 8.

    Examples
    --------
    >>> import torch
    >>> from ntkit.compute.matrix import Dense
    >>> a = torch.diag(torch.arange(1.0, 101.0, dtype=torch.float64))
    >>> b = torch.ones(100, 1, dtype=torch.float64)
    >>> x = matrix_functions(Dense(a), [lambda v: torch.exp(-v)], b)[0]
    >>> torch.allclose(x[:, 0], torch.exp(-a.diagonal()), atol=1e-9)
    True
    """
    count = min(LEADING, matrix.n - 1)
    values, vectors = leading(matrix, count, seed)
    inside = vectors.T @ b
    found = torch.stack([vectors @ (g(values)[:, None] * inside) for g in functions])
    rest = b - vectors @ inside
    top = SLACK * max(float(values[-1]), float(values[0]) * 1e-12)
    series = [_series(g, top, tol) for g in functions]
    before, now = torch.zeros_like(rest), rest
    for k in range(max(map(len, series))):
        if k:
            step = (2 / top) * (matrix @ now) - now
            after = step if k == 1 else 2 * step - before
            before, now = now, after - vectors @ (vectors.T @ after)
        for out, weights in zip(found, series, strict=True):
            if k < len(weights):
                out += float(weights[k]) * now
    return found


def _series(g: Spectral, top: float, tol: float) -> np.ndarray:
    """Return the Chebyshev coefficients of g on [0, top], as many as it takes."""
    degree = 16
    while degree <= MOST:
        points = chebyshev.chebpts1(degree + 1)
        at = g(torch.as_tensor((points + 1) * top / 2, dtype=torch.float64)).numpy()
        weights = np.asarray(dct(at[::-1], type=2)) / len(points)
        weights[0] /= 2
        size = np.abs(weights).max()
        if np.abs(weights[-degree // 4 :]).max() <= tol * size:
            return weights[: 1 + int(np.flatnonzero(np.abs(weights) > tol * size).max(initial=0))]
        degree *= 2
    raise BadValueError(
        f"The function of the stored matrix needs a polynomial of a degree above {MOST}; give an earlier "
        "time t, t=inf, or a smaller learning rate."
    )
