"""E[phi(u) psi(v)] of two different functions: exact within a family, else by their Hermite series."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ntkit.infinite.duals.correlation import root
from ntkit.infinite.duals.dual import Dual, degree_here
from ntkit.infinite.duals.effort import asked, tail, tell_tail
from ntkit.infinite.duals.hermite import contract


def cross(first: Dual, second: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
    """Return E[phi(u) psi(v)] of two functions: exact within a family, else by their Hermite series."""
    exact = _exact(first, second, cov, var1, var2)
    if exact is not None:
        return exact[0]
    series = [(d.hermite(degree_here(), v), d.square, v) for d, v in ((first, var1), (second, var2))]
    return _series(series, cov, var1, var2)


def cross_slope(first: Dual, second: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
    """Return E[phi'(u) psi'(v)] of two functions: exact within a family, else by their Hermite series."""
    exact = _exact(first, second, cov, var1, var2)
    if exact is not None:
        return exact[1]
    one = torch.ones_like
    series = [
        (d.of_slope(one, v, degree_here()), lambda v, d=d: d.slope(v, v, v), v)
        for d, v in ((first, var1), (second, var2))
    ]
    return _series(series, cov, var1, var2)


def _exact(
    first: Dual, second: Dual, cov: Tensor, var1: Tensor, var2: Tensor
) -> tuple[Tensor, Tensor] | None:
    exact = first.crossed(second, cov, var1, var2)
    return second.crossed(first, cov, var2, var1) if exact is None else exact


def _series(
    series: list[tuple[Tensor, Callable[[Tensor], Tensor], Tensor]], cov: Tensor, var1: Tensor, var2: Tensor
) -> Tensor:
    """Return sum_k a_k b_k rho^k from coefficients; each comes with what gives E[f^2], and its variance."""
    rho = (cov / root(var1 * var2).clamp(min=torch.finfo(cov.dtype).tiny)).clamp(-1, 1)
    a, b = (c.to(cov.dtype) for c, _, _ in series)
    if asked():
        masses = [square(v.detach().double()) for _, square, v in series]
        rests = [tail(c.detach().double(), m) for (c, _, _), m in zip(series, masses, strict=True)]
        tell_tail((rests[0], rests[1]), (masses[0], masses[1]), rho, a.shape[-1] - 1, None)
    return contract(a, b, rho)
