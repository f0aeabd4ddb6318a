"""Square roots and angles of covariances that stay exact, with finite gradients, where they are singular."""

from __future__ import annotations

import torch
from torch import Tensor


def root(x: Tensor) -> Tensor:
    """Return sqrt(max(x, 0)), whose gradient at zero is zero."""
    tiny = torch.finfo(x.dtype).tiny  # an even power of two: its square root is exact
    return x.clamp(min=tiny).sqrt() - tiny**0.5


def arcsine(cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
    """Return s = sqrt(var1 var2 - cov^2) and the arcsine of the correlation, atan2(cov, s).

    With m = abs(cov), var1 var2 - m^2 = m (a + b) + a b for a = var1 - m and b = var2 - m: symmetric,
    and exactly zero (the arcsine exactly pi / 2) where both variances equal the covariance, whatever
    fuses multiplications with additions. Clamped above zero, so that gradients are finite.
    """
    tiny = torch.finfo(cov.dtype).tiny
    m = cov.abs()
    a, b = var1 - m, var2 - m
    s = (m * (a + b) + a * b).clamp(min=tiny).sqrt()
    return s, torch.atan2(cov, s)
