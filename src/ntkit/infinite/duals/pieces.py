"""Functions made of pieces, polynomials times exponentials between kinks, and their Gaussian means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

INF = math.inf


@dataclass(frozen=True)
class Piece:
    """sum_j coefficients[j] x^j exp(rate x) for low < x < high.

    The rate is zero, or positive where low = -inf.
    """

    low: float
    high: float
    coefficients: tuple[float, ...]
    rate: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Return the formula at x, inside the interval or not."""
        total = torch.zeros_like(x)
        for a in reversed(self.coefficients):
            total = total * x + a
        return total * torch.exp(self.rate * x) if self.rate else total


Pieces = tuple[Piece, ...]


def kinks(f: Pieces) -> tuple[float, ...]:
    """Return where one piece ends and another begins."""
    return tuple(sorted({k for p in f for k in (p.low, p.high) if math.isfinite(k)}))


def evaluate(f: Pieces, x: Tensor) -> Tensor:
    """Return f(x); at a kink, the piece to the right."""
    total = torch.zeros_like(x)
    for p in f:
        inside = (x >= p.low) & (x < p.high)
        total = total + torch.where(inside, p(torch.where(inside, x, min(max(0.0, p.low), p.high))), 0.0)
    return total


def derivative(f: Pieces) -> Pieces:
    """Return f' between the kinks."""
    slopes = []
    for p in f:
        inner = [*(j * a for j, a in enumerate(p.coefficients) if j), 0.0]
        slopes.append([a + p.rate * b for a, b in zip(inner, p.coefficients, strict=True)])
    return tuple(replace(p, coefficients=_trimmed(c)) for p, c in zip(f, slopes, strict=True) if any(c))


def times_x(f: Pieces) -> Pieces:
    """Return x f(x)."""
    return tuple(replace(p, coefficients=(0.0, *p.coefficients)) for p in f)


def multiply(f: Pieces, g: Pieces) -> Pieces:
    """Return f(x) g(x)."""
    products = []
    for p in f:
        for q in g:
            low, high = max(p.low, q.low), min(p.high, q.high)
            if low < high:
                c = [0.0] * (len(p.coefficients) + len(q.coefficients) - 1)
                for i, a in enumerate(p.coefficients):
                    for j, b in enumerate(q.coefficients):
                        c[i + j] += a * b
                products.append(Piece(low, high, tuple(c), p.rate + q.rate))
    return tuple(products)


def jumps(f: Pieces) -> list[tuple[float, float]]:
    """Return (kink, f just above it - f just below it) wherever that is not rounding."""
    places = []
    for k in kinks(f):
        at = torch.tensor(k, dtype=torch.float64)
        above = sum(float(p(at)) for p in f if p.low <= k < p.high)
        below = sum(float(p(at)) for p in f if p.low < k <= p.high)
        if abs(above - below) > 1e-13 * (abs(above) + abs(below)):
            places.append((k, above - below))
    return places


def smoothed(f: Pieces, mean: Tensor, sd: Tensor) -> Tensor:
    """Return E[f(mean + sd z)] in closed form, from the moments of truncated normals."""
    safe = sd.clamp(min=torch.finfo(sd.dtype).tiny)
    total = torch.zeros_like(mean * sd)
    for p in f:
        for a, moment in zip(p.coefficients, _moments(p, mean, safe), strict=True):
            if a:
                total = total + a * moment
    return total


def rounding(f: Pieces, mean: Tensor, sd: Tensor) -> Tensor:
    """Return how much rounding may change E[f(mean + sd z)]: the sizes of what is summed to make it."""
    safe = sd.clamp(min=torch.finfo(sd.dtype).tiny)
    total = torch.zeros_like(mean * sd)
    for p in f:
        for a, size in zip(p.coefficients, _moments(p, mean, safe, sizes=True), strict=True):
            total = total + abs(a) * size
    return torch.finfo(sd.dtype).eps * total


def _moments(p: Piece, mean: Tensor, sd: Tensor, sizes: bool = False) -> list[Tensor]:
    """Return E[x^j exp(rate x) 1(low < x < high)] for every power j of a piece.

    ``sizes``: the sums of the absolute values of what is summed to make them.
    """
    shifted = mean + p.rate * sd * sd
    ends = []
    if p.rate:
        z = ((p.high - mean) / sd).clamp(-60, 60)
        density = torch.exp(p.rate * p.high - z * z / 2)
        beta = (p.high - shifted) / sd
        inner = torch.exp((p.rate * (mean + shifted) / 2).clamp(max=p.rate * p.high))
        inner = inner * _cdf(beta.clamp(-60, 60))
        tail = 0.5 * torch.special.erfcx((-beta / math.sqrt(2)).clamp(min=0)) * density
        moments = [torch.where(beta < 0, tail, inner)]
        ends.append((p.high, -density / math.sqrt(2 * math.pi)))
    else:
        low, high = (((k - mean) / sd).clamp(-60, 60) for k in (p.low, p.high))
        flip = low > 0
        upper = _cdf(torch.where(flip, -low, high))
        moments = [upper if sizes else upper - _cdf(torch.where(flip, -high, low))]
        for k, z, sign in ((p.low, low, 1), (p.high, high, -1)):
            if math.isfinite(k):
                ends.append((k, sign * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)))
    if sizes:
        shifted, ends = shifted.abs(), [(abs(k), density.abs()) for k, density in ends]
    for j in range(1, len(p.coefficients)):
        moment = shifted * moments[-1]
        if j > 1:
            moment = moment + (j - 1) * sd * sd * moments[-2]
        for k, density in ends:
            if k or j == 1:
                moment = moment + sd * k ** (j - 1) * density
        moments.append(moment)
    return moments


def _cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.special.erfc(-z / math.sqrt(2))


def _trimmed(c: Sequence[float]) -> tuple[float, ...]:
    c = list(c)
    while len(c) > 1 and not c[-1]:
        c.pop()
    return tuple(c)
