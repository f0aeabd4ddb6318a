"""The penalty of least leave-one-out error for kernels that stay as they are, with one value or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.eigen import Spectrum, spectrum
from ntkit.machine.choice.leave_one_out import Targets, best_penalty, grid, mean_eigenvalue
from ntkit.machine.choice.search import MOST, moved_to, part

if TYPE_CHECKING:
    from ntkit.machine.estimator import KernelMachine

COUNT = 29  # penalties that are tried


def penalty_of(
    machine: KernelMachine, y: np.ndarray, labels: np.ndarray | None, weights: np.ndarray | None
) -> float:
    """Return the penalty of least leave-one-out squared error for a machine's kernel.

    ``y`` ``[n, o]``: the targets. Many samples are looked at in part.
    """
    counted = np.arange(len(y)) if weights is None else np.flatnonzero(weights)
    n, unknowns = len(counted), y.shape[1] if machine.has_outputs else 1
    most = MOST // unknowns if n * unknowns > MOST else n
    strata = None if labels is None or labels.ndim > 1 else labels[counted]
    index = counted[part(n, strata, 0, max(2, most))]
    gram = machine.matrix_of(index)
    targets = torch.as_tensor(y[index]).to(gram)
    if gram.ndim == 2:
        root = None if weights is None else torch.as_tensor(weights[index] ** 0.5).to(gram)
        system = gram if root is None else gram * root[:, None] * root
        best = best_penalty(Targets(targets, root, True), spectrum(system, machine.precision_))
    else:
        best = best_of_outputs(gram, targets, machine.precision_)
    return moved_to(n, best, len(index))


def best_of_outputs(gram: Tensor, y: Tensor, precision: torch.dtype) -> float:
    """Return the penalty of least leave-one-out error for a kernel matrix ``[n, n, o]`` or ``[n, n, o, o]``.

    y_n - f_-n(x_n) = (G_nn)^-1 c_n,    G = (K + alpha)^-1,  c = G y,  blocks G_nn [o, o]
    """
    n, o = y.shape
    full = torch.diag_embed(gram) if gram.ndim == 3 else gram
    whole = spectrum(full.transpose(1, 2).reshape(n * o, n * o), precision)
    alphas = mean_eigenvalue(whole) * np.exp(grid(whole, COUNT))
    errors = [float(block_residuals(whole, y, float(a)).square().mean()) for a in alphas]
    return float(alphas[int(np.argmin(errors))])


def block_residuals(whole: Spectrum, y: Tensor, alpha: float) -> Tensor:
    """Return y_n - f_-n(x_n) ``[n, o]`` by the spectrum of the flattened kernel matrix."""
    n, o = y.shape
    inverse = whole.inverse(alpha)
    c = whole.apply(inverse, y.reshape(-1, 1)).reshape(n, o)
    vectors = whole.vectors.reshape(n, o, n * o)
    blocks = (vectors * inverse) @ vectors.mT
    return torch.linalg.solve(blocks, c[..., None])[..., 0]
