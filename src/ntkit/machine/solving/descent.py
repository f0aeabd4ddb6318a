"""Training in function space: gradient flow and descent, in the eigenbasis or step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from ntkit.errors import BadValueError, NtkitError
from ntkit.machine.solving.losses import Loss

STIFF = 1000  # unknowns up to which the implicit method, whose steps solve a system of them, is taken


def flow_filter(values: Tensor, t: float, n: int) -> Tensor:
    """Return g = (1 - exp(-t lambda / n)) / lambda, t / n on the null space; 1 / lambda or 0 at t = inf."""
    positive = values > 0
    safe = torch.where(positive, values, 1.0)
    if t == float("inf"):
        return torch.where(positive, 1 / safe, 0.0)
    return torch.where(positive, -torch.expm1(-t / n * safe) / safe, t / n)


def descent_filter(values: Tensor, t: float, n: int, rate: float, momentum: float) -> Tensor:
    """Return g after t / rate steps of descent with momentum as PyTorch's SGD takes them.

        v <- momentum v + (1 - lambda c) / n,    c <- c + rate v

    an affine map of (c, v), whose power is taken by squaring; c is g.
    """
    if t == float("inf"):
        return flow_filter(values, t, n)
    lam = values.cpu().numpy() / n
    step = np.zeros((len(lam), 3, 3))
    step[:, 0, 0], step[:, 0, 1], step[:, 0, 2] = 1 - rate * lam, rate * momentum, rate / n
    step[:, 1, 0], step[:, 1, 1], step[:, 1, 2] = -lam, momentum, 1 / n
    step[:, 2, 2] = 1
    return torch.as_tensor(np.linalg.matrix_power(step, _steps(t, rate))[:, 0, 2]).to(values)


def _steps(t: float, rate: float) -> int:
    steps = round(t / rate)
    if abs(steps * rate - t) > 1e-6 * max(rate, t):
        raise BadValueError(f"t={t} is not a whole number of steps x learning_rate={rate}.")
    return steps


def integrate(gram: Tensor, y: Tensor, f0: Tensor, loss: Loss, times: Sequence[float]) -> Tensor:
    """Return the coefficients ``[T, n, o]`` of kernel gradient flow for any loss, at rising times.

        dc_n/dt = -l'(f(x_n), y_n) / n,    f = f0 + K c

    by an implicit method for small problems, an explicit one for large ones, to a relative 1e-8.
    """
    n, o = y.shape
    cpu = torch.device("cpu")
    size = float(gram.diagonal().mean()) or 1.0  # (s K, t / s) is the same problem, and is solved as such
    gram_, y_, f0_ = gram.to(cpu) / size, y.to(cpu), f0.to(cpu)

    def function(c: np.ndarray) -> Tensor:
        return f0_ + gram_ @ torch.as_tensor(c.reshape(n, o))

    def slope(t: float, c: np.ndarray) -> np.ndarray:
        return (-loss.gradient(function(c), y_) / n).numpy().ravel()

    def jacobian(t: float, c: np.ndarray) -> np.ndarray:
        hessian = loss.hessian(function(c), y_)  # [n, o, o]
        return (-torch.einsum("nop,nm->nomp", hessian, gram_).reshape(n * o, n * o) / n).numpy()

    options: Any = {"method": "BDF", "jac": jacobian} if n * o <= STIFF else {"method": "RK45"}
    scaled = [t * size for t in times]
    options |= {"t_eval": scaled, "rtol": 1e-8, "atol": 1e-10 / n}
    solution = solve_ivp(slope, (0.0, scaled[-1]), np.zeros(n * o), **options)
    if not solution.success:
        raise NtkitError(f"The gradient flow could not be integrated to t={times[-1]}: {solution.message}")
    return torch.as_tensor(solution.y.T.reshape(len(times), n, o) / size).to(gram)


def descend(
    gram: Tensor, y: Tensor, f0: Tensor, loss: Loss, times: Sequence[float], rate: float, momentum: float
) -> Tensor:
    """Return the coefficients ``[T, n, o]`` after t / rate explicit steps, at rising times."""
    c, v, done, coefficients = torch.zeros_like(y), torch.zeros_like(y), 0, []
    for t in times:
        steps = _steps(t, rate)
        for _ in range(steps - done):
            v = momentum * v - loss.gradient(f0 + gram @ c, y) / len(y)
            c = c + rate * v
        done = steps
        coefficients.append(c)
    return torch.stack(coefficients)
