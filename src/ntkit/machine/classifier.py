"""Classification with a kernel: penalized cross entropy, or any convex loss of one-hot targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, column_or_1d
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from torch import Tensor

from ntkit.compute.plan import chunks, parse_memory
from ntkit.compute.tiled.kernel import TiledKernel
from ntkit.errors import BadValueError, nearest, one_of, positive, whole
from ntkit.machine.choice.leave_one_out import Targets
from ntkit.machine.choice.outputs import penalty_of
from ntkit.machine.classes.calibration import probabilities, slope_of
from ntkit.machine.classes.labels import class_weights, signs
from ntkit.machine.estimator import ROWS, KernelMachine, is_size, refusing
from ntkit.machine.flow import GradientFlow
from ntkit.machine.inputs.scaling import Scale
from ntkit.machine.kernels import KernelLike, as_kernel
from ntkit.machine.ridge import KernelRidge
from ntkit.machine.sessions import computing
from ntkit.machine.solving.losses import loss_of
from ntkit.machine.solving.newton import DENSE, Blocks, Problem, Products, lbfgs, newton
from ntkit.machine.stored.fits import fit_ridge, left_out_of, no_weights, times
from ntkit.machine.stored.system import How, TiledSystem
from ntkit.network import Floats, Values


class KernelClassifier(ClassifierMixin, KernelMachine):
    """Classification with a kernel: least squares of one-hot targets, or penalized cross entropy.

        f = argmin sum_n w_n l(f(x_n), y_n) + alpha |f|^2,    f(x) = m + sum_n K(x, x_n) c_n
        p = softmax(s f), the slope s of least log loss under leave-one-out

    By default scaling, kernel, penalty and slope are chosen by leave-one-out, in closed form.

    Parameters
    ----------
    kernel : optional
        As of `KernelRidge`. Kernels with values for outputs, ``[n, n, o, o]`` or ``[n, n, o]`` with o the
        number of classes, couple the outputs as they say; one number for two samples serves each output.
    loss : str or callable
        ``"squared"``, ridge on one-hot targets (for two classes on their signs) less their mean m;
        ``"cross_entropy"`` of softmax(f), for two classes of one f and its logistic function, with the
        penalty alpha / 2 |f|^2, m = 0 and s = 1; or a convex function of tensors ``(f, y) -> [n]``.
    alpha : float or "loo"
        The penalty, > 0 but for the squared loss, in units of the kernel. ``"loo"``: of least leave-one-out
        squared error; for other losses a quarter of it, which is the same near f = 0.
    depth, scale : optional
        As of `KernelRidge`.
    class_weight : dict, "balanced" or None
        Weights of the samples by class; ``"balanced"``: n / (classes x samples of the class).
    solver : {"auto", "newton", "lbfgs"}
        For losses other than the squared one; ``"auto"`` is Newton's method. ``solver_reason_`` says how its
        steps are solved for. The squared loss is solved as by `KernelRidge`.
    tol, max_iter
        The largest entry of w l' + alpha c, and the iterations (of each method), at which to end.
    early_stopping : bool
        Instead of the penalty, train by gradient flow until the loss on held-out samples is least, like
        `GradientFlow` with ``early_stopping="validation"``; ``t_`` is the time.
    validation_fraction, random_state
        As of `GradientFlow`; ``random_state`` draws the part of many samples on which is chosen, too.
    memory : int or str
        Bytes that may hold the kernel matrix; beyond, products with ``kernel.operator`` only are taken,
        where the kernel has one.
    n_jobs, verbose : int or None, bool
        The number of threads (None: as many as are free, -1: all), and whether a progress bar is shown.

    Attributes
    ----------
    classes_ : array [o]
        The classes.
    dual_coef_, intercept_ : array [n, o], array [o]
        The coefficients c and the mean m (o = 1 for two classes).
    slope_ : float
        The slope s; 1 / s is the temperature.
    alpha_ : float
        The penalty that was used.
    search_, scaling_, kernel_
        As of `KernelRidge`.
    gradient_norm_, n_iter_
        The largest entry of w l' + alpha c at the end, and the iterations.

    Raises
    ------
    NtkitError
        alpha <= 0, a kernel with values for another number of outputs than there are classes, NaN in it.

    Notes
    -----
    Several labels at once: y ``[n, labels]`` of zeros and ones; each label is a question of its own.

    References
    ----------
    Cappelletti (2019), sections 2.4-2.5 (Eq. 2.9, and 2.10 for kernels with values for outputs);
    Ravikumar (2024), section 5.1; Arora et al. (2020), the NTK on tables.

    Examples
    --------
    >>> import ntkit
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = ntkit.KernelClassifier().fit(X[::2], y[::2])
    >>> bool(model.score(X[1::2], y[1::2]) > 0.93), model.predict_proba(X[:1]).shape
    (True, (1, 3))
    """

    classes_: Values
    intercept_: Floats

    def __init__(
        self,
        kernel: KernelLike = "auto",
        loss: str | Callable[[Tensor, Tensor], Tensor] = "squared",
        *,
        alpha: float | str = "loo",
        depth: int | None = None,
        scale: Scale = "auto",
        class_weight: Mapping[object, float] | str | None = None,
        solver: Literal["auto", "newton", "lbfgs"] = "auto",
        tol: float = 1e-8,
        max_iter: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: int = 0,
        memory: int | str = "8GiB",
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.kernel, self.loss, self.alpha, self.solver, self.tol = kernel, loss, alpha, solver, tol
        self.depth, self.scale, self.class_weight = depth, scale, class_weight
        self.max_iter, self.early_stopping = max_iter, early_stopping
        self.validation_fraction, self.random_state, self.memory = validation_fraction, random_state, memory
        self.n_jobs, self.verbose = n_jobs, verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = self.loss == "squared"
        return tags

    @computing
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> KernelClassifier:
        """Find the coefficients, and choose what is to be chosen."""
        stored = self._stored(X, y, self.memory)
        if stored is not None:
            return self._fit_stored(*stored, sample_weight)
        x, y = self._take(X, y, multi_output=True)
        labels = self._labels(y)
        self._check()
        weights = self._weights(sample_weight, x)
        own = class_weights(self.class_weight, self.classes_, labels)
        weights = own if weights is None else weights if own is None else weights * own
        if weights is not None and not weights.any():
            raise BadValueError("All samples count nothing, by sample_weight and class_weight.")
        self.n_iter_, self.gradient_norm_, self.slope_ = 1, 0.0, 1.0
        self.solver_, self.solver_reason_ = "none", "one class only: there is nothing to learn"
        if len(self.classes_) == 1 and not self._several:
            self._settle(x, Targets(torch.zeros(len(x), 1).double()))
            self.dual_coef_, self.intercept_ = np.zeros((len(x), 1)), np.zeros(1)
            return self
        if self.loss == "squared" and not self.early_stopping and self._outputs(x) is None:
            self._least_squares(x, labels, weights)
        else:
            self._general(x, labels, weights)
        return self

    def decision_function(self, X: ArrayLike) -> Float[Floats, " m *o"]:
        """Return f, ``[m, o]``; for two classes ``[m]``, positive for the second class."""
        f = self._scores(X)
        if len(self.classes_) == 2 and not self._several:
            return f[:, 0] if f.shape[1] == 1 else f[:, 1] - f[:, 0]
        return f

    def predict(self, X: ArrayLike) -> Shaped[Values, " m *o"]:
        """Return the class of the largest f; for several labels whether each f is positive, ``[m, o]``."""
        f = self.decision_function(X)
        if self._several:
            return (f > 0).astype(int)
        if len(self.classes_) == 1:
            return np.repeat(self.classes_, len(f))
        return self.classes_[(f > 0).astype(int) if f.ndim == 1 else f.argmax(1)]

    def predict_proba(self, X: ArrayLike) -> Float[Floats, "m o"]:
        """Return the probability of each class, ``[m, classes]``, or of each label.

        softmax(s f), for two classes the logistic function of s f. Losses of one's own have none.
        """
        f = self._scores(X)
        if self.loss not in ("cross_entropy", "squared"):
            raise BadValueError("Only the losses 'cross_entropy' and 'squared' give probabilities.")
        if len(self.classes_) == 1 and not self._several:
            return np.ones((len(f), 1))
        p = probabilities(self.slope_ * f, f.shape[1] == 1 or self._several)
        return p if self._several or p.shape[1] > 1 else np.concatenate([1 - p, p], 1)

    def predict_log_proba(self, X: ArrayLike) -> Float[Floats, "m o"]:
        """Return the logarithm of the probability of each class, ``[m, classes]``, or of each label."""
        p = self.predict_proba(X)
        return np.log(p.clip(np.finfo(float).tiny))

    def _how(self) -> How:
        return How("auto", parse_memory(self.memory), self.tol, seed=self.random_state, verbose=self.verbose)

    def _fit_stored(self, system: TiledSystem, y: np.ndarray, weights: ArrayLike | None) -> KernelClassifier:
        """Fit by ridge on targets, from tiles."""
        labels = self._labels(y)
        self._check()
        no_weights(weights if weights is not None else self.class_weight)
        if self.loss != "squared" or self.early_stopping:
            raise BadValueError(
                f"{self.X_fit_} does not fit into memory={self.memory!r}, where only loss='squared' without "
                "early_stopping is solved; give these, more memory, or fewer samples."
            )
        target = self._ridge_targets(labels)
        ridge = KernelRidge("precomputed", self.alpha, random_state=self.random_state)
        index = fit_ridge(ridge, system, target, None if self._several else labels)
        for name in ("dual_coef_", "intercept_", "alpha_", "n_iter_"):
            setattr(self, name, getattr(ridge, name))
        self.solver_, self.solver_reason_ = ridge.solver_, f"ridge on targets: {ridge.solver_reason_}"
        self.gradient_norm_, self.slope_ = 0.0, 1.0
        if self.alpha_ and (len(self.classes_) > 1 or self._several):
            left = left_out_of(system, target, self.alpha_, index)
            truth = (target[index] > 0).astype(float)
            self.slope_ = slope_of(target[index] - left, truth, target.shape[1] == 1 or self._several, None)
        return self

    def _ridge_targets(self, labels: np.ndarray) -> np.ndarray:
        return (
            signs(labels) if len(self.classes_) == 2 or self._several else np.eye(len(self.classes_))[labels]
        )

    def _check(self) -> None:
        one_of("early_stopping", self.early_stopping, (True, False))
        positive("tol", self.tol)
        whole("max_iter", self.max_iter)
        one_of("solver", self.solver, ("auto", "newton", "lbfgs"))
        if not callable(self.loss):
            loss_of(self.loss)
        size = is_size(self.alpha) and (float(self.alpha) > 0 or self.loss == "squared")
        if not size and not (isinstance(self.alpha, str) and self.alpha == "loo"):
            raise BadValueError(
                f"alpha={self.alpha!r}; expected a number > 0, or 'loo': without a penalty classes that can "
                "be separated have no optimum (early_stopping=True does without)."
                f"{nearest(self.alpha, ('loo',))}"
            )

    def _labels(self, y: np.ndarray) -> np.ndarray:
        """Set the classes; return the number of each sample's class, or its labels ``[n, o]``."""
        with refusing("one class for each sample, or zeros and ones [n, labels]"):
            check_classification_targets(y)
            kind = type_of_target(y)
            self._several = kind == "multilabel-indicator"
            if self._several:
                self.classes_ = np.arange(y.shape[1])
                return y.astype(int)
            y = column_or_1d(y, warn=True)
        self.classes_, labels = np.unique(y, return_inverse=True)
        return labels

    def _outputs(self, x: np.ndarray) -> int | None:
        """Return how many outputs the kernel has values for, None for one number for two samples."""
        if self._precomputed:
            return x.shape[-1] if x.ndim > 2 else None
        kernel = None if self._named else as_kernel(self.kernel)
        kind = getattr(kernel, "outputs", None)
        return len(self.classes_) if isinstance(kind, str) and kind in ("full", "diagonal") else None

    def _least_squares(self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> None:
        """Fit by ridge on targets, and find the slope by leave-one-out."""
        two = len(self.classes_) == 2 or self._several
        target = self._ridge_targets(labels)
        names = ("kernel", "alpha", "depth", "scale", "random_state", "memory")
        ridge = KernelRidge(**{name: getattr(self, name) for name in names})
        ridge.columns_, ridge._sample_shape = self.columns_, self._sample_shape
        ridge.fit_checked(x, target, weights, None if self._several else labels)
        for name in ("kernel_", "X_fit_", "scaling_", "search_", "precision_", "dual_coef_", "alpha_"):
            setattr(self, name, getattr(ridge, name))
        self.intercept_, self.n_iter_ = ridge.intercept_, ridge.n_iter_
        self.solver_, self.solver_reason_ = ridge.solver_, f"ridge on targets: {ridge.solver_reason_}"
        if ridge.alpha_ == 0:  # the scores of the training samples are their targets
            return
        index, left, own = ridge.left_out(None if self._several else labels)
        truth = target[index] > 0
        self.slope_ = slope_of(target[index] - left, truth.astype(float), two, own)

    def _general(self, x: np.ndarray, labels: np.ndarray, weights: np.ndarray | None) -> None:
        """Fit by an iteration, or by gradient flow that stops early."""
        counted = np.arange(len(x)) if weights is None else np.flatnonzero(weights)
        y = torch.as_tensor(self._targets(labels, None)[counted])
        root = None if weights is None else torch.as_tensor(weights[counted] ** 0.5)
        given = float(self.alpha) if is_size(self.alpha) else None
        strata = None if self._several else labels[counted]
        found = self._settle(x, Targets(y, root, True), given, strata, counted)
        kernel = self._kernel_matrix(len(x))
        target = self._targets(labels, kernel.outputs)
        self.intercept_ = np.zeros(target.shape[1])
        if self.early_stopping:
            self._flow(kernel, target, weights)
            return
        if given is not None:
            self.alpha_ = given
        else:
            best = penalty_of(self, target, labels, weights) if found is None else found.alpha
            self.alpha_ = best if self.loss == "squared" else best / 4
        device = kernel.gram.device if isinstance(kernel, Blocks) else kernel.operator.device
        self._minimize(kernel, torch.as_tensor(target, device=device), weights)

    def _kernel_matrix(self, n: int) -> Blocks | Products:
        """Return the kernel matrix, formed where it fits into the budget or has no operator."""
        outputs = len(self.classes_) if getattr(self.kernel_, "outputs", None) == "full" else 1
        if hasattr(self.kernel_, "operator") and 16 * (n * outputs) ** 2 > parse_memory(self.memory):
            return Products(self.kernel_, self.X_fit_)
        return Blocks(self._gram(scalar=False))

    def _scores(self, X: ArrayLike) -> np.ndarray:
        """Return f ``[m, o]``, in blocks of rows."""
        queries = self._queries(X)
        if isinstance(queries, TiledKernel):
            return times(queries, self.dual_coef_) + self.intercept_
        per_row = len(self.X_fit_) * self.dual_coef_.shape[1] ** 2
        parts = []
        for s in chunks(len(queries), max(1, ROWS // per_row)):
            block = Blocks(self._block(queries[s], self.X_fit_, scalar=False))
            parts.append((block @ torch.as_tensor(self.dual_coef_).to(block.gram)).cpu().numpy())
        return np.concatenate(parts) + self.intercept_

    def _targets(self, labels: np.ndarray, outputs: int | None) -> np.ndarray:
        """Return one-hot targets, one column for two classes where kernel and loss allow it."""
        classes = len(self.classes_)
        if outputs not in (None, classes):
            raise BadValueError(
                f"The kernel has values for {outputs} outputs, there are {classes} classes; give a network "
                f"with {classes} outputs, or outputs='mean'."
            )
        if self._several:
            return signs(labels) if self.loss == "squared" else labels.astype(float)
        if classes == 2 and outputs is None and self.loss in ("cross_entropy", "squared"):
            return signs(labels) if self.loss == "squared" else labels[:, None].astype(float)
        return np.eye(classes)[labels]

    def _flow(self, kernel: Blocks | Products, target: np.ndarray, weights: np.ndarray | None) -> None:
        """Fit by gradient flow that stops early."""
        if not isinstance(kernel, Blocks):
            raise BadValueError(
                f"early_stopping needs the kernel matrix, which does not fit into memory={self.memory!r}; "
                "give more, or early_stopping=False."
            )
        if kernel.gram.ndim > 2 or weights is not None or self._several:
            raise BadValueError(
                "early_stopping takes kernels with one number for two samples, one class for a sample, and "
                "no sample weights."
            )
        flow = GradientFlow("precomputed", loss=self.loss, early_stopping="validation")
        flow.set_params(validation_fraction=self.validation_fraction, random_state=self.random_state)
        flow.fit(kernel.gram.to("cpu", self.precision_).numpy(), target)
        self.dual_coef_, self.t_ = flow.dual_coef_, flow.t_
        self.solver_, self.solver_reason_ = "flow", f"early stopping at t = {flow.t_:.3g}"

    def _minimize(self, kernel: Blocks | Products, target: Tensor, weights: np.ndarray | None) -> None:
        if self._several and self.loss != "squared":
            raise BadValueError(
                f"loss={self.loss!r} takes one class for a sample; several labels need 'squared'."
            )
        ones = torch.ones(len(target)) if weights is None else torch.as_tensor(weights)
        if self.solver == "lbfgs" and not isinstance(kernel, Blocks):
            raise BadValueError(
                f"solver='lbfgs' needs the kernel matrix, which does not fit into memory={self.memory!r}; "
                "give more, or solver='newton'."
            )
        size = kernel.size  # (s K, s alpha) is the same problem as (K, alpha), and is solved as such
        alpha = self.alpha_ / size
        problem = Problem(kernel.over(size), target, loss_of(self.loss), alpha, ones.to(target))
        self.solver_ = "newton" if self.solver == "auto" else self.solver
        inner = "Cholesky" if target.numel() <= DENSE else "conjugate gradients"
        if not isinstance(kernel, Blocks):
            inner = f"conjugate gradients on products, for the matrix does not fit into {self.memory}"
        self.solver_reason_ = f"{target.numel()} unknowns, steps by {inner}"
        if self.solver_ == "lbfgs":
            self.solver_reason_ = "asked for"
        optimum = (lbfgs if self.solver_ == "lbfgs" else newton)(problem, self.tol, self.max_iter)
        if optimum.gradient > 1e3 * self.tol:
            warnings.warn(
                f"The optimum was not reached: the gradient is {optimum.gradient:.1e} after "
                f"{optimum.iterations} iterations. Give a larger alpha or max_iter, or a model in float64.",
                ConvergenceWarning,
                stacklevel=3,
            )
        self.dual_coef_ = optimum.c.cpu().numpy() / size
        self.gradient_norm_, self.n_iter_ = optimum.gradient, max(1, optimum.iterations)
