"""E[f(u) g(v)] of two functions made of pieces: quadrature over u, split at the kinks, of E[g(v) | u]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import ntkit.infinite.duals.pieces as pieces
from ntkit.infinite.duals.correlation import arcsine, root
from ntkit.infinite.duals.effort import asked, fineness, some, tell
from ntkit.infinite.duals.hermite import legendre
from ntkit.infinite.duals.pieces import Piece, Pieces

WITHIN = 9.5  # standard deviations of u
ORDER = 12  # nodes between two splits
CHUNK = 2**19  # nodes at a time
_AROUND = (-9.0, -5.5, -2.5, 0.0, 2.5, 5.5, 9.0)  # splits at a kink of g, in its widths there
_DECAYS = (3.0, 9.0, 30.0)  # splits below a kink, in units of 1 / rate


def expectation(f: Pieces, g: Pieces, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
    """Return E[f(u) g(v)], to about 1e-13 of sqrt(E[f(u)^2] E[g(v)^2]) whatever the correlation.

    Given u, v is normal with mean cov u / var1 and variance (var1 var2 - cov^2) / var1, and E[g(v) | u] has
    a closed form. The integral over u is split at the kinks of f, and around u = k var1 / cov for each kink
    k of g at multiples of the width that v's spread gives it: 12 Gauss-Legendre nodes between two splits.
    At some entries it is compared with twice the nodes, and the difference told (`effort`).
    Gradients come from Price's theorem: the derivative by ``cov`` is E[f'(u) g'(v)], jumps included.
    """
    dtype = torch.promote_types(cov.dtype, torch.promote_types(var1.dtype, var2.dtype))
    cov, var1, var2 = torch.broadcast_tensors(cov.double(), var1.double(), var2.double())
    return _Expectation.apply(cov, var1, var2, f, g).to(dtype)  # pyright: ignore


def average(f: Pieces, var: Tensor) -> Tensor:
    """Return E[f(u)]."""
    return _Average.apply(var.double(), f).to(var.dtype)  # pyright: ignore


def square(f: Pieces, var: Tensor) -> Tensor:
    """Return E[f(u)^2], and tell what rounding leaves of it."""
    squared = pieces.multiply(f, f)
    value = average(squared, var)
    if asked():
        sd = root(var.detach().double())
        tell(pieces.rounding(squared, torch.zeros_like(sd), sd) / value.detach().clamp(min=1e-300))
    return value


def density(x: float, var: Tensor) -> Tensor:
    """Return the density of N(0, var) at x; zero where the variance is."""
    safe = torch.where(var > 0, var, 1.0)
    return torch.where(var > 0, torch.exp(-x * x / (2 * safe)) * (2 * math.pi * safe).rsqrt(), 0.0)


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, var: Tensor, f: Pieces) -> Tensor:
        ctx.save_for_backward(var)
        ctx.f = f
        return pieces.smoothed(f, torch.zeros_like(var), root(var))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return half of E[f''(u)], with what jumps of f and f' add."""
        (var,) = ctx.saved_tensors
        slope = pieces.derivative(ctx.f)
        total = average(pieces.derivative(slope), var)
        for k, jump in pieces.jumps(slope):
            total = total + jump * density(k, var)
        for k, jump in pieces.jumps(ctx.f):
            total = total + jump * k * density(k, var) / torch.where(var > 0, var, 1.0)
        return grads[0] * total / 2, None


