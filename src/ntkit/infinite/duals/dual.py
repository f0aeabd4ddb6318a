"""What the dual of a function is: its expectations under two correlated Gaussians; the table of duals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ntkit.compute.scripted import jvp
from ntkit.errors import BadTypeError, BadValueError, NtkitError
from ntkit.faults import named
from ntkit.infinite.duals.correlation import correlation, ordinary, root
from ntkit.infinite.duals.effort import ROUNDING, effort, fineness, tell_tail
from ntkit.infinite.duals.hermite import coefficients, contract
from ntkit.infinite.duals.pieces import Pieces, derivative, times_x
from ntkit.infinite.duals.split import expectation
from ntkit.infinite.registry import RuleT, registering

Expectations: TypeAlias = tuple[Float[Tensor, "*s"], Float[Tensor, "*s"]]
Numbers = float | Sequence[float] | np.ndarray | Tensor


class Dual(ABC):
    """The expectations of a function phi of one variable under (u, v) ~ N(0, [[var1, cov], [cov, var2]]).

    ``dual(cov, var1, var2)`` checks its input and returns E[phi(u) phi(v)] and E[phi'(u) phi'(v)]; the
    methods below take tensors that broadcast together, in float32 or float64, and check nothing.

    ``how`` says where the numbers come from: ``"closed form"`` or ``"quadrature"``; ``error`` is the
    largest relative error of the last call, of sqrt(E[phi(u)^2] E[phi(v)^2]) for the value and that of
    phi' for the slope: zero of closed forms, measured of others. ``traceable`` says that the methods are
    plain tensor operations, which ``make_fx`` and ``torch.compile`` can follow; ``smooth`` that slope and
    gain can be differentiated everywhere. Where phi jumps, phi' is the derivative that autograd takes: it
    does not see the jump. At a variance of zero u is zero, and phi'(u) the derivative ``at_zero`` that
    autograd takes there: `by_autograd`.
    """

    how: str = "closed form"
    error: float = 0.0
    traceable: bool = True
    smooth: bool = False
    kinks: tuple[float, ...] = ()
    at_zero: float | None = None

    @abstractmethod
    def phi(self, x: Tensor) -> Tensor:
        """Return the function itself, element by element."""

    @abstractmethod
    def value(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi(u) phi(v)]."""

    @abstractmethod
    def slope(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi'(u) phi'(v)]; where phi does not jump, the derivative of the value by ``cov``."""

    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope, sharing work."""
        return self.value(cov, var1, var2), self.slope(cov, var1, var2)

    def radial(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[u phi'(u) v phi'(v)], the mixed derivative of E[phi(x u) phi(y v)] at x = y = 1."""
        one = torch.ones((), dtype=cov.dtype, device=cov.device)

        def by_second(x: Tensor) -> Tensor:
            scaled = lambda y: self.value(x * y * cov, x * x * var1, y * y * var2)  # noqa: E731
            return jvp(scaled, (one,), (one,))[1]

        return jvp(by_second, (one,), (one,))[1]

    def weighted(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[u^2 phi'(u) phi'(v)]."""
        parts = self.pieces()
        if parts is not None:
            slope = derivative(parts)
            return expectation(times_x(times_x(slope)), slope, cov, var1, var2)
        if self.smooth:
            return (self._curved_form(cov, var1, var2)[0] + self.slope(cov, var1, var2)) * var1
        return self._weighted(torch.square, cov, var1, var2) * var1

    def curved(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return E[phi'(u) phi'(v) w] for w = a^2 - 1, a b and b^2 - 1.

        u = sd1 a and v = sd2 (rho a + q b) with independent a and b, q = sqrt(1 - rho^2); the last two
        vanish with q, without loss of digits.
        """
        rho, q = correlation(cov, var1, var2)
        if self.pieces() is not None:
            return self._curved_pieces(cov, var1, var2)
        if self.smooth:
            return self._curved_form(cov, var1, var2)
        degree = degree_here()
        first, second = (self.of_slope(torch.ones_like, var, degree) for var in (var1, var2))
        by_z = self.of_slope(lambda z: z, var1, degree)
        orders = torch.arange(degree + 1, dtype=cov.dtype, device=cov.device)
        once = second[..., 1:] * orders[1:].sqrt()
        twice = once[..., 1:] * orders[1:-1].sqrt()
        return (
            self._weighted(lambda z: z * z - 1, cov, var1, var2) * (var1 > 0),
            q * contract(by_z[..., :-1], once, rho),
            q * q * contract(first[..., :-2], twice, rho),
        )

    def _curved_form(self, *at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return those of a smooth function from the derivatives of its slope S by the covariances.

        For z = (a, b), (u, v) = L z and f = phi'(u) phi'(v), Price's theorem says E[f (z z' - 1)] = L' D L
        with D = [[2 dS / dvar1, dS / dcov], [dS / dcov, 2 dS / dvar2]].
        """
        cov, var1, var2 = torch.broadcast_tensors(*at)
        rho, q = correlation(cov, var1, var2)
        sd1, sd2 = root(var1), root(var2)
        slope, pull = torch.func.vjp(self.slope, cov, var1, var2)[:2]
        by_cov, by_var1, by_var2 = pull(torch.ones_like(slope))
        along = sd2 * rho
        aa = 2 * sd1 * sd1 * by_var1 + 2 * sd1 * along * by_cov + 2 * along * along * by_var2
        ab = sd2 * q * (sd1 * by_cov + 2 * along * by_var2)
        return aa * (var1 > 0), ab, 2 * sd2 * sd2 * q * q * by_var2

    def _curved_pieces(self, *at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return those of a function made of pieces, from the moments of u and v."""
        cov, var1, var2 = torch.broadcast_tensors(*(t.double() for t in at))
        rho, q = correlation(cov, var1, var2)
        one, two = (torch.where(var > 0, var, 1.0) for var in (var1, var2))
        slope = self.slope(cov, var1, var2)
        uu, vv = self.weighted(cov, var1, var2) / one, self.weighted(cov, var2, var1) / two
        uv = self.radial(cov, var1, var2) / (one * two).sqrt()
        safe = torch.where(q > _NEAR, q, 1.0)
        parts = (
            torch.where(var1 > 0, uu - slope, 0.0),
            torch.where(q > _NEAR, (uv - rho * uu) / safe, 0.0),
            torch.where(q > _NEAR, (vv - 2 * rho * uv + rho * rho * uu) / safe**2 - slope, 0.0),
        )
        aa, ab, bb = (part.to(at[0].dtype) for part in parts)
        return aa, ab, bb

    def _weighted(
        self, weight: Callable[[Tensor], Tensor], cov: Tensor, var1: Tensor, var2: Tensor
    ) -> Tensor:
        """Return E[weight(u / sd1) phi'(u) phi'(v)] for an even weight, exact at correlations of 1 and -1."""
        ones = torch.ones_like
        first, whole = (self.of_slope(w, var1, degree_here()) for w in (weight, ones))
        second = self.of_slope(ones, var2, degree_here())
        more: list[tuple[Tensor, Tensor]] = []
        tails: list[tuple[Tensor, ...]] = []
        for parity in (1, 0):  # what is left goes into the next orders, one odd and one even
            rest = self._mass(weight, var1, parity) - (first * whole)[..., parity::2].sum(-1)
            masses = [self._mass(ones, var, parity) for var in (var1, var2)]
            left, right = (
                m - a[..., parity::2].square().sum(-1) for m, a in zip(masses, (whole, second), strict=True)
            )
            some = left > ROUNDING * masses[0]
            noise = right > ROUNDING * masses[1]
            tails.append((torch.where(some, left, 0.0), torch.where(noise, right, 0.0), *masses))
            more.append((torch.where(some, rest * torch.where(some, left, 1.0).rsqrt(), 0.0), root(right)))
        both = zip((first, second), zip(*more, strict=True), strict=True)
        a, b = (torch.cat([c, torch.stack(rests, -1)], -1) for c, rests in both)
        rho = correlation(cov, var1, var2)[0]
        left, right, one, two = (sum(parts) for parts in zip(*tails, strict=True))
        tell_tail((left, right), (one, two), rho, degree_here(), var1 == var2)  # pyright: ignore
        return contract(a, b, rho)

    def curvature(self, var: Tensor) -> Tensor:
        """Return E[(u^2 / var - 1) phi'(u)], zero at a variance of zero."""
        if self.smooth:  # 2 var d E[phi'(u)] / dvar
            gain, pull = torch.func.vjp(self.gain, var)[:2]
            return 2 * var * pull(torch.ones_like(gain))[0]
        return self.of_slope(lambda z: z * z - 1, var, 0)[..., 0] * (var > 0)

    def of_slope(self, weight: Callable[[Tensor], Tensor], var: Tensor, degree: int) -> Tensor:
        """Return the Hermite coefficients of weight(x / sd) phi'(x)."""
        scale = torch.where(var > 0, var, 1.0).double().sqrt()[..., None]
        of = lambda x: weight(x / scale) * self._slope_at(x)  # noqa: E731
        return coefficients(of, var.double(), degree, self.kinks).to(var.dtype)

    def _mass(self, weight: Callable[[Tensor], Tensor], var: Tensor, parity: int) -> Tensor:
        """Return E[weight(u / sd) (the even or the odd part of phi'(u))^2]."""
        scale = torch.where(var > 0, var, 1.0).double().sqrt()[..., None]
        sign = -1 if parity else 1

        def of(x: Tensor) -> Tensor:
            part = (self._slope_at(x) + sign * self._slope_at(-x)) / 2
            return weight(x / scale) * part.square()

        kinks = sorted({s * k for k in self.kinks for s in (1.0, -1.0)})
        return coefficients(of, var.double(), 0, kinks)[..., 0].to(var.dtype)

    def _slope_at(self, x: Tensor) -> Tensor:
        y, pull = torch.func.vjp(self.phi, x)[:2]
        return pull(torch.ones_like(y))[0]

    @abstractmethod
    def mean(self, var: Tensor) -> Tensor:
        """Return E[phi(u)]."""

    @abstractmethod
    def gain(self, var: Tensor) -> Tensor:
        """Return E[u phi(u)] / var = E[phi'(u)], jumps included: E[phi(u) w] = gain(var) cov(u, w)."""

    def mean_slope(self, var: Tensor) -> Tensor:
        """Return E[phi'(u)] for the derivative that autograd takes: the gain, less the jumps of phi."""
        return self.gain(var)

    def by_autograd(self, slope: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi'(u) phi'(v)] from the slope: where a variance is zero, the derivative at zero."""
        if 0.0 not in self.kinks or self.at_zero is None or ordinary(slope, var1, var2):
            return slope
        first, second = self.expected_slope(var1), self.expected_slope(var2)
        return torch.where((var1 > 0) & (var2 > 0), slope, first * second)

    def expected_slope(self, var: Tensor) -> Tensor:
        """Return E[phi'(u)] as autograd takes it, at a variance of zero too."""
        slope = self.mean_slope(var)
        if self.at_zero is None or 0.0 not in self.kinks:
            return slope
        return torch.where(var > 0, slope, self.at_zero)

    def pieces(self) -> Pieces | None:
        """Return the function as polynomials times exponentials between kinks, where it is one."""
        return None

    def crossed(self, other: Dual, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return E[phi(u) psi(v)] and E[phi'(u) psi'(v)] with another function, where a formula is known."""
        return None

    def square(self, var: Tensor) -> Tensor:
        """Return E[phi(u)^2], the value at correlation one."""
        return self.value(var, var, var)

    def hermite(self, degree: int, var: float | Tensor = 1.0) -> Float[Tensor, "*s k"]:
        """Return a_k = E[phi(sqrt(var) z) he_k(z) / sqrt(k!)], k = 0..degree, for a standard normal z.

        Then E[phi(u) phi(v)] = sum_k a_k b_k rho^k (Daniely et al. 2016; 3 Lemma III.3.1).
        """
        return coefficients(self.phi, torch.as_tensor(var, dtype=torch.float64), degree, self.kinks)

    def __call__(self, cov: Numbers, var1: Numbers, var2: Numbers) -> Expectations:
        """Return (E[phi(u) phi(v)], E[phi'(u) phi'(v)]) after checking that the three are covariances.

        Takes floats, arrays or tensors that broadcast together; plain numbers count as float64. Raises
        NtkitError for what is not finite, a negative variance, abs(cov) > sqrt(var1 var2).
        """
        cov, var1, var2 = _checked(cov, var1, var2)
        with effort() as found:
            value, slope = self.both(cov, var1, var2)
            slope = self.by_autograd(slope, var1, var2)
        self.error = found.error if found.error > 1e-12 else 0.0
        return value, slope


class JointDual(Dual):
    """A dual whose value and slope come from the same work, ``both``."""

    @abstractmethod
    def both(self, cov: Tensor, var1: Tensor, var2: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and slope."""

    def value(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi(u) phi(v)]."""
        return self.both(cov, var1, var2)[0]

    def slope(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi'(u) phi'(v)]."""
        return self.both(cov, var1, var2)[1]


DEGREE = 256
_NEAR = 3e-5  # sqrt(1 - rho^2) below which moments of pieces tell nothing of two directions


def degree_here() -> int:
    """Return the degree of series of coefficients that are asked for here."""
    return DEGREE * fineness()


DUAL_RULES: dict[object, Callable[..., Dual | None]] = {}


def register_dual(*ops: torch._ops.OpOverload) -> Callable[[RuleT], RuleT]:
    """Register the dual of a function of one variable: its expectations under two correlated Gaussians.

        (arguments of the operation after its tensor) -> Dual, or None where there is none for these

    The function is an elementwise operation, torch's or one made with ``torch.library.custom_op``; its
    limit is then taken by the formulas of the `Dual`, in `infinite_width` and in `dual`. A `Dual` gives
    E[phi(u) phi(v)] (``value``), E[phi'(u) phi'(v)] (``slope``), E[phi(u)] (``mean``) and E[phi'(u)]
    (``gain``), of tensors of any shape that broadcast together, in float32 or float64. Without one, a
    function is taken by its Hermite series, or sampled.

    Parameters
    ----------
    *ops : torch.ops.<library>.<name>.<overload>
        The operations. An existing dual for one is replaced.

    Raises
    ------
    NtkitError
        An operation that is not an overload. Where the function is called and raises anything but an
        `NtkitError`, or returns anything but a `Dual` or None, the error names it.

    Examples
    --------
    >>> import torch, ntkit
    >>> from ntkit.infinite.duals.dual import DUAL_RULES
    >>> from ntkit.infinite.duals.homogeneous import Homogeneous
    >>> op = torch.ops.aten.deg2rad.default
    >>> @ntkit.register_dual(op)
    ... def degrees():
    ...     return Homogeneous(torch.pi / 180, torch.pi / 180)  # one slope on each side of zero
    >>> value, slope = ntkit.dual(torch.deg2rad)(0.5, 1.0, 1.0)
    >>> (value / slope).item()  # E[u v] of a linear function
    0.5
    >>> del DUAL_RULES[op]
    """
    return registering(DUAL_RULES, ops, "dual")


rule = register_dual


def find(op: object, args: tuple, kwargs: dict[str, Any]) -> Dual | None:
    """Return the dual of an ATen operation with arguments after its tensor, or None if there is none.

    Equal operations with equal arguments get the same object.
    """
    plain = all(isinstance(a, float | int | str | None) for a in (*args, *kwargs.values()))
    if op not in DUAL_RULES or not plain:
        return None
    dual = _of_arguments(DUAL_RULES[op], args, tuple(sorted(kwargs.items())))
    if dual is not None and dual.at_zero is None:
        dual.at_zero = _derivative_at_zero(op, args, kwargs) if 0.0 in dual.kinks else 0.0
    return dual


def _derivative_at_zero(op: Any, args: tuple, kwargs: dict[str, Any]) -> float:
    with torch.enable_grad():
        x = torch.zeros((), dtype=torch.float64, requires_grad=True)
        y = op(x.clone(), *args, **kwargs)
        return float(torch.autograd.grad(y, x)[0]) if y.requires_grad else 0.0


@cache
def _of_arguments(make: Callable[..., Dual | None], args: tuple, kwargs: tuple) -> Dual | None:
    with named(make, lambda what: NtkitError(f"The dual registered as {what}.")) as name:
        dual = make(*args, **dict(kwargs))
    if not isinstance(dual, Dual | None):
        raise BadTypeError(f"{name} returned a {type(dual).__name__}; expected a Dual, or None.")
    return dual


def _checked(*values: Numbers) -> list[Tensor]:
    """Return three tensors of one floating dtype and shape that are covariances, or refuse."""
    try:
        tensors = [x if isinstance(x, Tensor) else torch.tensor(x) for x in values]
    except (TypeError, ValueError, RuntimeError) as error:
        given = ", ".join(repr(x) for x in values if not isinstance(x, Tensor))
        raise BadTypeError(
            f"A covariance is {given} ({error}); expected numbers, arrays or tensors."
        ) from error
    arrays = [t.dtype for t, x in zip(tensors, values, strict=True) if not isinstance(x, float | int)]
    dtypes = [d for d in arrays if d.is_floating_point] or [torch.float64]
    dtype = max(dtypes, key=lambda d: torch.finfo(d).bits)
    if dtype not in (torch.float32, torch.float64) or any(d.is_complex for d in arrays):
        raise BadValueError(f"Covariances must be float32 or float64, not {', '.join(map(str, arrays))}.")
    tensors = [
        torch.tensor(x, dtype=dtype) if isinstance(x, float | int) else t.to(dtype)
        for t, x in zip(tensors, values, strict=True)
    ]
    try:
        cov, var1, var2 = torch.broadcast_tensors(*tensors)
    except RuntimeError as error:
        shapes = ", ".join(str(tuple(t.shape)) for t in tensors)
        raise BadValueError(
            f"cov, var1 and var2 have shapes {shapes}, which do not broadcast; give one."
        ) from error
    for name, x in (("cov", cov), ("var1", var1), ("var2", var2)):
        if not torch.isfinite(x).all():
            count = int((~torch.isfinite(x)).sum())
            raise BadValueError(f"{name} must be finite; {count} of {x.numel()} entries are NaN or inf.")
        if name != "cov" and (x < 0).any():
            raise BadValueError(
                f"{name} is a variance and must be >= 0; its smallest is {float(x.min()):.6g}."
            )
    bound = (var1.sqrt() * var2.sqrt()).detach()
    excess = cov.detach().abs() - bound * (1 + 64 * torch.finfo(dtype).eps)
    if (excess > 0).any():
        at = int(excess.argmax())
        raise BadValueError(
            f"abs(cov) must not exceed sqrt(var1 var2); cov is {float(cov.flatten()[at]):.9g} where "
            f"sqrt(var1 var2) is {float(bound.flatten()[at]):.9g}."
        )
    return [cov, var1, var2]
