"""The dual of a function named by a string, a torch function, a module, or a function of your own."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from ntkit.errors import BadTypeError, BadValueError, nearest
from ntkit.infinite.duals.dual import Dual, find
from ntkit.infinite.duals.homogeneous import Homogeneous
from ntkit.infinite.duals.smooth import Series


def dual(fn: str | Callable[[Tensor], Tensor]) -> Dual:
    """Return the dual of a function phi: its expectations under two correlated Gaussians.

    ``dual(phi)(cov, var1, var2)`` is the pair

        E[phi(u) phi(v)],  E[phi'(u) phi'(v)]      (u, v) ~ N(0, [[var1, cov], [cov, var2]])

    of tensors, with the shape to which the three arguments broadcast; a layer of infinite width maps its
    covariance to the first, and its tangent kernel is multiplied by the second (3 Prop. III.1.2, Thm.
    III.1.4). The units are those of phi and phi': no factor of a parameterization is in them. Where phi
    jumps (sign), phi' is autograd's, which does not see the jump.

    Functions with a formula, and those with kinks (ELU, Hardtanh), are exact to 1e-13. Smooth ones (tanh,
    SiLU, any of your own) are Hermite series (Daniely et al. 2016; 3 Lemma III.3.1), good to 1e-10 up to
    variances of about ten (tanh: four). Kinks and jumps of a function of your own are found by bisection,
    up to eight of them. ``error`` is the largest relative error of the last call, of
    sqrt(E[phi(u)^2] E[phi(v)^2]) for the first and that of phi' for the second: zero of formulas, measured
    of all others, and more than the true one.

    Parameters
    ----------
    fn
        The name of a function in ``torch`` or ``torch.nn.functional``, such a function, an instance of
        ``nn.Module`` (``nn.LeakyReLU(0.1)``), or any function of your own that maps a tensor element by
        element and that autograd can differentiate.

    Raises
    ------
    NtkitError
        for a name that torch does not have, a function that is not element by element, ``nn.PReLU`` with
        a slope per channel; and, from the call, for arguments that are not covariances.
    NoRuleError
        from the call, for a function without a second moment: it grows as fast as the Gaussian density
        falls, has a pole, or is not defined everywhere (Cappelletti 2019, Def. 2.1).

    >>> import ntkit
    >>> value, slope = ntkit.dual("relu")(0.5, 1.0, 1.0)
    >>> round(value.item(), 4), round(slope.item(), 4)
    (0.3045, 0.3333)
    >>> ntkit.dual(lambda x: x + x**3)(0.5, 1.0, 1.0)[0].item()  # 16 rho + 6 rho^3
    8.749...
    """
    if isinstance(fn, str):
        fn = _named(fn)
    if isinstance(fn, nn.PReLU):
        if fn.weight.numel() != 1:
            raise BadValueError(
                f"nn.PReLU has {fn.weight.numel()} slopes, one per channel: a different function in each has "
                f"no single dual. Use nn.PReLU() with one slope, or nn.LeakyReLU."
            )
        return Homogeneous(1, fn.weight.item())
    if not callable(fn):
        raise BadTypeError(f"dual takes a function, a module or a name, not {type(fn).__name__}.")
    _check_elementwise(fn)
    return _known(fn) or Series(fn)


def _named(name: str) -> Callable[[Tensor], Tensor]:
    if name == "identity":
        return nn.Identity()
    for room in (torch, nn.functional):
        if callable(function := getattr(room, name, None)):
            return cast(Callable[[Tensor], Tensor], function)
    near = nearest(name, [known for known in (*dir(nn.functional), *dir(torch)) if known.islower()])
    raise BadValueError(
        f"torch and torch.nn.functional have no function {name!r}; give the function itself.{near}"
    )


_PROBE = (-2.31, -0.74, -0.12, 0.05, 0.61, 1.87)


def _check_elementwise(fn: Callable[[Tensor], Tensor]) -> None:
    x = torch.tensor(_PROBE, dtype=torch.float64)
    try:
        y, part, table = fn(x.clone()), fn(x[1::2].clone()), fn(x.reshape(2, 3).clone())
    except Exception as error:
        raise BadValueError(f"The function does not take a float64 tensor of shape [6]: {error}") from error
    same = isinstance(y, Tensor) and y.shape == x.shape and y.is_floating_point()
    if not same or not (_close(y[1::2], part) and _close(y, table.reshape(-1))):
        gave = list(y.shape) if isinstance(y, Tensor) else f"a {type(y).__name__}"
        raise BadValueError(
            f"A dual is of a function of one variable, applied element by element, the same at each call; "
            f"this one mixes entries, changes the shape, or is random. It made {gave} of a tensor [6]."
        )


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-6, atol=1e-9)


def _known(fn: Callable[[Tensor], Tensor]) -> Dual | None:
    """Return the dual from the table if the function is one operation of ATen."""
    try:
        traced = make_fx(lambda x: fn(x), pre_dispatch=True)(torch.tensor(_PROBE, dtype=torch.float64))
    except RuntimeError:  # torch's: what cannot be traced is not one operation
        return None
    nodes = [node for node in traced.graph.nodes if node.op != "output"]
    if len(nodes) == 1:
        return Homogeneous(1, 1)
    if len(nodes) != 2 or nodes[1].op != "call_function" or nodes[1].args[:1] != (nodes[0],):
        return None
    return find(nodes[1].target, nodes[1].args[1:], nodes[1].kwargs)
