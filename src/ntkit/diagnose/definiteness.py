"""Checks of kernels on points: positive definiteness, smallest eigenvalue, operator norm."""

from __future__ import annotations

from dataclasses import dataclass
from math import comb
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import BadValueError, whole
from ntkit.kernel import Kernel, a_kernel


@dataclass(frozen=True)
class Definiteness:
    """The ends of the spectrum of a kernel's matrix on points, computed in float64.

    ``rank`` counts the eigenvalues above ``rounding``, the error that an eigenvalue may have: n eps times the
    largest, or a negative one of up to sqrt(eps) times the largest.
    """

    size: int
    smallest: float
    largest: float
    rank: int
    rounding: float

    @property
    def positive(self) -> bool:
        """Whether the matrix is strictly positive definite, beyond rounding."""
        return self.smallest > self.rounding

    def __repr__(self) -> str:
        verdict = "positive definite" if self.positive else f"of rank {self.rank}"
        if self.smallest < -self.rounding:
            verdict = "not positive semi-definite"
        return (
            f"{self.size} x {self.size}, eigenvalues {self.smallest:.3g} to {self.largest:.3g} "
            f"(rounding {self.rounding:.1g}): {verdict}"
        )


def definiteness(kernel: Kernel, x: object) -> Definiteness:
    """Return whether a kernel is strictly positive definite on some points.

        sum_ij c_i c_j K(x_i, x_j) > 0   for all c != 0,   that is lambda_min(K(X, X)) > 0

    The limiting NTK of a network with at least one hidden layer and a Lipschitz nonlinearity that is not
    a polynomial is strictly positive definite on distinct points of the unit sphere (two opposite points
    may need a bias: a ReLU without one cannot tell them apart at all orders). A polynomial of degree p is
    the counter-example: its Hermite series ends, and the rank on the sphere is at most
    `harmonics` (d, p^hidden layers), however many points there are.

    Parameters
    ----------
    kernel : Kernel
        Any kernel with one value per pair, or ``outputs="full"``.
    x : batch of inputs
        The points; n x n values are computed.

    Raises
    ------
    NtkitError
        Values that are not finite, or a matrix that is not symmetric.

    References
    ----------
    Giancola (2023), Prop. III.3.3 and Def. I.3.6; Jacot et al. (2018), Prop. 2.

    Examples
    --------
    >>> import torch, ntkit
    >>> from torch import nn
    >>> from ntkit.diagnose.definiteness import definiteness, sphere
    >>> model = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1)).double()
    >>> x = sphere(12, 3, seed=0)
    >>> definiteness(ntkit.infinite_width(model, x, sigma_b=0.5).ntk, x).positive
    True
    """
    matrix, eps = _matrix(kernel, x)
    values = torch.linalg.eigvalsh(matrix)
    largest = float(values.abs().max())
    rounding = len(matrix) * eps * largest
    below = -float(values[0])
    if rounding < below <= eps**0.5 * largest:  # as between samples that are nearly parallel, at a kink
        rounding = below
    rank = int((values.abs() > rounding).sum())
    return Definiteness(len(matrix), float(values[0]), float(values[-1]), rank, rounding)


def smallest_eigenvalue(kernel: Kernel, x: object) -> float:
    """Return the smallest eigenvalue of K(X, X), computed in float64.

    It bounds the slowest mode of training: errors fall at least like exp(-t lambda_min / N).

    >>> import torch, ntkit
    >>> from ntkit.diagnose.definiteness import smallest_eigenvalue
    >>> k = ntkit.EmpiricalNTK(torch.nn.Linear(2, 1, bias=False))
    >>> smallest_eigenvalue(k, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
    1.0
    """
    return float(torch.linalg.eigvalsh(_matrix(kernel, x)[0])[0])


def operator_norm(kernel: Kernel, x: Any) -> float:
    """Return the operator norm of a kernel with respect to the distribution that some points are drawn from.

        ||K||_op = max { sqrt(E_x,x'[f(x)^T K(x, x') f(x')]) : E_x|f(x)|^2 <= 1 }

    With n points for the distribution this is sqrt(lambda_max(K(X, X)) / n): the square root of the
    largest eigenvalue of the integral operator, in the unit of sqrt(K), which does not grow with n. It is
    exact for the distribution of these very points (a training set); as an estimate of the norm under the
    distribution that they are drawn from it is too large on average, by O(1 / n).

    References
    ----------
    Giancola (2023), Def. III.2.1. (The remark there drops the root and the 1 / n.)

    Examples
    --------
    >>> import torch, ntkit
    >>> from ntkit.diagnose.definiteness import operator_norm
    >>> k = ntkit.EmpiricalNTK(torch.nn.Linear(2, 1, bias=False))
    >>> x = torch.tensor([[2.0, 0.0], [0.0, 1.0]])  # K = x . x', so E[x x^T] = diag(2, 0.5)
    >>> round(operator_norm(k, x), 6)
    1.414214
    """
    matrix, _ = _matrix(kernel, x)
    n = len(kernel.diag(x))
    return float((torch.linalg.eigvalsh(matrix)[-1].clamp(min=0) / n).sqrt())


def sphere(n: int, d: int, *, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return points drawn uniformly from the unit sphere in d dimensions, ``[n, d]``."""
    generator = torch.Generator().manual_seed(whole("seed", seed, None))
    points = torch.randn(whole("n", n), whole("d", d), generator=generator, dtype=torch.float64)
    return (points / points.norm(dim=1, keepdim=True)).to(dtype)


def harmonics(d: int, degree: int) -> int:
    """Return the dimension of the polynomials up to a degree on the unit sphere in d dimensions.

    The rank of a kernel that is a polynomial of x . x' of this degree is at most that.

    >>> from ntkit.diagnose.definiteness import harmonics
    >>> harmonics(3, 2)  # 1 + 3 + 5
    9
    """
    whole("d", d)
    whole("degree", degree, 0)
    return comb(d + degree - 1, degree) + (comb(d + degree - 2, degree - 1) if degree else 0)


def _matrix(kernel: Kernel, x: Any) -> tuple[Tensor, float]:
    """Return the matrix on some points in float64, and the relative rounding of its entries."""
    block = a_kernel(kernel)(x)
    if block.ndim == 4:
        n, _, o, _ = block.shape
        block = block.permute(0, 2, 1, 3).reshape(n * o, n * o)
    if block.ndim != 2:
        raise BadValueError(
            f"The kernel has values of shape {tuple(block.shape)}; a matrix takes one value per pair "
            f"of samples, or outputs='full'."
        )
    matrix = block.detach().double()
    if not matrix.isfinite().all():
        raise BadValueError("The kernel has values that are not finite on these points.")
    scale = matrix.abs().max()
    if (matrix - matrix.T).abs().max() > 1e3 * torch.finfo(block.dtype).eps * scale:
        raise BadValueError("The kernel is not symmetric on these points, so it is not a kernel.")
    return (matrix + matrix.T) / 2, torch.finfo(block.dtype).eps
