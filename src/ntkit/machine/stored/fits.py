"""Estimators on a stored kernel matrix that is not to be held in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.eigen import spectrum
from ntkit.compute.out_of_core.source import TiledMatrix
from ntkit.compute.plan import chunks, parse_memory
from ntkit.compute.tiled.kernel import TiledKernel
from ntkit.errors import BadValueError
from ntkit.machine.choice.leave_one_out import Targets, best_penalty
from ntkit.machine.choice.search import PART, moved_to, part
from ntkit.machine.stored.system import How, TiledSystem

if TYPE_CHECKING:
    from ntkit.machine.ridge import KernelRidge

WHOLE = 24  # bytes of the dense solvers for an entry: the matrix, its copy with the ridge, the factor


def is_large(X: object, memory: int | str) -> bool:
    """Return whether X is a stored matrix that the dense solvers have no room for."""
    return isinstance(X, TiledKernel) and X.outputs == 1 and WHOLE * X.shape[0] ** 2 > parse_memory(memory)


def fit_ridge(
    model: KernelRidge, system: TiledSystem, y: np.ndarray, labels: np.ndarray | None = None
) -> np.ndarray:
    """Set what a fit of ridge on tiles finds; return the samples of which it saw the eigenvalues.

    The penalty of ``"loo"`` and ``"gcv"`` is chosen on 2,000 samples, as for many samples in memory.
    """
    targets = Targets(torch.as_tensor(y.reshape(system.n, -1)).double(), None, model.normalize_y)
    index = part(system.n, labels, model.random_state, min(PART, system.n))
    if isinstance(model.alpha, str):
        seen = spectrum(system.submatrix(index), system.tiled.dtype)
        units = targets.in_units() if model.normalize_y else targets
        best = best_penalty(units.at(torch.as_tensor(index)), seen, model.alpha)
        alpha = moved_to(system.n, best, len(index))
    else:
        alpha = float(model.alpha)
    solved = system.solve(targets.z, alpha)
    assert solved.residual is not None
    model.solver_, model.solver_reason_ = chosen_by(system)
    model.residual_, model.n_iter_ = float(solved.residual.max()), solved.iterations or 1
    model.alpha_ = alpha
    model.dual_coef_ = solved.coefficients.numpy().reshape(y.shape)
    model.intercept_ = targets.mean.numpy().reshape(y.shape[1:])
    return index


def chosen_by(system: TiledSystem) -> tuple[str, str]:
    """Return the solver that was taken last, and why, with the time that was expected."""
    assert system.way is not None
    return system.way.solver, str(system.way).partition(": ")[2]


def left_out_of(system: TiledSystem, y: np.ndarray, alpha: float, index: np.ndarray) -> np.ndarray:
    """Return leave-one-out errors of some samples, fitted on these alone with their share of the penalty."""
    seen = spectrum(system.submatrix(index), system.tiled.dtype)
    targets = Targets(torch.as_tensor(y[index].reshape(len(index), -1)).double(), None, True)
    alphas = seen.values.new_tensor([moved_to(len(index), alpha, system.n)])
    return targets.of(seen, alphas)[0].numpy()


def no_weights(weights: object) -> None:
    """Refuse sample weights, for which a stored matrix would have to be another."""
    if weights is not None:
        raise BadValueError(
            "A stored matrix is solved without weights of samples or classes, so that its tiles are used as "
            "they are; give none, or fit on fewer samples in memory."
        )


def submatrix(tiled: TiledKernel, index: np.ndarray) -> Tensor:
    """Return the kernel matrix of some samples, in float64."""
    return TiledMatrix(tiled, 0).submatrix(torch.as_tensor(index))


def times(cross: TiledKernel, coefficients: np.ndarray) -> np.ndarray:
    """Return k(queries, training samples) c, tile by tile."""
    columns = torch.as_tensor(coefficients.reshape(len(coefficients), -1))
    found = TiledMatrix(cross, 0) @ columns
    return found.numpy().reshape(len(found), *coefficients.shape[1:])


def variances(system: TiledSystem, cross: object, shift: float, most: int = 256) -> Tensor:
    """Return k(x, x) - k_*^T (K + shift)^-1 k_* of queries ``[m]``, by solutions for some at a time.

    Raises
    ------
    NtkitError
        The folder of the queries was opened without its kernel, so that k(x, x) is not known.
    """
    maker = cross._maker if isinstance(cross, TiledKernel) else None  # pyright: ignore[reportPrivateUsage]
    if not isinstance(cross, TiledKernel) or maker is None:
        raise BadValueError(
            f"A variance needs k(x, x) of the queries, got {cross!r:.80} without a kernel; give "
            "ntkit.TiledKernel(kernel, queries, x, folder=...)."
        )
    parts = []
    for rows in chunks(cross.shape[0], most):
        own = cross.kernel.diag(maker.x1.take(rows)).double()
        k = torch.from_numpy(cross.array[rows]).double().T.contiguous()
        parts.append(own - (k * system.solve(k, shift).coefficients).sum(0))
    return torch.cat(parts)


def how_of(model: object, tol: float = 1e-8) -> How:
    """Return what an estimator's options say of solutions."""
    return How(
        solver=getattr(model, "solver", "auto"),
        memory=parse_memory(getattr(model, "memory", "8GiB")),
        tol=getattr(model, "tol", tol),
        max_iter=getattr(model, "max_iter", None),
        rank=getattr(model, "rank", None),
        seed=getattr(model, "random_state", 0),
        verbose=getattr(model, "verbose", False),
    )
