"""A network as its Taylor polynomial in the weights, as a module that can be trained."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import factorial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from ntkit.compute.scripted import jvp
from ntkit.errors import BadTypeError, BadValueError, NotPerSampleError, NtkitError
from ntkit.finite.written_out import WrittenOut
from ntkit.module_checks import refuse_stateful
from ntkit.network import call_with, copy_of, module_buffers
from ntkit.on_loan import lent, untouched


class TaylorNetwork(nn.Module):
    """The Taylor polynomial of a network in its weights, around the weights at its construction.

        f_m(x; w) = sum_{k=0}^m (1/k!) d^k/dt^k f(x; w_0 + t (w - w_0)) at t = 0

    ``network`` holds the weights w that are trained (they start at w_0), ``origin`` the fixed w_0.
    """

    __call__: Callable[..., Tensor]  # nn.Module's

    def __init__(self, model: nn.Module, order: int) -> None:
        super().__init__()
        self.network = copy_of(model)
        self.order = order
        self._reverse = False
        self._proved = False
        self._names = [name for name, _ in self.network.named_parameters()]
        self.origin = nn.ParameterList(
            nn.Parameter(p.detach().clone(), requires_grad=False) for p in self.network.parameters()
        )

    def forward(self, *args: Any, **kwargs: object) -> Tensor:
        """Return the polynomial at the present weights."""
        start = dict(zip(self._names, self.origin, strict=True))
        step = {k: w - start[k] for k, w in self.network.named_parameters()}

        def along(t: Tensor) -> Tensor:
            weights = {k: w + t * step[k] for k, w in start.items()}
            buffers = module_buffers(self.network)
            inputs, named = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
            return call_with(self.network, {**weights, **buffers}, inputs, named)

        zero = next(iter(start.values())).new_zeros(())
        with _differentiable():
            total = along(zero)
            derivative = along
            for k in range(1, self.order + 1):
                previous, (derivative, value) = derivative, self._derivative(derivative, zero)
                if not self._proved and any(bool((d != 0).any()) for d in step.values()):
                    if k == 1:
                        self._prove_first(value, step, args, kwargs)
                    else:
                        self._prove(previous, value)
                    self._proved = k == self.order
                total = total + value / factorial(k)
        return total

    def _derivative(self, function: Along, at: Tensor) -> tuple[Along, Tensor]:
        """Return d/dt of a function of t, and its value: forward mode, or if missing reverse mode twice."""

        def forward(t: Tensor) -> Tensor:
            return jvp(function, (t,), (torch.ones_like(t),))[1]

        def reverse(t: Tensor) -> Tensor:
            y, pull = vjp(function, t)[:2]
            push = vjp(lambda u: pull(u)[0], torch.zeros_like(y))[1]
            return push(torch.ones_like(t))[0]

        for way in (reverse,) if self._reverse else (forward, reverse):
            try:
                if way is reverse and self.order > 1:  # torch has second derivatives that are silently wrong
                    raise NotImplementedError("no forward-mode derivative")
                value = way(at)
                self._reverse = way is reverse
                return way, value
            except (NotImplementedError, RuntimeError) as error:
                missing = error
        raise NtkitError(
            f"The network has an operation without the derivatives that its Taylor polynomial needs: "
            f"{missing} Write the operation out in plain torch, or give a custom autograd.Function the "
            f"staticmethods setup_context and jvp."
        )

    def _prove_first(self, value: Tensor, step: dict[str, Tensor], args: tuple, kwargs: Any) -> None:
        """Compare the first derivative with autograd through the network itself, at its origin."""
        try:
            refuse_stateful(self.network)
        except NotPerSampleError:  # it draws at random, or from the batch: two passes need not agree
            return
        value = value.detach()
        seed = torch.Generator().manual_seed(0)
        u = torch.randn(value.shape, generator=seed, dtype=torch.float64).to(value)
        inputs, named = pytree.tree_map_only(Tensor, lambda t: t.detach().clone(), (args, kwargs))
        origin = dict(zip(self._names, (w.detach() for w in self.origin), strict=True))
        with torch.enable_grad(), untouched(self.network), lent(self.network, origin):
            leaves = {k: p for k, p in self.network.named_parameters() if p.requires_grad}
            total = (self.network(*inputs, **named) * u).sum()
            try:
                grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            except NotImplementedError:  # a function with a forward derivative only
                return
        moved = sum((g * step[k].detach()).sum() for k, g in zip(leaves, grads, strict=True) if g is not None)
        size = value.norm() * u.norm()
        if not (moved - (value * u).sum()).abs() <= 1e4 * torch.finfo(value.dtype).eps * size:
            raise NtkitError(
                "The derivative of this network as a function of its weights is not that of the module "
                "itself: a backward pass of its own may run a module again. Write that part in plain torch."
            )

    def _prove(self, previous: Along, value: Tensor) -> None:
        """Compare a higher derivative with finite differences: torch has fused ones that are wrong."""
        with torch.no_grad():
            h = torch.finfo(value.dtype).eps ** 0.25
            ahead, behind = (previous(value.new_tensor(t)) for t in (h, -h))
            error = ((ahead - behind) / (2 * h) - value).norm()
            noise = torch.finfo(value.dtype).eps * ahead.norm() / h
        if not error <= 0.05 * value.norm() + 10 * noise:
            raise NtkitError(
                f"A higher derivative of the network is wrong in torch: it differs from finite differences "
                f"by {(error / value.norm()).item():.0%}. Write fused operations (norms, attention) out in "
                f"plain torch, or linearize only."
            )


Along = Callable[[Tensor], Tensor]


@contextmanager
def _differentiable() -> Iterator[None]:
    """Turn off fused attention, which has no derivatives beyond the first."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), WrittenOut():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


