"""All penalties of kernel ridge from one eigendecomposition: errors, coefficients, predictions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from ntkit.compute.eigen import Spectrum
from ntkit.errors import BadValueError
from ntkit.machine.choice.leave_one_out import Targets, error
from ntkit.network import Floats


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


def path_errors(
    whole: Spectrum, targets: Targets, alphas: np.ndarray
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Return the errors ``[a]`` and coefficients ``[a, n, o]`` for many penalties."""
    if alphas.ndim != 1 or not len(alphas) or not (np.isfinite(alphas).all() and (alphas > 0).all()):
        raise BadValueError(f"alphas={alphas}; expected a list of numbers > 0.")
    loo, gcv = (np.array([error(targets, whole, float(a), s) for a in alphas]) for s in ("loo", "gcv"))
    return loo, gcv, torch.stack([whole.apply(whole.inverse(float(a)), targets.z) for a in alphas])
