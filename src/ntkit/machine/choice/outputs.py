"""The penalty of least leave-one-out error for kernels that stay as they are, with one value or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.eigen import Spectrum, spectrum
from ntkit.machine.choice.leave_one_out import Targets, best_penalty, grid, mean_eigenvalue
from ntkit.machine.choice.search import MOST, moved_to, part
from ntkit.machine.solving.newton import Blocks

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
        best = best_of_outputs(flat_spectrum(gram, machine.precision_), Targets(targets))
    return moved_to(n, best, len(index))


def flat_spectrum(gram: Tensor, precision: torch.dtype) -> Spectrum:
    """Return the spectrum of a kernel matrix ``[n, n, o]`` or ``[n, n, o, o]`` on flattened ``[n o]``."""
    return spectrum(Blocks(gram).whole(gram.shape[2]), precision)


def best_of_outputs(whole: Spectrum, targets: Targets) -> float:
    """Return the penalty of least leave-one-out error for outputs that a kernel couples."""
    alphas = mean_eigenvalue(whole) * np.exp(grid(whole, COUNT))
    errors = [float(block_residuals(whole, targets, float(a)).square().mean()) for a in alphas]
    return float(alphas[int(np.argmin(errors))])


def block_residuals(whole: Spectrum, targets: Targets, alpha: float) -> Tensor:
    """Return y_n - f_-n(x_n) ``[n, o]``, the means left out likewise.

    (G_nn)^-1 (c_n - (G 1)_n (m_-n - m)),    G = (K + alpha)^-1,  c = G (y - m),  blocks G_nn [o, o]
    """
    n, o = targets.y.shape
    inverse = whole.inverse(alpha)
    vectors = whole.vectors.reshape(n, o, n * o)
    c = whole.apply(inverse, targets.z.reshape(-1, 1)).reshape(n, o)
    if targets.centered and n > 1:
        sums = (vectors * inverse) @ vectors.sum(0).mT  # [n, o, o]
        c = c - (sums @ ((targets.mean - targets.y) / (n - 1))[..., None])[..., 0]
    blocks = (vectors * inverse) @ vectors.mT
    return torch.linalg.solve(blocks, c[..., None])[..., 0]
