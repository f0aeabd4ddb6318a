"""One-dimensional planar topology: sequences with peaks, and the shape between them filled in."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.errors import BadValueError


def peaks(n: int, p: int, count: int, seed: int) -> Tensor:
    """Draw sequences of zeros with so many ones, ``[n, p]``: the set X_count of the paper.

    (Courtois, Morel, Arias, "Can neural networks extrapolate?", Section 6.1.1.)

    Examples
    --------
    >>> peaks(3, 8, 4, seed=0).sum(1).tolist()
    [4.0, 4.0, 4.0]
    """
    if not 1 <= count <= p:
        raise BadValueError(f"A sequence of length {p} cannot have {count} peaks; expected 1 to {p}.")
    draw = torch.Generator().manual_seed(seed)
    index = torch.rand(n, p, generator=draw).topk(count, dim=1).indices
    return torch.zeros(n, p).scatter_(1, index, 1.0)


def filled(x: Tensor) -> Tensor:
    """Return y_j = x_1 + ... + x_j (mod 2) along the last axis (Eq. 10).

    Examples
    --------
    >>> filled(torch.tensor([0.0, 1, 0, 0, 1, 0])).tolist()
    [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]
    """
    return x.cumsum(-1) % 2


def two_peaks(p: int) -> tuple[Tensor, Tensor]:
    """Return all sequences with two peaks, ``[p (p - 1) / 2, p]``, and whether p / 2 lies between them.

    The label ``[n, 1]`` is 1 where psi_1 <= p / 2 <= psi_2 for the peaks psi_1 < psi_2, counted from 1, and 0
    elsewhere (Section 6.3).

    Examples
    --------
    >>> x, y = two_peaks(4)
    >>> x.shape, y.flatten().tolist()
    (torch.Size([6, 4]), [1.0, 1.0, 1.0, 1.0, 1.0, 0.0])
    """
    if p < 2:
        raise BadValueError(f"Two peaks need a sequence of at least 2, not {p}.")
    pairs = torch.combinations(torch.arange(p), 2)
    x = torch.zeros(len(pairs), p, dtype=torch.float64).scatter_(1, pairs, 1.0)
    inside = (pairs[:, 0] + 1 <= p / 2) & (p / 2 <= pairs[:, 1] + 1)
    return x, inside.double()[:, None]
