"""Penalized convex problems in the space of a kernel, by Newton's method or L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from ntkit.compute.cg import conjugate_gradients
from ntkit.compute.cholesky import cholesky
from ntkit.compute.eigen import spectrum
from ntkit.machine.solving.losses import Loss

DENSE = 300  # unknowns up to which a Newton step is taken by Cholesky


class Blocks:
    """A kernel matrix with values ``[]``, ``[o]`` or ``[o, o]`` for two samples, acting on ``[n, o]``."""

    def __init__(self, gram: Tensor) -> None:
        self.gram = gram
        self.outputs = gram.shape[-1] if gram.ndim > 2 else None

    @property
    def size(self) -> float:
        """The mean of k(x, x), 1 where that is zero."""
        diagonal = torch.diagonal(self.gram).movedim(-1, 0)
        own = torch.diagonal(diagonal, dim1=-2, dim2=-1) if diagonal.ndim == 3 else diagonal
        return float(own.mean()) or 1.0

    def over(self, size: float) -> Blocks:
        """Return the matrix divided by a number."""
        return Blocks(self.gram / size)

    def __matmul__(self, c: Tensor) -> Tensor:
        if self.gram.ndim == 2:
            return self.gram @ c
        if self.gram.ndim == 3:
            return torch.einsum("nmo,mo->no", self.gram, c)
        return torch.einsum("nmop,mp->no", self.gram, c)

    def whole(self, o: int) -> Tensor:
        """Return the matrix on flattened ``[n o]``, the output fastest."""
        n, m = self.gram.shape[:2]
        if self.gram.ndim == 4:
            return self.gram.transpose(1, 2).reshape(n * o, m * o)
        eye = torch.eye(o, dtype=self.gram.dtype, device=self.gram.device)
        values = self.gram[..., None].expand(n, m, o) if self.gram.ndim == 2 else self.gram
        return torch.einsum("nmo,op->nomp", values, eye).reshape(n * o, m * o)


class Products:
    """The matrix of a kernel on a batch, acting on ``[n, o]`` through its operator, never formed."""

    def __init__(self, kernel: Any, x: np.ndarray, factor: float = 1.0) -> None:
        self.kernel, self.x, self.factor = kernel, x, factor
        self.operator, n = kernel.operator(x), len(x)
        outputs = self.operator.shape[0] // n
        self.outputs = None if outputs == 1 else outputs

    @property
    def size(self) -> float:
        """The mean of k(x, x), 1 where that is zero."""
        own = self.kernel.diag(self.x)
        own = torch.diagonal(own, dim1=-2, dim2=-1) if own.ndim == 3 else own
        return self.factor * float(own.double().mean()) or 1.0

    def over(self, size: float) -> Products:
        """Return the matrix divided by a number."""
        return Products(self.kernel, self.x, self.factor / size)

    def __matmul__(self, c: Tensor) -> Tensor:
        columns = c if self.outputs is None else c.reshape(-1, 1)
        return self.factor * (self.operator @ columns.to(self.operator.dtype)).to(c).reshape(c.shape)


@dataclass(frozen=True)
class Problem:
    """sum_n w_n l(f(x_n), y_n) + alpha / 2 |f|^2 with f = K c; its gradient is K r, r = w l' + alpha c."""

    kernel: Blocks | Products
    y: Tensor
    loss: Loss
    alpha: float
    weights: Tensor

    def value(self, c: Tensor, f: Tensor) -> float:
        """Return the objective."""
        penalty = self.alpha / 2 * (c * f).sum()
        return float((self.weights * self.loss.value(f, self.y)).sum() + penalty)

    def residual(self, c: Tensor, f: Tensor) -> Tensor:
        """Return r, zero at the optimum."""
        return self.weights[:, None] * self.loss.gradient(f, self.y) + self.alpha * c

    def root(self, f: Tensor) -> Tensor:
        """Return R ``[n, o, o]`` with R R^T the weighted Hessian of the loss."""
        hessian = self.weights[:, None, None] * self.loss.hessian(f, self.y)
        values, vectors = torch.linalg.eigh(hessian)
        return vectors * values.clamp_min(0).sqrt()[:, None, :]


@dataclass(frozen=True)
class Optimum:
    """Coefficients ``[n, o]``, the largest entry of r, the iterations."""

    c: Tensor
    gradient: float
    iterations: int


