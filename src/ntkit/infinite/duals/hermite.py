"""Expectations as series of Hermite polynomials: E[f(u) g(v)] = sum_k a_k b_k rho^k."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ntkit.infinite.duals.effort import fineness

SPAN = 13.0  # exp(-SPAN^2 / 4), what a Hermite function times sqrt(density) may keep beyond, is 5e-19
STEP = 1 / 40  # of the trapezoid rule: exact to rounding for functions with no pole nearer than 0.15
TABLED = 512  # degree up to which the functions at the nodes of the grid are kept


def coefficients(
    fn: Callable[[Tensor], Tensor], var: Tensor, degree: int, kinks: Sequence[float] = ()
) -> Tensor:
    """Return the normalized Hermite coefficients of z -> fn(sqrt(var) z), ``[*var.shape, degree + 1]``.

    a_k = E[fn(sqrt(var) z) he_k(z) / sqrt(k!)] for a standard normal z and k = 0..degree (Daniely et al.
    2016, 3 Lemma III.3.1). ``fn`` maps ``[*var.shape, Q]`` to the same shape, so it may hold constants
    that broadcast over ``var`` (the function may differ from entry to entry). Computed in float64 and
    returned in the dtype of ``var``. The trapezoid rule is used, whose error falls exponentially for an
    analytic fn; with ``kinks``, the places x where fn is not smooth, Gauss-Legendre between them.
    """
    scale = _root(var)
    nodes, weights = split(scale, kinks, 24 * fineness() + degree // 4) if kinks else _grid(scale)
    values = fn(scale[..., None] * nodes) * (weights * torch.exp(-nodes * nodes / 4)) / (2 * math.pi) ** 0.5
    if not kinks and degree <= TABLED:
        return (values @ _table(degree, nodes.device, fineness())).to(var.dtype)
    return torch.stack([(values * h).sum(-1) for h in _functions(nodes, degree)], -1).to(var.dtype)


def grid(device: torch.device) -> Tensor:
    """Return the places of the even grid in standard deviations, ``[Q]``."""
    return _grid(torch.zeros((), device=device))[0]


@lru_cache(maxsize=32)
def legendre(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the nodes and weights of Gauss-Legendre on [-1, 1]."""
    return np.polynomial.legendre.leggauss(order)


def panels(edges: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights between edges ``[*s, E]``, ``[*s, Q]``."""
    x, w = (torch.from_numpy(a).to(edges.device) for a in legendre(order))
    middle, half = (edges[..., 1:] + edges[..., :-1]) / 2, (edges[..., 1:] - edges[..., :-1]) / 2
    return (middle[..., None] + half[..., None] * x).flatten(-2), (half[..., None] * w).flatten(-2)


def expand(values: Tensor, nodes: Tensor, weights: Tensor, degree: int) -> Tensor:
    """Return the coefficients of a function from its values ``[*s, Q]`` at nodes of a quadrature."""
    weighted = values * (weights * torch.exp(-nodes * nodes / 4)) / (2 * math.pi) ** 0.5
    return torch.stack([(weighted * h).sum(-1) for h in _functions(nodes, degree)], -1)


def _root(var: Tensor) -> Tensor:
    scale = var.double().clamp(min=0)
    return torch.where(scale > 0, scale, 1.0).sqrt() * (scale > 0)


def contract(a: Tensor, b: Tensor, rho: Tensor) -> Tensor:
    """Return sum_k a_k b_k rho^k by Horner's rule; ``a [*s1, K + 1]``, ``b [*s2, K + 1]``, rho broadcast."""
    pairs = list(zip(a.unbind(-1), b.unbind(-1), strict=True))
    last = pairs.pop()
    total = last[0] * last[1] + torch.zeros_like(rho)
    for x, y in reversed(pairs):
        total = total * rho + x * y
    return total


def _functions(z: Tensor, degree: int) -> list[Tensor]:
    """Return he_k(z) exp(-z^2 / 4) / sqrt(k!) for k = 0..degree, each of the shape of z."""
    before, found = torch.zeros_like(z), [torch.exp(-z * z / 4)]
    for k in range(degree):
        now = found[-1]
        found.append((z * now - math.sqrt(k) * before) / math.sqrt(k + 1))
        before = now
    return found


@lru_cache(maxsize=16)
def _table(degree: int, device: torch.device, fineness: int) -> Tensor:
    """Return the functions at the nodes of the grid, ``[Q, degree + 1]``."""
    with torch.no_grad():
        return torch.stack(_functions(_grid(torch.zeros((), device=device))[0], degree), -1)


def _grid(scale: Tensor) -> tuple[Tensor, Tensor]:
    step = STEP / fineness()
    count = round(SPAN / step)
    nodes = torch.arange(-count, count + 1, dtype=torch.float64, device=scale.device) * step
    return nodes, torch.full_like(nodes, step)


def split(scale: Tensor, kinks: Sequence[float], order: int) -> tuple[Tensor, Tensor]:
    """Return Gauss-Legendre nodes and weights on [-SPAN, SPAN] split at every kink, [*scale.shape, Q]."""
    places = torch.tensor(sorted(kinks), dtype=torch.float64, device=scale.device)
    safe = torch.where(scale > 0, scale, 1.0)[..., None]
    splits = (places / safe).clamp(-SPAN, SPAN)
    even = torch.linspace(-SPAN, SPAN, 9, dtype=torch.float64, device=scale.device)
    edges = torch.cat([splits, even.expand(*scale.shape, -1)], -1).sort(-1).values
    return panels(edges, order)