class _Expectation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cov: Tensor, var1: Tensor, var2: Tensor, f: Pieces, g: Pieces) -> Tensor:
        ctx.save_for_backward(cov, var1, var2)
        ctx.f, ctx.g = f, g
        if not f or not g:
            return torch.zeros_like(cov)
        shape = cov.shape
        cov, var1, var2 = (t.reshape(-1) for t in (cov, var1, var2))
        order = ORDER * fineness()
        size = max(1, CHUNK // (order * (10 + 5 * len(pieces.kinks(f)) + 10 * len(pieces.kinks(g)))))
        parts = zip(cov.split(size), var1.split(size), var2.split(size), strict=True)
        if asked() and len(cov):
            _compare(f, g, order, *some(cov, var1, var2))
        return torch.cat([_integral(f, g, order, *part) for part in parts]).reshape(shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Return Price's E[f'(u) g'(v)], and from it by scaling those by the variances."""
        cov, var1, var2 = ctx.saved_tensors
        by_cov = _price(ctx.f, ctx.g, cov, var1, var2)
        by_var = []
        for f, g, one, two in ((ctx.f, ctx.g, var1, var2), (ctx.g, ctx.f, var2, var1)):
            total = expectation(pieces.times_x(pieces.derivative(f)), g, cov, one, two) - cov * by_cov
            for k, jump in pieces.jumps(f):
                total = total + jump * k * density(k, one) * _mean_given(g, k, cov, one, two)
            by_var.append(torch.where(one > 0, total / (2 * torch.where(one > 0, one, 1.0)), 0.0))
        return grads[0] * by_cov, grads[0] * by_var[0], grads[0] * by_var[1], None, None


def _price(f: Pieces, g: Pieces, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
    slope_f, slope_g = pieces.derivative(f), pieces.derivative(g)
    total = expectation(slope_f, slope_g, cov, var1, var2)
    for k, jump in pieces.jumps(f):
        total = total + jump * density(k, var1) * _mean_given(slope_g, k, cov, var1, var2)
    for k, jump in pieces.jumps(g):
        total = total + jump * density(k, var2) * _mean_given(slope_f, k, cov, var2, var1)
    for k, one in pieces.jumps(f):
        for j, two in pieces.jumps(g):
            s = arcsine(cov, var1, var2)[0].detach().clamp(min=1e-150)
            exponent = (k * k * var2 - 2 * k * j * cov + j * j * var1) / (2 * s * s)
            joint = torch.exp(-exponent.clamp(min=0)) / (2 * math.pi * s)
            total = total + one * two * torch.where(s > 1e-140, joint, 0.0)
    return total


def _mean_given(g: Pieces, u: float, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
    """Return E[g(v) | u], a constant to autograd."""
    with torch.no_grad():
        mean, sd = _conditional(cov, var1, var2)
        return pieces.smoothed(g, u * mean, sd)


def _conditional(cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
    """Return d E[v | u] / du and the standard deviation of v given u."""
    safe = torch.where(var1 > 0, var1, 1.0)
    s = arcsine(cov, var1, var2)[0]
    return torch.where(var1 > 0, cov / safe, 0.0), torch.where(var1 > 0, s / safe.sqrt(), var2.sqrt())


def _compare(f: Pieces, g: Pieces, order: int, cov: Tensor, var1: Tensor, var2: Tensor) -> None:
    """Tell how far an integral is from one with twice the nodes, relative to sqrt(E[f^2] E[g^2])."""
    squares = (pieces.smoothed(pieces.multiply(h, h), 0 * v, root(v)) for h, v in ((f, var1), (g, var2)))
    one, two = (square.clamp(min=1e-300) for square in squares)
    gap = _integral(f, g, order, cov, var1, var2) - _integral(f, g, 2 * order, cov, var1, var2)
    rounding = _integral(f, g, order, cov, var1, var2, pieces.rounding)
    tell((gap.abs() + rounding) / one.sqrt() / two.sqrt())


def _integral(
    f: Pieces,
    g: Pieces,
    order: int,
    cov: Tensor,
    var1: Tensor,
    var2: Tensor,
    given: Callable[[Pieces, Tensor, Tensor], Tensor] = pieces.smoothed,
) -> Tensor:
    """Return the integral of f, or of its size, times E[g(v) | u], or what is ``given`` in its place."""
    sd = var1.sqrt()
    ratio, spread = _conditional(cov, var1, var2)
    z, weight = _nodes(f, g, order, sd, ratio, spread)
    u = sd[:, None] * z
    inner = given(g, ratio[:, None] * u, spread[:, None])
    outer = pieces.evaluate(f, u)
    return (weight * (outer if given is pieces.smoothed else outer.abs()) * inner).sum(-1)


def _nodes(
    f: Pieces, g: Pieces, order: int, sd: Tensor, ratio: Tensor, spread: Tensor
) -> tuple[Tensor, Tensor]:
    """Return nodes z = u / sd and weights times the density, ``[n, Q]``."""
    tiny = 1e-150
    steep = (ratio * sd).abs().clamp(min=tiny)  # d E[v | u] / dz
    sign = torch.where(ratio < 0, -1.0, 1.0).to(ratio.dtype)
    edges = [torch.linspace(-WITHIN, WITHIN, 9, dtype=sd.dtype, device=sd.device).expand(len(sd), -1)]
    edges += [torch.stack([k / sd.clamp(min=tiny) for k in pieces.kinks(f)], -1)] if pieces.kinks(f) else []
    edges += [(p.high - c / p.rate)[:, None] / sd.clamp(min=tiny)[:, None] for p, c in _decays(f, sd)]
    for k in pieces.kinks(g):
        around = torch.tensor(_AROUND, dtype=sd.dtype, device=sd.device)
        edges.append((sign * k / steep)[:, None] + (spread / steep)[:, None] * around)
    edges += [(sign * (p.high - c / p.rate) / steep)[:, None] for p, c in _decays(g, sd)]
    splits = torch.cat(edges, -1).clamp(-WITHIN, WITHIN).sort(-1).values
    x, w = (torch.from_numpy(a).to(sd.device) for a in legendre(order))
    middle, half = (splits[:, 1:] + splits[:, :-1]) / 2, (splits[:, 1:] - splits[:, :-1]) / 2
    z = (middle[..., None] + half[..., None] * x).flatten(-2)
    return z, (half[..., None] * w).flatten(-2) * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _decays(f: Pieces, like: Tensor) -> list[tuple[Piece, Tensor]]:
    """Return where the exponentials of a function have decayed, piece by piece."""
    return [(p, torch.full_like(like, c)) for p in f if p.rate for c in _DECAYS]