def taylor(model: nn.Module, order: int = 2) -> TaylorNetwork:
    """Return a network's Taylor polynomial in its weights, as a module that can be trained.

        f_m(x; w) = sum_{k=0}^m (1/k!) D^k f(x; w_0) [w - w_0]^k

    Parameters
    ----------
    model : torch.nn.Module
        The network; it is copied, and its present weights are w_0. Its training flags stay.
    order : int
        The degree m: 1 is the linearized network, 2 the quadratic one.

    Raises
    ------
    NtkitError
        If the model is not a module, or the order not a whole number from 0 up.

    References
    ----------
    Giancola (2023), section VI.1; Bai and Lee, "Beyond linearization" (2020).

    Examples
    --------
    >>> import torch, ntkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> quadratic = ntkit.taylor(model, order=2)
    >>> x = torch.randn(3, 2)
    >>> torch.allclose(quadratic(x), model(x))
    True
    """
    if not isinstance(model, nn.Module):
        raise BadTypeError(f"Expected a torch.nn.Module, got {type(model).__name__}.")
    if not isinstance(order, int) or isinstance(order, bool) or order < 0:
        raise BadValueError(f"order={order!r}; expected a whole number from 0 up (1 linearizes).")
    return TaylorNetwork(model, order)


def linearize(model: nn.Module) -> TaylorNetwork:
    """Return the linearized network f(x; w_0) + J(x) (w - w_0), as a module that can be trained.

    Its tangent kernel is that of ``model`` at w_0, wherever its own training goes: gradient descent on
    it is kernel gradient descent with that kernel. ``linearized.network`` holds the trained weights.

    References
    ----------
    Giancola (2023), section IV.1; Lee et al., "Wide neural networks of any depth evolve as linear
    models" (2019); Chizat, Oyallon, Bach (2019).

    Examples
    --------
    >>> import torch, ntkit
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    >>> lazy = ntkit.linearize(model)
    >>> optimizer = torch.optim.SGD(lazy.parameters(), lr=0.1)
    >>> lazy(torch.randn(3, 2)).sum().backward(); optimizer.step()
    """
    return taylor(model, 1)
