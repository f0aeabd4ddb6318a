"""Classification with a kernel: penalized cross entropy, or any convex loss of one-hot targets."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import check_classification_targets
from torch import Tensor

from ntkit.compute.plan import chunks, parse_memory
from ntkit.compute.threads import fitting_threads
from ntkit.errors import BadValueError, one_of, positive, whole
from ntkit.machine.estimator import ROWS, KernelMachine, is_size, refusing
from ntkit.machine.flow import GradientFlow
from ntkit.machine.kernels import KernelLike
from ntkit.machine.ridge import KernelRidge
from ntkit.machine.solving.losses import loss_of, probabilities
from ntkit.machine.solving.newton import DENSE, Blocks, Problem, Products, lbfgs, newton
from ntkit.network import Floats, Values


class KernelClassifier(ClassifierMixin, KernelMachine):
    """Classification with a kernel, by penalized cross entropy.

        f = argmin sum_n w_n l(f(x_n), y_n) + alpha / 2 |f|^2,    f(x) = sum_n K(x, x_n) c_n

    with y one-hot and l the cross entropy of softmax(f); for two classes one f and its logistic function.

    Parameters
    ----------
    kernel : optional
        As of `KernelRidge`. Kernels with values for outputs, ``[n, n, o, o]`` or ``[n, n, o]`` with o the
        number of classes, couple the outputs as they say; one number for two samples serves each output.
    loss : str or callable
        ``"cross_entropy"``; ``"squared"``, ridge on one-hot targets, the fast choice (``alpha`` is then as in
        `KernelRidge`, ``"loo"`` too); or a convex function of tensors ``(f, y) -> [n]``.
    alpha : float
        The penalty, > 0, in units of the kernel.
    solver : {"auto", "newton", "lbfgs"}
        ``"auto"`` is Newton's method; ``solver_reason_`` says how its steps are solved for.
    tol, max_iter
        The largest entry of w l' + alpha c, and the iterations (of each method), at which to end.
    early_stopping : bool
        Instead of the penalty, train by gradient flow until the loss on held-out samples is least, like
        `GradientFlow` with ``early_stopping="validation"``; ``t_`` is the time.
    validation_fraction, random_state
        As of `GradientFlow`.
    memory : int or str
        Bytes that may hold the kernel matrix; beyond, Newton's steps take products with
        ``kernel.operator`` only, where the kernel has one.

    Attributes
    ----------
    classes_ : array [o]
        The classes.
    dual_coef_ : array [n, o]
        The coefficients c (o = 1 for two classes).
    gradient_norm_, n_iter_
        The largest entry of w l' + alpha c at the end, and the iterations.

    Raises
    ------
    NtkitError
        alpha <= 0, a kernel with values for another number of outputs than there are classes, NaN in it.

    References
    ----------
    Cappelletti (2019), sections 2.4-2.5 (Eq. 2.9, and 2.10 for kernels with values for outputs);
    Ravikumar (2024), section 5.1.

    Examples
    --------
    >>> import ntkit
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> model = ntkit.KernelClassifier().fit(X[::2], y[::2])
    >>> bool(model.score(X[1::2], y[1::2]) > 0.93), model.predict_proba(X[:1]).shape
    (True, (1, 3))
    """

    def __init__(
        self,
        kernel: KernelLike = None,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "cross_entropy",
        *,
        alpha: float | str = 0.3,
        solver: Literal["auto", "newton", "lbfgs"] = "auto",
        tol: float = 1e-8,
        max_iter: int = 100,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        random_state: int = 0,
        memory: int | str = "8GiB",
    ) -> None:
        self.kernel, self.loss, self.alpha, self.solver, self.tol = kernel, loss, alpha, solver, tol
        self.max_iter, self.early_stopping = max_iter, early_stopping
        self.validation_fraction, self.random_state, self.memory = validation_fraction, random_state, memory

    @fitting_threads()
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> KernelClassifier:
        """Find the coefficients."""
        x, y = self._take(X, y)
        with refusing("one class for each sample"):
            check_classification_targets(y)
        one_of("early_stopping", self.early_stopping, (True, False))
        positive("tol", self.tol)
        whole("max_iter", self.max_iter)
        one_of("solver", self.solver, ("auto", "newton", "lbfgs"))
        self.classes_: Values
        self.classes_, labels = np.unique(y, return_inverse=True)
        weights = self._weights(sample_weight, x)
        self.n_iter_, self.gradient_norm_ = 1, 0.0
        self.solver_, self.solver_reason_ = "none", "one class only: there is nothing to learn"
        if len(self.classes_) == 1:
            self.dual_coef_ = np.zeros((len(x), 1))
            return self
        kernel = self._kernel_matrix(len(x))
        target = self._targets(labels, kernel.outputs)
        if self.early_stopping or (self.loss == "squared" and kernel.outputs is None):
            self._compose(kernel, target, weights)
        else:
            device = kernel.gram.device if isinstance(kernel, Blocks) else kernel.operator.device
            self._minimize(kernel, torch.as_tensor(target, device=device), weights)
        return self

    def decision_function(self, X: ArrayLike) -> Float[Floats, " m *o"]:
        """Return f, ``[m, o]``; for two classes ``[m]``, positive for the second class."""
        f = self._scores(X)
        if len(self.classes_) == 2:
            return f[:, 0] if f.shape[1] == 1 else f[:, 1] - f[:, 0]
        return f

    def predict(self, X: ArrayLike) -> Shaped[Values, " m"]:
        """Return the class of the largest f."""
        f = self.decision_function(X)
        if len(self.classes_) == 1:
            return np.repeat(self.classes_, len(f))
        return self.classes_[(f > 0).astype(int) if f.ndim == 1 else f.argmax(1)]

    def predict_proba(self, X: ArrayLike) -> Float[Floats, "m o"]:
        """Return the probability of each class, ``[m, classes]``.

        softmax(f) for the cross entropy; for the squared loss f itself, which estimates a mean of one-hot
        targets, clipped to [0, 1] and scaled to sum to one. Other losses have none.
        """
        f = self._scores(X)
        if len(self.classes_) == 1:
            return np.ones((len(f), 1))
        if self.loss == "cross_entropy":
            p = probabilities(torch.as_tensor(f)).numpy()
            return np.concatenate([1 - p, p], 1) if p.shape[1] == 1 else p
        if self.loss != "squared":
            raise BadValueError("Only the losses 'cross_entropy' and 'squared' give probabilities.")
        p = np.concatenate([1 - f, 1 + f], 1) / 2 if f.shape[1] == 1 else f
        p = p.clip(0, 1)
        total = p.sum(1, keepdims=True)
        return np.where(total > 0, p / np.where(total > 0, total, 1), 1 / p.shape[1])

    def _kernel_matrix(self, n: int) -> Blocks | Products:
        """Return the kernel matrix, formed where it fits into the budget or has no operator."""
        outputs = len(self.classes_) if getattr(self.kernel_, "outputs", None) == "full" else 1
        if hasattr(self.kernel_, "operator") and 16 * (n * outputs) ** 2 > parse_memory(self.memory):
            return Products(self.kernel_, self.X_fit_)
        return Blocks(self._gram(scalar=False))

    def _scores(self, X: ArrayLike) -> np.ndarray:
        """Return f ``[m, o]``, in blocks of rows."""
        queries = self._queries(X)
        per_row = len(self.X_fit_) * self.dual_coef_.shape[1] ** 2
        parts = []
        for s in chunks(len(queries), max(1, ROWS // per_row)):
            block = Blocks(self._block(queries[s], self.X_fit_, scalar=False))
            parts.append((block @ torch.as_tensor(self.dual_coef_).to(block.gram)).cpu().numpy())
        return np.concatenate(parts)

    def _targets(self, labels: np.ndarray, outputs: int | None) -> np.ndarray:
        """Return one-hot targets, one column for two classes where kernel and loss allow it."""
        classes = len(self.classes_)
        if outputs not in (None, classes):
            raise BadValueError(
                f"The kernel has values for {outputs} outputs, there are {classes} classes; give a network "
                f"with {classes} outputs, or outputs='mean'."
            )
        if classes == 2 and outputs is None and self.loss in ("cross_entropy", "squared"):
            y = labels[:, None].astype(float)
            return y if self.loss == "cross_entropy" else 2 * y - 1
        return np.eye(classes)[labels]

    def _compose(self, kernel: Blocks | Products, target: np.ndarray, weights: np.ndarray | None) -> None:
        """Fit by ridge, or by gradient flow that stops early."""
        if not isinstance(kernel, Blocks):
            raise BadValueError(
                f"early_stopping and loss='squared' need the kernel matrix, which does not fit into "
                f"memory={self.memory!r}; give more, or loss='cross_entropy'."
            )
        if kernel.gram.ndim > 2 or (self.early_stopping and weights is not None):
            raise BadValueError(
                "early_stopping takes kernels with one number for two samples, and no sample weights."
            )
        matrix = kernel.gram.to("cpu", self.precision_).numpy()
        if self.early_stopping:
            flow = GradientFlow("precomputed", loss=self.loss, early_stopping="validation")
            flow.set_params(validation_fraction=self.validation_fraction, random_state=self.random_state)
            flow.fit(matrix, target)
            self.dual_coef_, self.t_ = flow.dual_coef_, flow.t_
            self.solver_, self.solver_reason_ = "flow", f"early stopping at t = {flow.t_:.3g}"
            return
        ridge = KernelRidge("precomputed", self.alpha).fit(matrix, target, weights)
        self.dual_coef_, self.alpha_ = ridge.dual_coef_, ridge.alpha_
        self.solver_, self.solver_reason_ = ridge.solver_, f"ridge on targets: {ridge.solver_reason_}"

    def _minimize(self, kernel: Blocks | Products, target: Tensor, weights: np.ndarray | None) -> None:
        if not is_size(self.alpha) or self.alpha == 0:
            raise BadValueError(
                f"alpha={self.alpha!r}; expected a number > 0: without a penalty classes that can be "
                "separated have no optimum (early_stopping=True does without)."
            )
        ones = torch.ones(len(target)) if weights is None else torch.as_tensor(weights)
        if self.solver == "lbfgs" and not isinstance(kernel, Blocks):
            raise BadValueError(
                f"solver='lbfgs' needs the kernel matrix, which does not fit into memory={self.memory!r}; "
                "give more, or solver='newton'."
            )
        size = kernel.size  # (s K, s alpha) is the same problem as (K, alpha), and is solved as such
        alpha = float(self.alpha) / size
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
