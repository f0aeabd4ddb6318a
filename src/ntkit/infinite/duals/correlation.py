"""Square roots and angles of covariances that stay exact, with finite gradients, where they are singular."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack  # pyright: ignore[reportMissingImports]
from torch.fx.experimental.proxy_tensor import get_proxy_mode

# the polynomial in u of degree 8 next to atan(sqrt u) / sqrt u on [0, 1]: its largest error is 1.8e-8
_ATAN = (
    0.9999999817886557,
    -0.33333036709286273,
    0.19991872029109073,
    -0.14197797794085124,
    0.10618370636953849,
    -0.07456854826004547,
    0.04213762358919304,
    -0.01573124912218365,
    0.002766283501762026,
)


def root(x: Tensor) -> Tensor:
    """Return sqrt(max(x, 0)), whose gradient at zero is zero."""
    tiny = torch.finfo(x.dtype).tiny  # an even power of two: its square root is exact
    return x.clamp(min=tiny).sqrt() - tiny**0.5


def arcsine(cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
    """Return s = sqrt(var1 var2 - cov^2) and the arcsine of the correlation, atan2(cov, s).

    With m = abs(cov), var1 var2 - m^2 = m (a + b) + a b for a = var1 - m and b = var2 - m: symmetric,
    and exactly zero (the arcsine exactly pi / 2) where both variances equal the covariance, whatever
    fuses multiplications with additions. In units of the larger variance, so that small ones do not
    underflow; the root is clamped above zero, so that gradients are finite.
    """
    if ordinary(cov, var1, var2):
        return arcsine_in_place(cov, var1, var2)
    tiny = torch.finfo(cov.dtype).tiny
    m, unit = cov.abs(), torch.maximum(var1, var2).detach()  # both are the same in any unit
    unit = torch.where(unit > 0, unit, 1.0)
    inverse = 1 / unit
    a, b, r = (var1 - m) * inverse, (var2 - m) * inverse, m * inverse
    s = (r * (a + b) + a * b).clamp(min=tiny).sqrt()
    return (s - tiny**0.5) * unit, torch.atan2(cov * inverse, s)


def arcsine_in_place(cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `arcsine` does, where covariances are `ordinary`: in half its passes over memory."""
    m = cov.abs()
    a, b = var1 - m, var2 - m
    both = a + b
    s = torch.addcmul(a.mul_(b), both, m, out=both).clamp_(min=0).sqrt_()
    return s, torch.atan2(cov, s, out=a)


def ordinary(cov: Tensor, *variances: Tensor) -> bool:
    """Return whether covariances may be computed with in place, in their own units.

    No gradient is wanted, nothing traces or maps the computation, the covariances have the shape of the
    result, and all variances are positive, and neither so small nor so large that products of four of them
    leave the range of the dtype.
    """
    if torch.is_grad_enabled() or get_proxy_mode() is not None or peek_interpreter_stack() is not None:
        return False
    if any(v.dtype != cov.dtype or not v.numel() for v in variances) or not cov.dtype.is_floating_point:
        return False
    if any(v.ndim > cov.ndim or not _fits(v.shape, cov.shape) for v in variances):
        return False
    low, high = torch.finfo(cov.dtype).tiny ** 0.25, torch.finfo(cov.dtype).max ** 0.25
    ends = [torch.aminmax(v) for v in variances]
    return all(float(end.min) > low and float(end.max) < high for end in ends)


def _fits(small: torch.Size, large: torch.Size) -> bool:
    """Return whether a shape of no more axes broadcasts to another."""
    return all(a in (1, b) for a, b in zip(reversed(small), reversed(large), strict=False))


def correlation(cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the correlation rho and sqrt(1 - rho^2); 0 and 1 where a variance is zero."""
    some = (var1 > 0) & (var2 > 0)
    size = root(torch.where(some, var1 * var2, 1.0))
    rho = torch.where(some, cov / size, 0.0).clamp(-1, 1)
    return rho, torch.where(some, arcsine(cov, var1, var2)[0] / size, 1.0).clamp(max=1)


def fused_atan2(y: Tensor, x: Tensor) -> Any:
    """Return atan2(y, x) in arithmetic that a compiler fuses, to the precision of float32.

    There it is several times faster than a library's function, and most of the time that a tile of a ReLU
    limit takes. In other precisions it is NotImplemented, as decompositions say it.
    """
    if torch.result_type(y, x) != torch.float32:
        return NotImplemented
    rise, run = y.abs(), x.abs()
    t = torch.minimum(rise, run) / torch.maximum(rise, run).clamp(min=torch.finfo(torch.float32).tiny)
    u = t * t
    angle = u * _ATAN[-1] + _ATAN[-2]
    for coefficient in _ATAN[-3::-1]:
        angle = angle * u + coefficient
    angle = angle * t
    angle = torch.where(rise > run, math.pi / 2 - angle, angle)
    angle = torch.where(x < 0, math.pi - angle, angle)
    return torch.where(y < 0, -angle, angle)
