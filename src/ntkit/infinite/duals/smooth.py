"""Any smooth function by its Hermite series: tanh, sigmoid, SiLU, softplus, Mish, and your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ntkit.errors import NoRuleError
from ntkit.infinite.duals.correlation import root
from ntkit.infinite.duals.dual import Dual, rule
from ntkit.infinite.duals.effort import ROUNDING, asked, fineness, tell, tell_tail
from ntkit.infinite.duals.hermite import coefficients, contract, grid, split
from ntkit.infinite.duals.judged import SMOOTH, Uncontrolled, apart, halved, judge, kinks, probes

aten = torch.ops.aten


class Series(Dual):
    """A function of your own by its Hermite series, E[phi(u) phi(v)] = sum_k a_k b_k rho^k.

    (Daniely et al. 2016; 3 Lemma III.3.1.) ``fn`` maps a tensor element by element and is differentiable
    by autograd; ``kinks`` are the places where it is not smooth. The degree grows until what it leaves of
    E[phi(u)^2] is rounding, or to ``cap``. What is left then goes into the next even and the next odd
    coefficient, so that correlations of 1 and -1 stay exact. The error that is told (`effort`) is the
    largest of what is left times rho^(n + 1), and of what the quadrature of E[phi(u)^2] changes by where
    its nodes are halved.
    """

    how = "quadrature"
    traceable = False

    def __init__(self, fn: Callable[[Tensor], Tensor], kinks: Sequence[float] = (), cap: int = 400) -> None:
        self.fn, self.kinks, self.cap = fn, tuple(kinks), cap

    def phi(self, x: Tensor) -> Tensor:
        """Return the function itself."""
        return self.fn(x)

    def derivative(self, x: Tensor) -> Tensor:
        """Return phi' as autograd takes it."""
        y, pull = torch.func.vjp(self.fn, x)[:2]
        return pull(torch.ones_like(y))[0]

    def value(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi(u) phi(v)]."""
        return self._sum(self.fn, cov, var1, var2)

    def slope(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[phi'(u) phi'(v)]."""
        return self._sum(self.derivative, cov, var1, var2)

    def radial(self, cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        """Return E[u phi'(u) v phi'(v)]."""
        return self._sum(lambda x: x * self.derivative(x), cov, var1, var2)

    def of_slope(self, weight: Callable[[Tensor], Tensor], var: Tensor, degree: int) -> Tensor:
        """Return the coefficients of weight(x / sd) phi'(x)."""
        if var.numel():
            self._judge(self.derivative, var)
        return super().of_slope(weight, var, degree)

    def mean(self, var: Tensor) -> Tensor:
        """Return E[phi(u)]."""
        self._judge(self.fn, var)
        return coefficients(self.fn, var, 0, self.kinks)[..., 0]

    def gain(self, var: Tensor) -> Tensor:
        """Return E[phi'(u)], phi taken to have no jumps."""
        self._judge(self.fn, var)
        return coefficients(self.derivative, var, 0, self.kinks)[..., 0]

    def square(self, var: Tensor) -> Tensor:
        """Return E[phi(u)^2]."""
        self._judge(self.fn, var)
        return coefficients(lambda x: self.fn(x) ** 2, var, 0, self.kinks)[..., 0]

    def hermite(self, degree: int, var: float | Tensor = 1.0) -> Tensor:
        """Return the coefficients."""
        self._judge(self.fn, torch.as_tensor(var, dtype=torch.float64))
        return super().hermite(degree, var)

    def _judge(self, f: Callable[[Tensor], Tensor], var: Tensor) -> None:
        """Refuse a function without a second moment; find its kinks; tell the error that they leave."""
        var = var.detach().double().clamp(min=0)
        scale = var.max().sqrt() if var.numel() else var.new_zeros(())
        if not scale > 0:
            return
        if not self.kinks:
            self._look(f, scale)
        if self.kinks and asked():
            few = torch.stack([scale, torch.where(var > 0, var, scale * scale).min().sqrt()]).square()
            grids = [split(few.sqrt(), self.kinks, order * fineness()) for order in (24, 48)]
            tell(apart(*(probes(f(few.sqrt()[:, None] * z), z, w) for z, w in grids)))

    def _look(self, f: Callable[[Tensor], Tensor], scale: Tensor) -> None:
        """Judge a function on the even grid; name its kinks if it has any."""
        nodes = grid(scale.device)

        def evaluate(z: Tensor) -> Tensor:
            return f(scale * z).detach()

        values = evaluate(nodes)
        try:
            error = judge(values, nodes, evaluate)
        except Uncontrolled as reason:
            raise NoRuleError(
                f"No second moment at a variance of {float(scale**2):.3g}: {reason}. "
                f"A dual is of a controlled function (Cappelletti 2019, Def. 2.1); a bounded one, or a clamp "
                f"in front of it, has one."
            ) from reason
        if max(error, halved(self.derivative(scale * nodes).detach(), nodes)) > SMOOTH:
            both = lambda z: [self.fn(scale * z).detach(), self.derivative(scale * z).detach()]  # noqa: E731
            places = kinks(both(nodes), nodes, both)
            if places is not None:
                self.kinks = tuple(float(scale * z) for z in places if z < nodes[-1])
            else:
                tell(error)

    def _sum(self, f: Callable[[Tensor], Tensor], cov: Tensor, var1: Tensor, var2: Tensor) -> Tensor:
        self._judge(f, torch.maximum(var1.max(), var2.max()) if var1.numel() and var2.numel() else cov)
        variances = [var1] if var2 is var1 else [var1, var2]
        masses = [self._masses(f, var) for var in variances]
        cap = self.cap * fineness()
        degree = 31  # odd, so that what is left goes into an even one and then an odd one
        while True:
            series = [coefficients(f, var.double(), degree, self.kinks) for var in variances]
            left = [m - _squares(a) for m, a in zip(masses, series, strict=True)]
            floors = [ROUNDING * m.sum(-1, keepdim=True) for m in masses]
            if degree >= cap or all(bool((x <= y).all()) for x, y in zip(left, floors, strict=True)):
                break
            degree = min(2 * degree + 1, cap | 1)
        a = [torch.cat([x, root(y - z)], -1) for x, y, z in zip(series, left, floors, strict=True)]
        rho = (cov / root(var1 * var2).clamp(min=torch.finfo(cov.dtype).tiny)).clamp(-1, 1)
        rests = [torch.where(x > y, x, 0.0).sum(-1) for x, y in zip(left, floors, strict=True)]
        whole = [m.sum(-1) for m in masses]
        tell_tail((rests[0], rests[-1]), (whole[0], whole[-1]), rho, degree, var1 == var2)
        return contract(a[0].to(cov.dtype), a[-1].to(cov.dtype), rho)

    def _masses(self, f: Callable[[Tensor], Tensor], var: Tensor) -> Tensor:
        """Return the squares of the even and the odd part of a function, expected, ``[*var.shape, 2]``."""
        kinks = {sign * k for k in self.kinks for sign in (1.0, -1.0)}
        parts = (lambda x: (f(x) + f(-x)) ** 2 / 4), (lambda x: (f(x) - f(-x)) ** 2 / 4)
        return torch.cat([coefficients(part, var.double(), 0, tuple(kinks)) for part in parts], -1)


def _squares(a: Tensor) -> Tensor:
    return torch.stack([a[..., ::2].square().sum(-1), a[..., 1::2].square().sum(-1)], -1)


def smooth(op: torch._ops.OpOverload, *args: float, **kwargs: float | str) -> Series:
    """Return the series of an ATen operation with its arguments."""
    return Series(lambda x: op(x, *args, **kwargs))


def _register(*ops: torch._ops.OpOverload) -> None:
    rule(*ops)(partial(smooth, ops[0]))


_register(aten.tanh.default, aten.tanh_.default)
_register(aten.sigmoid.default, aten.sigmoid_.default, aten.special_expit.default)
_register(aten.silu.default, aten.silu_.default)
_register(aten.mish.default, aten.mish_.default)
_register(aten.log_sigmoid.default)
_register(aten.atan.default, aten.atan_.default)


@rule(aten.softplus.default)
def softplus(beta: float = 1.0, threshold: float = 20.0) -> Dual:
    """Return the dual of log(1 + exp(beta u)) / beta, or of u itself where beta u > threshold."""
    if threshold >= 20:  # the jump there, exp(-20) / beta, is what torch saves in time, not what is meant
        return Series(lambda x: torch.logaddexp(x * beta, torch.zeros_like(x)) / beta)
    fn = partial(torch.nn.functional.softplus, beta=beta, threshold=threshold)
    return Series(fn, kinks=(threshold / beta,))
