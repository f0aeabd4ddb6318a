"""Kernel ridge regression, with its whole path of penalties from one eigendecomposition."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from torch import Tensor

from ntkit.compute.eigen import Shifted, Spectrum, spectrum
from ntkit.compute.matrix import Dense
from ntkit.compute.plan import parse_memory
from ntkit.compute.threads import fitting_threads
from ntkit.errors import BadValueError, nearest, positive, whole
from ntkit.machine.estimator import FactoredMachine, as_numbers, check_fitted, is_size, refusing
from ntkit.machine.kernels import KernelLike
from ntkit.machine.ridge_path import RidgePath, best_alpha, path_errors
from ntkit.machine.solving.solve import Settings, Solved, choose, solve
from ntkit.network import Floats


class KernelRidge(MultiOutputMixin, RegressorMixin, FactoredMachine):
    """Kernel ridge regression: least squares in the space of a kernel, with a penalty.

        f = argmin sum_n w_n |y_n - f(x_n)|^2 + alpha |f|^2,    f(x) = sum_n c_n k(x, x_n)
        (K + alpha W^-1) c = y

    Parameters
    ----------
    kernel : optional
        None: the NTK of an infinitely wide ReLU network of depth 3 with sigma_b = 0.5 (`ReLUKernel`);
        ``"precomputed"``; a kernel of ntkit, scikit-learn or GPyTorch; a limit, for its NTK; a function
        ``k(X1, X2)`` of NumPy arrays.
    alpha : float, "loo" or "gcv"
        The penalty, in units of the kernel (not divided by n). 0 is the interpolator of least norm.
        ``"loo"`` and ``"gcv"`` choose it by the leave-one-out or the generalized cross-validation error.
    solver : {"auto", "cholesky", "eigen", "cg", "nystrom"}
        ``"cg"`` and ``"nystrom"`` do not form the matrix where the kernel has an ``operator``. What
        ``"auto"`` chose, and why, is in ``solver_`` and ``solver_reason_``.
    tol, max_iter, rank, random_state
        Of ``"cg"`` (relative residual, iterations), of its preconditioner and ``"nystrom"`` (columns of the
        kernel; None: 10 sqrt(n)), and of the columns' draw.
    memory : int or str
        Bytes that may hold the matrix and its factor; ``"auto"`` goes to ``"cg"`` beyond.

    Attributes
    ----------
    dual_coef_ : array [n] or [n, o]
        The coefficients c.
    alpha_ : float
        The penalty that was used.
    jitter_, condition_, min_eigenvalue_ : float
        What Cholesky had to add to the diagonal (a `JitterWarning` says so), the condition number of what
        was solved, and the kernel matrix's smallest eigenvalue (NaN for the iterative solvers). The two are
        computed when they are asked for, from the factor, which stays in the estimator for that.
    residual_, n_iter_
        The largest true relative residual of ``"cg"``, and its iterations (1 for the direct solvers).

    Raises
    ------
    NtkitError
        A kernel matrix that is not positive definite with its alpha, NaN in it, one with several numbers for
        two samples, a solver or alpha that is not known.

    References
    ----------
    Cappelletti (2019), Eq. 2.8-2.9; Ravikumar (2024), section 1. Leave-one-out: Wahba (1990), section 4.2.

    Examples
    --------
    >>> import numpy as np, ntkit
    >>> X = np.linspace(-1, 1, 20)[:, None]
    >>> model = ntkit.KernelRidge(alpha="loo").fit(X, np.sin(3 * X[:, 0]))
    >>> bool(abs(model.predict([[0.2]])[0] - np.sin(0.6)) < 0.01), model.solver_
    (True, 'eigen')
    """

    def __init__(
        self,
        kernel: KernelLike = None,
        alpha: float | str = 1.0,
        *,
        solver: str = "auto",
        tol: float = 1e-8,
        max_iter: int | None = None,
        rank: int | None = None,
        random_state: int = 0,
        memory: int | str = "8GiB",
    ) -> None:
        self.kernel, self.alpha, self.solver, self.tol, self.max_iter = kernel, alpha, solver, tol, max_iter
        self.rank, self.random_state, self.memory = rank, random_state, memory

    @fitting_threads()
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> KernelRidge:
        """Solve for the coefficients."""
        x, y = self._take(X, y, multi_output=True, y_numeric=True)
        chosen = isinstance(self.alpha, str) and self.alpha in ("loo", "gcv")
        if not chosen and not is_size(self.alpha):
            near = nearest(self.alpha, ("loo", "gcv"))
            raise BadValueError(f"alpha={self.alpha!r}; expected a number >= 0, 'loo' or 'gcv'.{near}")
        positive("tol", self.tol)
        for name, number in (("max_iter", self.max_iter), ("rank", self.rank)):
            whole(name, 1 if number is None else number)
        with refusing("a whole number as random_state"):
            np.random.default_rng(self.random_state)
        weights = self._weights(sample_weight, x)
        self._kept = np.arange(len(x)) if weights is None else np.flatnonzero(weights)
        self._root = None if weights is None else torch.as_tensor(weights[self._kept] ** 0.5)
        budget = parse_memory(self.memory)
        self.solver_, self.solver_reason_ = choose(self.solver, len(self._kept), budget, self._reason())
        if chosen and self.solver_ != "eigen":
            raise BadValueError(f"alpha={self.alpha!r} needs all eigenvalues; use solver='eigen'.")
        dense = None
        if weights is not None or self._precomputed or self.solver_ in ("cholesky", "eigen"):
            dense = self._system()
        matrix = Dense(dense) if dense is not None else self._matrix()
        y = np.array(as_numbers("y", y))
        self._targets = torch.as_tensor(y.reshape(len(x), -1)[self._kept]).to(matrix.diag().device)
        if self._root is not None:
            self._targets = self._targets * self._root[:, None].to(self._targets)
        if chosen and dense is not None:
            self.alpha_, solved = self._choose(dense)
        else:
            self.alpha_ = float(self.alpha)
            how = Settings(self.solver_, self.tol, self.max_iter, self.rank, self.random_state)
            solved = solve(matrix, dense, self._targets, self.alpha_, how, self.precision_)
        self._solved, self._factor = solved, solved.factor
        self.residual_ = None if solved.residual is None else float(solved.residual.max())
        self.n_iter_ = solved.iterations or 1
        self.dual_coef_ = self._spread(solved.coefficients).reshape(y.shape)
        return self

    def predict(self, X: ArrayLike) -> Float[Floats, " m *o"]:
        """Return f at queries, ``[m]`` or ``[m, o]`` as the targets were."""
        return self._apply(self._queries(X), self.dual_coef_)

    def leave_one_out(self) -> Float[Floats, " n *o"]:
        """Return y_n - f(x_n) for f fitted without sample n, in closed form: c_n / (K + alpha)^-1_nn.

        Shaped as the targets; samples of weight zero are left out.
        """
        check_fitted(self)
        inverse = self._inverse_diagonal()
        if self._root is not None:  # both c and G belong to targets times the root of the weight
            inverse = inverse * self._root.to(inverse)
        errors = self._solved.coefficients / inverse[:, None]
        return errors.cpu().numpy().reshape(len(errors), *self.dual_coef_.shape[1:])

    def gcv(self) -> float:
        """Return the generalized cross-validation error n |r|^2 / (n - tr H)^2, a mean over outputs."""
        check_fitted(self)
        c = self._solved.coefficients
        return float(len(c) * c.square().sum() / c.shape[1] / self._inverse_diagonal().sum().square())

    def path(self, alphas: ArrayLike) -> RidgePath:
        """Return errors, coefficients and predictions for many penalties, from one eigendecomposition."""
        check_fitted(self)
        alphas = as_numbers("alphas", alphas)
        loo, gcv, c = path_errors(self._spectrum(), self._targets, alphas)
        spread = np.stack([self._spread(column) for column in c])
        spread = spread.reshape(len(alphas), *self.dual_coef_.shape)
        return RidgePath(alphas, loo, gcv, spread, lambda X, columns: self._apply(self._queries(X), columns))

    def _reason(self) -> str:
        """Return why all eigenvalues are wanted, if they are."""
        if self.alpha == 0:
            return "no ridge, so that a null space has to stay out"
        return "many penalties are compared" if self.alpha in ("loo", "gcv") else ""

    def _choose(self, dense: Tensor) -> tuple[float, Solved]:
        whole = spectrum(dense, self.precision_)
        factor = Shifted(whole, best_alpha(whole, self._targets, str(self.alpha)))
        return factor.shift, Solved(factor.solve(self._targets), factor)

    def _system(self) -> Tensor:
        """Return the kernel matrix of the samples that count, times the roots of their weights."""
        gram = self._gram()
        if self._root is None:
            return gram
        counted = torch.as_tensor(self._kept, device=gram.device)
        root = self._root.to(gram)
        return gram[counted][:, counted] * root[:, None] * root

    def _spectrum(self) -> Spectrum:
        factor = self._factor
        return factor.whole if isinstance(factor, Shifted) else spectrum(self._system(), self.precision_)

    def _inverse_diagonal(self) -> Tensor:
        factor = self._factor or Shifted(self._spectrum(), self.alpha_)
        if isinstance(factor, Shifted) and factor.shift == 0 and float(factor.whole.values[0]) == 0:
            raise BadValueError(
                "Leave-one-out and GCV errors at alpha=0 need a kernel matrix of full rank, this one is "
                "singular; give alpha > 0."
            )
        return factor.inverse_diagonal()

    def _spread(self, solution: Tensor) -> np.ndarray:
        """Return coefficients of all samples from the solution of those that count."""
        if self._root is not None:
            solution = solution * self._root[:, None].to(solution)
        coefficients = np.zeros((len(self.X_fit_), solution.shape[1]))
        coefficients[self._kept] = solution.cpu().numpy()
        return coefficients