def newton(problem: Problem, tol: float, max_iter: int, start: Tensor | None = None) -> Optimum:
    """Return the optimum by Newton's method with line search, from zero or from a start.

        (H K + alpha) step = -r,    step = -(r - R (alpha + R^T K R)^-1 R^T K r) / alpha,    H = R R^T

    the inner system by Cholesky where it is small, else by conjugate gradients, which need products only.
    """
    kernel, alpha = problem.kernel, problem.alpha
    c = torch.zeros_like(problem.y) if start is None else start
    f = kernel @ c
    value, r = problem.value(c, f), problem.residual(c, f)
    iterations = 0
    while float(r.abs().max()) > tol and iterations < max_iter:
        root = problem.root(f)
        kr = kernel @ r
        # closer as the end comes near; its error enters the step divided by alpha
        tight = min(0.01, float(r.norm())) * min(1.0, alpha)
        inner = _inner(kernel, root, alpha, _turn(root.mT, kr), tight)
        step = -(r - _turn(root, inner)) / alpha
        f_step = kernel @ step
        slope = float((kr * step).sum())
        size, iterations = 1.0, iterations + 1
        while True:
            new_c, new_f = c + size * step, f + size * f_step
            new = problem.value(new_c, new_f)
            if new <= value + 1e-4 * size * slope + 1e-12 * abs(value) or size < 1e-10:
                break
            size /= 2
        c, f, value = new_c, kernel @ new_c, new
        r = problem.residual(c, f)
        if size < 1e-10:  # nothing is left to gain but rounding
            break
    return Optimum(c, float(r.abs().max()), iterations)


def lbfgs(problem: Problem, tol: float, max_iter: int) -> Optimum:
    """Return the optimum by L-BFGS over v, f = U sqrt(lambda) v, in which the penalty is alpha / 2 |v|^2.

    Its line search ends where the objective no longer shows a difference, at a gradient of about the root of
    the rounding; from there a step or two of `newton` lead to ``tol``.
    """
    assert isinstance(problem.kernel, Blocks)
    n, o = problem.y.shape
    scalar = problem.kernel.gram.ndim == 2
    whole = spectrum(problem.kernel.gram if scalar else problem.kernel.whole(o))
    scale = whole.values.sqrt()[:, None]
    shape = (n, o) if scalar else (n * o, 1)

    def function(v: Tensor) -> Tensor:
        return (whole.vectors @ (scale * v)).reshape(n, o)

    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        t = torch.as_tensor(v).to(scale).reshape(shape)
        f = function(t)
        gradient = problem.weights[:, None] * problem.loss.gradient(f, problem.y)
        value = (problem.weights * problem.loss.value(f, problem.y)).sum()
        value = value + problem.alpha / 2 * t.square().sum()
        slope = scale * (whole.vectors.T @ gradient.reshape(shape)) + problem.alpha * t
        return float(value), slope.cpu().numpy().ravel()

    start = torch.zeros(shape).numpy().ravel()
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter, "gtol": tol, "ftol": 0.0, "maxcor": 30}
    minimum = minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    f = function(torch.as_tensor(minimum.x).to(scale).reshape(shape))
    c = -problem.weights[:, None] * problem.loss.gradient(f, problem.y) / problem.alpha  # r = 0
    end = newton(problem, tol, max_iter, c)
    return Optimum(end.c, end.gradient, int(minimum.nit) + end.iterations)


def _turn(matrices: Tensor, c: Tensor) -> Tensor:
    return torch.einsum("nop,np->no", matrices, c)


def _inner(kernel: Blocks | Products, root: Tensor, alpha: float, b: Tensor, tol: float) -> Tensor:
    """Solve (alpha + R^T K R) x = b."""
    n, o = b.shape
    if n * o <= DENSE and isinstance(kernel, Blocks):
        r = torch.block_diag(*root) if o > 1 else root[:, 0, 0].diag()
        system = r.T @ kernel.whole(o) @ r
        factor = cholesky(system, alpha, "kernel matrix between the roots of the loss's Hessian")
        return factor.solve(b.reshape(-1, 1)).reshape(n, o)
    product = _Product(n * o, lambda v: _turn(root.mT, kernel @ _turn(root, v.reshape(n, o))).reshape(-1, 1))
    return conjugate_gradients(product, b.reshape(-1, 1), alpha, tol=tol).x.reshape(n, o)


@dataclass(frozen=True)
class _Product:
    """A matrix that conjugate gradients know only by its products."""

    n: int
    product: Callable[[Tensor], Tensor]

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.product(v)

    def diag(self) -> Tensor:
        raise NotImplementedError

    def columns(self, index: Tensor) -> Tensor:
        raise NotImplementedError
