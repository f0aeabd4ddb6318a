"""How finely functions are integrated, and the largest error that was found: for all calls within a block.

As with ``decimal.localcontext``, what a block asks for holds for its thread, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode

ROUNDING = 2e-14  # of E[f^2]: what a series leaves below that is noise
NOTHING = 1e-13  # relative errors that nobody asks for
MANY = 48  # entries of a batch at which a quadrature is compared with a finer one


@dataclass
class Effort:
    """``fineness`` times the usual nodes and terms; ``error`` relative to sqrt(E[f(u)^2] E[g(v)^2])."""

    fineness: int = 1
    error: float = 0.0

    def tell(self, error: float) -> None:
        """Keep the largest error; what has no digit right, or is not a number, is all wrong: one."""
        self.error = max(self.error, min(error, 1.0) if error == error else 1.0)


_current: ContextVar[Effort | None] = ContextVar("effort", default=None)


@contextmanager
def effort(fineness: int | None = None) -> Iterator[Effort]:
    """Integrate so finely within the block (as around it, if left out), and keep the error that is found."""
    outer = _current.get()
    found = Effort(fineness if fineness is not None else 1 if outer is None else outer.fineness)
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def fineness() -> int:
    """Return how many times the usual nodes and terms are wanted here."""
    now = _current.get()
    return 1 if now is None else now.fineness


def asked() -> bool:
    """Return whether anyone wants to know of errors: nobody does where operations are only traced."""
    return _current.get() is not None and get_proxy_mode() is None


def tell(error: Tensor | float) -> None:
    """Tell the relative error of an expectation, the largest of a tensor."""
    now = _current.get()
    if now is None or get_proxy_mode() is not None or (isinstance(error, Tensor) and not error.numel()):
        return
    now.tell(float(error.detach().max()) if isinstance(error, Tensor) else error)


def tell_tail(
    rests: tuple[Tensor, Tensor], masses: tuple[Tensor, Tensor], rho: Tensor, degree: int, ends: Tensor | None
) -> None:
    """Tell what a series up to a degree leaves of E[f(u) g(v)]: at most sqrt(rest rest') rho^(degree + 1).

    ``rests`` are what is left of the masses E[f(u)^2] and E[g(v)^2]; ``ends``: where correlations of 1 and
    -1 are exact, because what is left is put into the next orders.
    """
    if not asked() or not rho.numel():
        return
    tiny = 1e-300
    one, two = (
        r.detach().double() / m.detach().double().clamp(min=tiny) for r, m in zip(rests, masses, strict=True)
    )
    one, two = (torch.where(r > tiny, r, 0.0).clamp(max=1.0) for r in (one, two))
    if (float(one.max()) * float(two.max())) ** 0.5 < NOTHING:
        return
    r = rho.detach().double().abs()
    left = (one * two).sqrt() * r ** (degree + 1)
    if ends is not None:
        left = torch.where(ends & (r > 1 - 4 * torch.finfo(rho.dtype).eps), 0.0, left)
    tell(left)


def tail(a: Tensor, mass: Tensor) -> Tensor:
    """Return what a series ``[*s, K]`` leaves of E[f^2] ``[*s]``: by Parseval, where that is not rounding.

    There it is at most what the last half of the coefficients holds.
    """
    rest = (mass - a.square().sum(-1)).abs()
    half = a[..., a.shape[-1] // 2 :].square().sum(-1)
    return torch.where(rest > ROUNDING * mass, rest, torch.minimum(half, rest + ROUNDING * mass))


def some(cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a few entries of covariances ``[n]``: the extreme ones, and others all over them."""
    n = len(cov)
    if n <= MANY:
        return cov, var1, var2
    with torch.no_grad():
        rho = cov.abs() / (var1 * var2).sqrt().clamp(min=1e-300)
        between = torch.where(rho < 1 - 1e-12, rho, 0.0)
        ends = [t for part in (var1, var2, cov, between) for t in (part.argmax(), part.argmin())]
        even = torch.linspace(0, n - 1, MANY - len(ends), device=cov.device).long()
        index = torch.cat([torch.stack(ends), even])
    return cov[index], var1[index], var2[index]
