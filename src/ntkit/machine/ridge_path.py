"""All penalties of kernel ridge from one eigendecomposition: errors, coefficients, the best one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from torch import Tensor

from ntkit.compute.eigen import Spectrum
from ntkit.errors import BadValueError
from ntkit.network import Floats

RANGE = (1e-10, 1e4)  # of the mean eigenvalue: where the best penalty is looked for


@dataclass(frozen=True)
class RidgePath:
    """Kernel ridge for many penalties: ``loo`` and ``gcv`` are mean squared errors ``[a]``.

    ``dual_coef`` are the coefficients ``[a, n]`` or ``[a, n, o]``, ``predict(X)`` the predictions
    ``[a, m]`` or ``[a, m, o]``. Made by `KernelRidge.path`.
    """

    alphas: Float[Floats, " a"]
    loo: Float[Floats, " a"]
    gcv: Float[Floats, " a"]
    dual_coef: Float[Floats, "a n *o"]
    apply: Callable[[ArrayLike, np.ndarray], np.ndarray]

    def predict(self, X: ArrayLike) -> Float[Floats, "a m *o"]:
        """Return the predictions of each penalty."""
        a, n = self.dual_coef.shape[:2]
        columns = np.moveaxis(self.dual_coef.reshape(a, n, -1), 0, 1).reshape(n, -1)
        out = self.apply(X, columns)
        return np.moveaxis(out.reshape(len(out), a, -1), 1, 0).reshape(a, len(out), *self.dual_coef.shape[2:])


def errors(whole: Spectrum, y: Tensor, alpha: float) -> tuple[Tensor, float, float]:
    """Return the coefficients for targets ``[n, o]``, the leave-one-out and the GCV error (means).

    loo = mean (c_n / G_nn)^2 and gcv = n |c|^2 / (tr G)^2 with G = (K + alpha)^-1, c = G y.
    """
    inverse = whole.inverse(alpha)
    c = whole.apply(inverse, y)
    diagonal = whole.vectors.square() @ inverse
    loo = float((c / diagonal[:, None]).square().mean())
    return c, loo, float(len(y) * c.square().sum() / y.shape[1] / diagonal.sum().square())


def best_alpha(whole: Spectrum, y: Tensor, score: str) -> float:
    """Return the penalty of least leave-one-out or GCV error: the best of a grid, refined."""
    scale = float(whole.values.mean())
    if scale == 0:
        raise BadValueError("The kernel matrix is zero: all penalties are alike. Give another kernel.")
    which = {"loo": 1, "gcv": 2}[score]

    def error(log: float) -> float:
        return float(errors(whole, y, scale * np.exp(log))[which])

    grid = np.linspace(np.log(max(RANGE[0], whole.floor / scale)), np.log(RANGE[1]), 57)
    values = np.array([error(log) for log in grid])
    # flat up to rounding (a constant target, an exact fit): the largest penalty that is as good
    best = int(np.flatnonzero(values <= values.min() * (1 + 1e-9) + 1e-300)[-1])
    if best in (0, len(grid) - 1):
        return float(scale * np.exp(grid[best]))
    bounds = (grid[best - 1], grid[best + 1])
    minimum: Any = minimize_scalar(error, bounds=bounds, method="bounded", options={"xatol": 1e-3})
    return float(scale * np.exp(minimum.x if minimum.fun <= values[best] else grid[best]))


def path_errors(whole: Spectrum, y: Tensor, alphas: np.ndarray) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return the errors ``[a]`` and coefficients ``[a, n, o]`` for many penalties."""
    if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas).all() and (alphas > 0).all()):
        raise BadValueError(f"alphas={alphas}; expected a list of numbers > 0.")
    rows = [errors(whole, y, float(alpha)) for alpha in alphas]
    loo, gcv = (np.array([f[i] for f in rows]) for i in (1, 2))
    return loo, gcv, torch.stack([f[0] for f in rows])
