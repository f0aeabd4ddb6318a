"""Nystrom: least squares on the columns of a few samples."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.compute.pivoted import LowRank
from ntkit.errors import BadValueError


def nystrom(low: LowRank, b: Tensor, shift: float) -> Tensor:
    """Return coefficients ``[rank, r]`` of the pivots' kernel columns, for A ~ F F^T.

        c = argmin |b - A_:S c|^2 + shift c^T A_SS c,      F = A_:S F_S^-T

    so that the function is sum_s c_s k(x, x_s) over the pivots S. With all samples as pivots it is
    (A + shift)^-1 b.

    Raises
    ------
    NtkitError
        A negative shift.

    References
    ----------
    Williams, Seeger (2001); Rudi, Camoriano, Rosasco (2015), Eq. 5.

    Examples
    --------
    >>> import torch
    >>> from ntkit.compute.matrix import Dense
    >>> from ntkit.compute.pivoted import pivoted_cholesky
    >>> a, b = torch.diag(torch.tensor([1.0, 3.0]).double()), torch.ones(2, 1).double()
    >>> low = pivoted_cholesky(Dense(a), 2)
    >>> nystrom(low, b, 1.0)[low.pivots.argsort()].flatten()
    tensor([0.5000, 0.2500], dtype=torch.float64)
    """
    if shift < 0:
        raise BadValueError(f"shift={shift}; expected a number >= 0.")
    u, s, vt = torch.linalg.svd(low.factor, full_matrices=False)
    filtered = torch.where(s > 0, s / (s.square() + shift).clamp_min(1e-300), 0.0)
    w = vt.T @ (filtered[:, None] * (u.T @ b))
    corner = low.factor[low.pivots.to(low.factor.device)]
    return torch.linalg.solve_triangular(corner.T, w, upper=True)
