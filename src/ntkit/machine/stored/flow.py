"""Gradient flow on a stored kernel matrix: by its spectrum and polynomials, at the end by solution."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.eigen import leading
from ntkit.compute.out_of_core.functions import matrix_functions
from ntkit.machine.solving.trajectory import Trajectory
from ntkit.machine.stored.system import TiledSystem

EXACT = 1e-12  # of the largest value of a filter


def flow_coefficients(system: TiledSystem, trajectory: Trajectory, rest: Tensor, times: np.ndarray) -> Tensor:
    """Return the coefficients ``[T, n, o]`` of training on ``rest`` = y - f_0 (squared loss).

    c_t = K^-1 (I - exp(-t K / n)) (y - f_0)      and its like for steps; c_inf = K^-1 (y - f_0)
    """
    out = torch.zeros(len(times), *rest.shape, dtype=torch.float64)
    ended = ~np.isfinite(times)
    if ended.any():
        out[torch.as_tensor(ended)] = system.solve(rest, 0.0).coefficients
    at = np.flatnonzero(~ended)
    if len(at):
        filters = [_filter(trajectory, float(times[i]), system.n) for i in at]
        out[torch.as_tensor(at)] = matrix_functions(system.matrix, filters, rest, EXACT)
    return out


def _filter(trajectory: Trajectory, t: float, n: int):
    return lambda values: trajectory.filter(values, t, n)


def largest_eigenvalue(system: TiledSystem) -> float:
    """Return the largest eigenvalue of the stored matrix, by Lanczos."""
    return float(leading(system.matrix, 1)[0][0])
