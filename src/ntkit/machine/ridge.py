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
from ntkit.compute.plan import chunks, format_bytes, parse_memory
from ntkit.errors import BadValueError, nearest, one_of, positive, whole
from ntkit.machine.choice.copies import merged
from ntkit.machine.choice.leave_one_out import Targets, best_penalty
from ntkit.machine.choice.outputs import best_of_outputs, block_residuals, flat_spectrum
from ntkit.machine.choice.search import MOST, Chosen, moved_to, part
from ntkit.machine.conformal import jackknife_plus, left_out_predictions, probability
from ntkit.machine.estimator import (
    ROWS,
    FactoredMachine,
    as_numbers,
    checked,
    is_size,
    refusing,
)
from ntkit.machine.inputs.scaling import Scale
from ntkit.machine.kernels import KernelLike
from ntkit.machine.ridge_path import RidgePath, path_errors
from ntkit.machine.sessions import computing
from ntkit.machine.solving.solve import SOLVERS, Settings, Solved, choose, solve
from ntkit.machine.stored.fits import fit_ridge, no_weights
from ntkit.machine.stored.system import TiledSystem
from ntkit.machine.unfitted import check_fitted
from ntkit.network import Floats, Pair


class KernelRidge(MultiOutputMixin, RegressorMixin, FactoredMachine):
    """Kernel ridge regression: least squares in the space of a kernel, with a penalty.

        f = argmin sum_n w_n |y_n - m - f(x_n)|^2 + alpha |f|^2,    f(x) = sum_n c_n k(x, x_n)
        (K + alpha W^-1) c = y - m

    with the mean m of the targets. Scaling, kernel and penalty are chosen by leave-one-out, in closed form.

    Parameters
    ----------
    kernel : optional
        ``"auto"``: the NTK of an infinitely wide ReLU network, its depth and sigma_b chosen by the
        leave-one-out error. ``"ntk"`` (the same), ``"nngp"``, ``"rbf"``, ``"laplace"``: kernels of vectors
        whose scales are chosen likewise. ``"precomputed"``; a kernel of ntkit, scikit-learn or GPyTorch; a
        limit, for its NTK; a function ``k(X1, X2)`` of NumPy arrays. None: the NTK of depth 3 with sigma_b
        = 0.5 (`ReLUKernel`), inputs as given.
    alpha : float, "loo" or "gcv"
        The penalty, in units of the kernel (not divided by n). 0 is the interpolator of least norm.
        ``"loo"`` and ``"gcv"`` choose it by the leave-one-out or the generalized cross-validation error. Of
        more than 2,500 samples they look at 2,000, and the penalty grows with the root of n.
    depth : int, optional
        The number of hidden layers of ``"ntk"`` and ``"nngp"``; None: between 1 and 5, chosen.
    scale : {"auto", "standardize", "unit", "rank", None}
        Columns standardized, rows of equal norm, columns by the normal scores of their ranks (`Scaling`), or
        inputs as given. ``"auto"``: for a kernel by name the one of least leave-one-out error, rows of equal
        norm where it is a twentieth smaller; for any other kernel inputs as given.
    normalize_y : bool
        Whether the mean of the targets is subtracted, and outputs count by their variances in choices; else
        m = 0.
    solver : {"auto", "cholesky", "eigen", "cg", "nystrom"}
        ``"cg"`` and ``"nystrom"`` do not form the matrix where the kernel has an ``operator``. What
        ``"auto"`` chose, and why, is in ``solver_`` and ``solver_reason_``.
    tol, max_iter, rank, random_state
        Of ``"cg"`` (relative residual, iterations), of its preconditioner and ``"nystrom"`` (columns of the
        kernel; None: 10 sqrt(n)), and of the columns' draw.
    memory : int or str
        Bytes that may hold the matrix and its factor; ``"auto"`` goes to ``"cg"`` beyond, and on a stored
        matrix (`TiledKernel`) to what is done first: ``"cg"`` on tiles, or a Cholesky factor in place or on
        disk, beside the tiles (``verbose`` tells the time expected before it starts).
    n_jobs, verbose : int or None, bool
        The number of threads (None: as many as are free, -1: all), and whether a progress bar is shown.

    Attributes
    ----------
    dual_coef_, intercept_ : array [n] or [n, o], array [] or [o]
        The coefficients c, and the mean m.
    alpha_ : float
        The penalty that was used.
    search_, scaling_, kernel_
        What was compared (print it), the scaling and the kernel that were taken; ``X_fit_`` are the training
        samples scaled.
    jitter_, condition_, min_eigenvalue_ : float
        What Cholesky had to add to the diagonal (a `JitterWarning` says so), the condition number of what
        was solved, and the kernel matrix's smallest eigenvalue (NaN for the iterative solvers). The two are
        computed when they are asked for, from the factor, which stays in the estimator for that.
    residual_, n_iter_
        The largest true relative residual of ``"cg"``, and its iterations (1 for the direct solvers).

    Raises
    ------
    NtkitError
        A kernel matrix that is not positive definite with its alpha, NaN in it, one with values for another
        number of outputs than the targets have, a solver or alpha that is not known.

    Notes
    -----
    Kernels with values for outputs, ``[n, n, o, o]`` or ``[n, n, o]``, couple the outputs as they say.

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

    intercept_: Floats

    def __init__(
        self,
        kernel: KernelLike = "auto",
        alpha: float | str = "loo",
        *,
        depth: int | None = None,
        scale: Scale = "auto",
        normalize_y: bool = True,
        solver: str = "auto",
        tol: float = 1e-8,
        max_iter: int | None = None,
        rank: int | None = None,
        random_state: int = 0,
        memory: int | str = "8GiB",
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.kernel, self.alpha, self.solver, self.tol, self.max_iter = kernel, alpha, solver, tol, max_iter
        self.depth, self.scale, self.normalize_y = depth, scale, normalize_y
        self.rank, self.random_state, self.memory = rank, random_state, memory
        self.n_jobs, self.verbose = n_jobs, verbose

    @computing
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> KernelRidge:
        """Solve for the coefficients, and choose what is to be chosen."""
        stored = self._stored(X, y, self.memory)
        if stored is not None:
            self._check()
            return self._fit_stored(stored[0], as_numbers("y", stored[1]), sample_weight)
        x, y = self._take(X, y, multi_output=True, y_numeric=True)
        self._check()
        return self.fit_checked(x, np.array(as_numbers("y", y)), self._weights(sample_weight, x))

    def _fit_stored(self, system: TiledSystem, y: np.ndarray, sample_weight: ArrayLike | None) -> KernelRidge:
        no_weights(sample_weight)
        self._kept, self._same, self._factor = np.arange(system.n), None, None
        fit_ridge(self, system, y)
        return self

    def _check(self) -> None:
        if not (isinstance(self.alpha, str) and self.alpha in ("loo", "gcv")) and not is_size(self.alpha):
            near = nearest(self.alpha, ("loo", "gcv"))
            raise BadValueError(f"alpha={self.alpha!r}; expected a number >= 0, 'loo' or 'gcv'.{near}")
        positive("tol", self.tol)
        for name, number in (("max_iter", self.max_iter), ("rank", self.rank)):
            whole(name, 1 if number is None else number)
        with refusing("a whole number as random_state"):
            np.random.default_rng(self.random_state)
        one_of("normalize_y", self.normalize_y, (True, False))
        one_of("solver", self.solver, SOLVERS)

    def fit_checked(
        self, x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, labels: np.ndarray | None = None
    ) -> KernelRidge:
        """Fit checked samples; ``labels`` are classes, whose shares a part of many samples keeps."""
        self._same = None
        coupled = getattr(self.kernel, "outputs", None) in ("full", "diagonal")
        coupled |= self._precomputed and x.ndim > 2
        if len(x) <= MOST and not coupled:
            weights, self._same = merged(x, y, weights)
        self._kept = np.arange(len(x)) if weights is None else np.flatnonzero(weights)
        labels = None if labels is None else labels[self._kept]
        rows = torch.as_tensor(y.reshape(len(x), -1)[self._kept])
        root = None if weights is None else torch.as_tensor(weights[self._kept] ** 0.5)
        self._targets = Targets(rows, root, self.normalize_y)
        budget = parse_memory(self.memory)
        given = float(self.alpha) if is_size(self.alpha) else None
        found = self._settle(x, self._units(), given, labels, self._kept)
        if self.has_outputs:
            return self._fitted_together(y)
        alpha, seen = self._penalty(found, labels)
        if seen is not None and self.solver in ("auto", "eigen"):
            self.solver_, self.solver_reason_ = "eigen", "what was compared has left all eigenvalues"
            self._move(seen.values)
            factor = Shifted(seen, alpha)
            solved = Solved(factor.solve(self._targets.z), factor)
        else:
            self.solver_, self.solver_reason_ = choose(
                self.solver, len(self._kept), budget, self._reason(), hasattr(self.kernel_, "operator")
            )
            solved = self._solved_anew(alpha, weights is not None, budget)
        self.alpha_, self._solved, self._factor = alpha, solved, solved.factor
        self.residual_ = None if solved.residual is None else float(solved.residual.max())
        self.n_iter_ = solved.iterations or 1
        self.dual_coef_ = self._spread(solved.coefficients).reshape(y.shape)
        self.intercept_ = self._targets.mean.cpu().numpy().reshape(y.shape[1:])
        return self

    def _fitted_together(self, y: np.ndarray) -> KernelRidge:
        """Fit outputs that the kernel couples."""
        t, n = self._targets, len(self.X_fit_)
        gram = self.matrix_of(np.arange(n))
        if gram.ndim < 3 or t.root is not None or gram.shape[2] != t.y.shape[1] or self.alpha == "gcv":
            raise BadValueError(
                f"The kernel has values for {gram.shape[2] if gram.ndim > 2 else 1} outputs; expected "
                f"targets with as many, got {t.y.shape[1]}, no sample weights, and alpha a number or 'loo'."
            )
        self._together = flat_spectrum(gram, self.precision_)
        self._move(gram)
        self.alpha_ = (
            float(self.alpha) if is_size(self.alpha) else best_of_outputs(self._together, self._targets)
        )
        flat = self._together.apply(self._together.inverse(self.alpha_), self._targets.z.reshape(-1, 1))
        self._factor = Shifted(self._together, self.alpha_)
        self._solved = Solved(flat.reshape(t.y.shape), self._factor)
        self.solver_, self.solver_reason_ = (
            "eigen",
            f"{flat.numel()} unknowns, outputs that the kernel couples",
        )
        self.residual_, self.n_iter_ = None, 1
        self.dual_coef_ = self._solved.coefficients.cpu().numpy().reshape(y.shape)
        self.intercept_ = self._targets.mean.cpu().numpy().reshape(y.shape[1:])
        return self

    def _apart(self) -> None:
        """Refuse a kernel with several values, for which there is no such number."""
        if self.has_outputs:
            raise BadValueError(
                "The kernel couples the outputs; this takes one number for two samples: outputs='mean'."
            )

    def _penalty(self, found: Chosen | None, labels: np.ndarray | None) -> tuple[float, Spectrum | None]:
        """Return the penalty, and the spectrum of the system where one was made to find it."""
        seen = None if found is None else found.whole
        if is_size(self.alpha):
            return float(self.alpha), seen
        if found is not None and self.alpha == "loo":
            return found.alpha, seen
        n = len(self._kept)
        if n <= MOST or self.solver == "eigen":
            seen = spectrum(self._system(), self.precision_) if seen is None else seen
            self._move(seen.values)
            return best_penalty(self._units(), seen, str(self.alpha)), seen
        index = part(n, labels, self.random_state)
        system = self._system(index)
        self._move(system)
        units = self._units().at(torch.as_tensor(index, device=system.device))
        best = best_penalty(units, spectrum(system, self.precision_), str(self.alpha))
        return moved_to(n, best, len(index)), None

    def _solved_anew(self, alpha: float, weighted: bool, budget: int) -> Solved:
        dense = None
        if weighted or self._precomputed or self.solver_ in ("cholesky", "eigen"):
            dense = self._system()
        matrix = Dense(dense) if dense is not None else self._matrix(budget if self.solver_ == "cg" else 0)
        self._move(matrix.diag())
        how = Settings(self.solver_, self.tol, self.max_iter, self.rank, self.random_state)
        return solve(matrix, dense, self._targets.z, alpha, how, self.precision_)

    def _move(self, like: Tensor) -> None:
        """Bring the targets to where the kernel computes."""
        self._targets = self._targets.to(like.device)

    def predict(self, X: ArrayLike) -> Float[Floats, " m *o"]:
        """Return f at queries, ``[m]`` or ``[m, o]`` as the targets were."""
        return self._apply(self._queries(X), self.dual_coef_) + self.intercept_

    @computing
    def predict_interval(self, X: ArrayLike, coverage: float = 0.95) -> Pair:
        """Return the bounds between which a new target lies with a probability, each ``[m]`` or ``[m, o]``.

        The jackknife+ (`jackknife_plus`) in closed form, nothing is fitted again. It takes no law of the
        noise for granted, only that samples could change places, and that scaling, kernel and penalty, which
        stay, do not hang on one sample. Infinite for fewer than coverage / (1 - coverage) samples.
        """
        level, x = probability(coverage), self._queries(X)
        self._apart()
        factor = self._factor or Shifted(self._spectrum(), self.alpha_)
        t = self._targets
        residuals = torch.as_tensor(self._left_out().reshape(len(t.y), -1)).to(t.y)
        train = self.X_fit_[self._kept]
        bounds = []
        for s in chunks(len(x), max(1, ROWS // 16 // t.y.numel())):
            cross = self._block(x[s], None if self._precomputed else train)
            cross = cross[:, torch.as_tensor(self._kept)] if self._precomputed else cross
            cross = cross if t.root is None else cross * t.root
            prediction = cross @ self._solved.coefficients + t.mean
            left = left_out_predictions(t, prediction, factor.solve(cross.T.contiguous()).T, residuals)
            bounds.append(jackknife_plus(left.cpu().numpy(), residuals.cpu().numpy(), level))
        shape = len(x), *self.dual_coef_.shape[1:]
        low, high = (np.concatenate(side).reshape(shape) for side in zip(*bounds, strict=True))
        return low, high

    def leave_one_out(self) -> Float[Floats, " n *o"]:
        """Return y_n - f(x_n) for f fitted without sample n, in closed form: c_n / (K + alpha)^-1_nn.

        With the mean of the targets left out likewise, and with all copies of the sample, if the table holds
        it more than once. Shaped as the targets; samples of weight zero are left out. Scaling, kernel and
        penalty stay what they are.
        """
        check_fitted(self)
        errors = self._left_out()
        return errors if self._same is None else errors[self._same]

    def _left_out(self) -> Float[Floats, " n *o"]:
        """Return the errors of the records that are left, each left out with its copies."""
        if self.has_outputs:
            errors = block_residuals(self._together, self._targets, self.alpha_)
            return errors.cpu().numpy().reshape(self.dual_coef_.shape)
        diagonal = self._inverse_diagonal()
        c, t = self._solved.coefficients, self._targets
        constant = torch.ones_like(diagonal)
        if t.centered:
            ones = torch.ones_like(t.y[:, :1]) if t.root is None else t.root[:, None]
            constant = (self._factor or Shifted(self._spectrum(), self.alpha_)).solve(ones)[:, 0]
        errors = t.residuals(c, constant.to(c), diagonal.to(c))
        return errors.cpu().numpy().reshape(len(errors), *self.dual_coef_.shape[1:])

    def left_out(self, labels: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return samples, all or a part of many, their leave-one-out errors ``[k, o]``, and their weights.

        ``labels`` ``[n]`` are classes, whose shares a part keeps.
        """
        n, root = len(self._kept), self._targets.root
        weights = None if root is None else root.square().cpu().numpy()
        if n <= MOST:
            return self._kept, self._left_out().reshape(n, -1), weights
        index = part(n, None if labels is None else labels[self._kept], self.random_state)
        seen = spectrum(self._system(index), self.precision_)
        targets = self._targets.at(torch.as_tensor(index, device=seen.values.device))
        errors = targets.of(seen, seen.values.new_tensor([moved_to(len(index), self.alpha_, n)]))[0]
        return self._kept[index], errors.cpu().numpy(), None if weights is None else weights[index]

    def gcv(self) -> float:
        """Return the generalized cross-validation error n |r|^2 / (n - tr H)^2, a mean over outputs."""
        check_fitted(self)
        self._apart()
        c = self._solved.coefficients
        return float(len(c) * c.square().sum() / c.shape[1] / self._inverse_diagonal().sum().square())

    def path(self, alphas: ArrayLike) -> RidgePath:
        """Return errors, coefficients and predictions for many penalties, from one eigendecomposition."""
        check_fitted(self)
        self._apart()
        alphas = as_numbers("alphas", alphas)
        loo, gcv, c = path_errors(self._spectrum(), self._targets, alphas)
        spread = np.stack([self._spread(column) for column in c])
        spread = spread.reshape(len(alphas), *self.dual_coef_.shape)
        means = np.tile(np.atleast_1d(self.intercept_), len(alphas))
        return RidgePath(alphas, loo, gcv, spread, lambda X, c: self._apply(self._queries(X), c) + means)

    def _reason(self) -> str:
        """Return why all eigenvalues are wanted, if they are."""
        return "no ridge, so that a null space has to stay out" if self.alpha == 0 else ""

    def _units(self) -> Targets:
        return self._targets.in_units() if self.normalize_y else self._targets

    def _system(self, index: np.ndarray | None = None) -> Tensor:
        """Return the kernel matrix of the samples that count (or of some of them), times their roots."""
        kept = self._kept if index is None else self._kept[index]
        if index is None and len(kept) == len(self.X_fit_):
            gram = self._gram()
        elif self._precomputed:
            gram = checked(torch.as_tensor(self.X_fit_[np.ix_(kept, kept)]))
        else:
            gram = self._block(self.X_fit_[kept], None)
        root = self._targets.root
        if root is None:
            return gram
        root = (root if index is None else root[torch.as_tensor(index, device=root.device)]).to(gram)
        return gram * root[:, None] * root

    def _spectrum(self) -> Spectrum:
        factor = self._factor
        if isinstance(factor, Shifted):
            return factor.whole
        need = 24 * len(self._kept) ** 2
        if need > parse_memory(self.memory):
            raise BadValueError(
                f"This needs all eigenvalues of {len(self._kept)} samples, {format_bytes(need)} of "
                f"memory={self.memory!r}; give more, or fewer samples."
            )
        return spectrum(self._system(), self.precision_)

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
        if self._targets.root is not None:
            solution = solution * self._targets.root[:, None].to(solution)
        coefficients = np.zeros((len(self.X_fit_), solution.shape[1]))
        coefficients[self._kept] = solution.cpu().numpy()
        return coefficients
