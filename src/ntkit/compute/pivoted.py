"""Randomly pivoted Cholesky in blocks: a low-rank part of a kernel matrix from a few of its columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.matrix import Matrix


@dataclass(frozen=True)
class LowRank:
    """A ~ F F^T with ``factor`` F ``[n, r]`` from the columns ``pivots`` of A; ``trace`` is of A - F F^T."""

    factor: Tensor
    pivots: Tensor
    trace: float


def pivoted_cholesky(matrix: Matrix, rank: int, seed: int = 0, block: int = 0, tol: float = 0.0) -> LowRank:
    """Return F F^T ~ A from at most ``rank`` columns, drawn in proportion to what is left of the diagonal.

    Columns are proposed in blocks and accepted one by one with the probability that pivoting one at a time
    would give them, so that the result has its law, at the speed of matrix products.

    Parameters
    ----------
    matrix : Matrix
        A, positive semi-definite; its diagonal and ``rank`` of its columns are asked for.
    rank : int
        The most columns.
    seed : int
        Of the draw.
    block : int
        Columns proposed at once; 0: a tenth of the rank, at least 16.
    tol : float
        Stop when the trace of what is left is below this share of A's trace.

    References
    ----------
    Chen, Epperly, Tropp, Webber, "Randomly pivoted Cholesky" (2022); Epperly, Tropp, Webber, "Embrace
    rejection" (2024), Algorithm 2.

    Examples
    --------
    >>> import torch
    >>> from ntkit.compute.matrix import Dense
    >>> b = torch.randn(30, 4, dtype=torch.float64)
    >>> low = pivoted_cholesky(Dense(b @ b.T), rank=10)
    >>> low.factor.shape[1], bool(low.trace < 1e-10 * (b @ b.T).trace())
    (4, True)
    """
    rng = np.random.default_rng(seed)
    left = matrix.diag().double().clone().clamp_min(0)
    total = float(left.sum())
    rank = min(rank, matrix.n)
    block = block or max(16, rank // 10)
    factor = left.new_zeros(matrix.n, rank)
    pivots: list[int] = []
    noise = 10 * matrix.n * torch.finfo(torch.float64).eps * total
    while len(pivots) < rank and float(left.sum()) > max(noise, tol * total):
        weights = left.cpu().numpy()
        proposed = rng.choice(matrix.n, size=min(block, rank - len(pivots)), p=weights / weights.sum())
        at = torch.as_tensor(proposed, device=left.device)
        done = factor[:, : len(pivots)]
        columns = matrix.columns(at)
        small = columns[at] - done[at] @ done[at].T
        accepted = _accept(small.cpu().numpy(), weights[proposed], rng)
        kept = torch.as_tensor(accepted, dtype=torch.long, device=left.device)
        chosen = at[kept]
        rest = columns[:, kept] - done @ done[chosen].T
        corner = torch.linalg.cholesky_ex(rest[chosen])[0]
        new = torch.linalg.solve_triangular(corner, rest.T, upper=False).T
        factor[:, len(pivots) : len(pivots) + len(chosen)] = new
        pivots += chosen.tolist()
        left = (left - new.square().sum(1)).clamp_min(0)
        left[torch.as_tensor(pivots, device=left.device)] = 0.0
    return LowRank(factor[:, : len(pivots)], torch.as_tensor(pivots), float(left.sum()))


def _accept(small: np.ndarray, before: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Return which of the proposed columns pivoting one at a time would take."""
    small, accepted = small.copy(), []
    for i in range(len(small)):
        pivot = small[i, i]
        if pivot > 1e-10 * before[i] and rng.random() * before[i] < pivot:
            accepted.append(i)
            column = small[:, i] / pivot**0.5
            small -= np.outer(column, column)
    return accepted
