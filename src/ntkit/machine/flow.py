"""Training as a kernel machine: gradient flow in closed form, and the ensemble of trained networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias, overload

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import MultiOutputMixin, RegressorMixin
from torch import Tensor

from ntkit.compute.eigen import Shifted, spectrum
from ntkit.compute.plan import parse_memory
from ntkit.errors import BadValueError, one_of, positive, real
from ntkit.kernel import Kernel
from ntkit.machine.choice.copies import merged
from ntkit.machine.choice.leave_one_out import Targets
from ntkit.machine.conformal import folds, jackknife_plus, probability, tell_of_spread
from ntkit.machine.estimator import FactoredMachine, as_numbers, checked
from ntkit.machine.inputs.scaling import Scale
from ntkit.machine.kernels import KernelLike, as_array, as_kernel, prior_of
from ntkit.machine.sessions import computing
from ntkit.machine.solving import stopping
from ntkit.machine.solving.losses import loss_of, refuse_no_probabilities
from ntkit.machine.solving.trajectory import Trajectory
from ntkit.machine.stored.flow import flow_coefficients, largest_eigenvalue
from ntkit.machine.stored.system import TiledSystem
from ntkit.machine.unfitted import check_fitted
from ntkit.network import Floats, No, Pair

Given: TypeAlias = ArrayLike | None
GROUPS = 20  # of samples, left out one after the other for an interval


@dataclass(frozen=True)
class LearningCurve:
    """How the parts of the targets along the kernel's eigenvectors are learned.

    ``rates`` ``[n]`` are the eigenvalues of K / n, largest first: along the i-th a part exp(-rate t) is left
    of ``parts`` ``[n]`` or ``[n, o]``, that of y - f_0; ``left`` ``[T, n]`` holds these factors, ``loss``
    ``[T]`` is (1/2n) sum (f - y)^2 at each of ``times``.
    """

    times: Float[Floats, " T"]
    rates: Float[Floats, " n"]
    parts: Float[Floats, " n *o"]
    left: Float[Floats, "T n"]
    loss: Float[Floats, " T"]


class GradientFlow(MultiOutputMixin, RegressorMixin, FactoredMachine):
    """Training a network whose tangent kernel stays constant: the function at any time, in closed form.

        dw/dt = -grad of (1/2n) sum_n (f(x_n) - y_n)^2
        f_t(x) = f_0(x) + A_t (y - f_0(X)),    A_t = K_*X K^-1 (I - exp(-t K / n))

    With the covariance S of f_0 (``prior``, the NNGP), the ensemble of trained networks has

        mean = A_t y,    cov = S_** + A_t S_XX A_t^T - A_t S_X* - S_*X A_t^T

    Time is steps x learning rate. For `torch.nn.MSELoss` with o outputs t = 2 x rate x steps / o.

    Parameters
    ----------
    kernel : optional
        As of `KernelRidge` (by the leave-one-out error of ridge); a limit gives its NTK, and its NNGP as
        prior.
    t : float or array of floats
        Until when to train; inf: to the end. An array gives predictions with an axis of times in front.
    prior : optional
        The kernel of f_0 over random networks; None: the NNGP, where the kernel is that of a limit.
    loss : str or callable
        ``"squared"``; ``"cross_entropy"`` (targets are rows of probabilities, or one in [0, 1]),
        ``"huber"``, or a convex function of tensors ``(f, y) -> [n]``, by an ODE solver: df/dt =
        -(1/n) sum_n K(x, x_n) l'(f(x_n), y_n).
    depth, scale : optional
        As of `KernelRidge`.
    learning_rate, momentum : float
        Explicit steps instead of the flow (None), t / learning_rate of them; momentum as in PyTorch's SGD.
    early_stopping : {None, "validation", "loo"}
        Choose the time, at most t, of the least error on a part of the samples that is held out (then all
        samples are trained on), or of the least leave-one-out error, which is exact and takes an
        eigendecomposition for each sample (squared loss). Other losses stop after ten tried times without an
        improvement.
    validation_fraction, random_state : float, int
        The part of the samples that is held out, and the seed with which it is drawn.
    tol, memory
        Of a stored matrix (`TiledKernel`) that does not fit into ``memory`` bytes: squared loss at given
        times, by its leading eigenvectors and polynomials of it; at the end by conjugate gradients.
    n_jobs, verbose : int or None, bool
        The number of threads (None: as many as are free, -1: all), and whether a progress bar is shown.

    Attributes
    ----------
    t_ : float or array
        The time, or times.
    max_learning_rate_ : float
        Steps above it diverge: 2 (1 + momentum) n / (largest eigenvalue x the loss's curvature).
    min_eigenvalue_, condition_ : float
        Of the kernel matrix.

    Raises
    ------
    NtkitError
        A kernel that is not positive semi-definite, a learning rate that diverges, an infinite time with a
        loss other than the squared one, a covariance without prior.

    References
    ----------
    Giancola (2023), Eq. I.3.12, IV.2.6 (and IV.2.8, with its sign corrected: f_t = f* - sum_i
    exp(-t lambda_i) Delta_i), section IV.3; Lee et al. (2019), Eq. 10-11 and 16 for two kernels.

    Examples
    --------
    >>> import numpy as np, ntkit
    >>> X = np.linspace(-1, 1, 12)[:, None]
    >>> y = np.sin(3 * X[:, 0])
    >>> flow = ntkit.GradientFlow(t=[1.0, 100.0, np.inf]).fit(X, y)
    >>> np.abs(flow.predict(X) - y).max(1).round(2)
    array([0.31, 0.  , 0.  ])
    >>> mean, std = ntkit.GradientFlow().fit(X, y).predict([[0.2], [3.0]], return_std=True)
    >>> bool(std[0] < std[1])
    True
    """

    def __init__(
        self,
        kernel: KernelLike = "auto",
        t: ArrayLike = float("inf"),
        prior: KernelLike = None,
        loss: str | Callable[[Tensor, Tensor], Tensor] = "squared",
        *,
        depth: int | None = None,
        scale: Scale = "auto",
        learning_rate: float | None = None,
        momentum: float = 0.0,
        early_stopping: Literal["validation", "loo"] | None = None,
        validation_fraction: float = 0.1,
        random_state: int = 0,
        tol: float = 1e-8,
        memory: int | str = "8GiB",
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.kernel, self.t, self.prior, self.loss = kernel, t, prior, loss
        self.learning_rate, self.momentum, self.early_stopping = learning_rate, momentum, early_stopping
        self.validation_fraction, self.random_state = validation_fraction, random_state
        self.depth, self.scale, self.tol, self.memory = depth, scale, tol, memory
        self.n_jobs, self.verbose = n_jobs, verbose

    @computing
    def fit(self, X: ArrayLike, y: ArrayLike, f0: ArrayLike | None = None) -> GradientFlow:
        """Prepare the flow; ``f0``: the function at the start on the training samples, shaped as y."""
        stored, self._system = self._stored(X, y, self.memory), None
        if stored is not None:
            return self._fit_stored(*stored, f0)
        x, y = self._take(X, y, multi_output=True, y_numeric=True)
        y = np.array(as_numbers("y", y))
        start = _start(f0, y)
        self._settle(x, Targets(torch.as_tensor((y - start).reshape(len(x), -1))))
        self._started, self._shape = f0 is not None, y.shape[1:]
        _, self._same = merged(x, y, None)
        self._gram_ = self._gram()
        self._y = torch.as_tensor(y.reshape(len(x), -1)).to(self._gram_)
        self._f0 = torch.as_tensor(start.reshape(len(x), -1)).to(self._gram_)
        self._spectrum = spectrum(self._gram_, self.precision_)
        self._factor = Shifted(self._spectrum, 0.0)
        times = _times(self.t)
        if isinstance(self.loss, str) and self.loss == "cross_entropy":
            refuse_no_probabilities(self._y)
        self._rates()
        self.t_: float | Floats = times if np.ndim(self.t) else float(times[0])
        if one_of("early_stopping", self.early_stopping, (None, "validation", "loo")) is not None:
            self.t_ = self._stop(float(times.max()))
        self.dual_coef_ = self._coefficients(self.t_)
        return self

    @overload
    def predict(
        self, X: ArrayLike, return_std: No = ..., return_cov: No = ..., *, t: Given = ..., f0: Given = ...
    ) -> Float[Floats, "*t m *o"]: ...
    @overload
    def predict(
        self, X: ArrayLike, return_std: bool = ..., return_cov: bool = ..., *, t: Given = ...
    ) -> Pair: ...
    def predict(
        self,
        X: ArrayLike,
        return_std: bool = False,
        return_cov: bool = False,
        *,
        t: Given = None,
        f0: Given = None,
    ) -> Float[Floats, "*t m *o"] | Pair:
        """Return f_t at queries, ``[m]`` or ``[m, o]``, with an axis of times in front for several.

        ``return_std``, ``return_cov``: with it the standard deviation, or the covariance ``[m, m]`` or
        ``[m, m, o]``, of the ensemble of trained networks: by their start alone, in units of the prior, not
        of the targets. It is no interval for new targets, and a `SpreadWarning` says so; `predict_interval`
        is. ``t``: other times than the fitted. ``f0``: the start on the queries, where ``fit`` had one.
        """
        check_fitted(self)
        if return_std and return_cov:
            raise BadValueError("Ask for return_std or return_cov, not for both.")
        if self._started != (f0 is not None):
            raise BadValueError("Give f0 both to fit and to predict, of training samples and of queries.")
        x = self._queries(X)
        if t is None:
            t = self.t_
        else:
            _times(t)
        start = None if f0 is None else as_numbers("f0", f0)
        if start is not None and (start.shape != (len(x), *self._shape) or not np.isfinite(start).all()):
            raise BadValueError(f"f0 has shape {start.shape}; expected {(len(x), *self._shape)}, finite.")
        coefficients = self.dual_coef_ if t is self.t_ else self._coefficients(t)
        scalar = np.ndim(t) == 0
        stacked = coefficients[None] if scalar else coefficients
        columns = np.moveaxis(stacked.reshape(len(stacked), len(self.X_fit_), -1), 0, 1)
        out = self._apply(x, columns.reshape(len(self.X_fit_), -1)).reshape(len(x), len(stacked), -1)
        mean = np.moveaxis(out, 1, 0).reshape(len(stacked), len(x), *self._shape)
        if start is not None:
            mean = mean + start.reshape(len(x), *self._shape)
        mean = mean[0] if scalar else mean
        if not return_std and not return_cov:
            return mean
        tell_of_spread()
        spread = np.stack([self._spread(x, float(time), return_cov) for time in np.atleast_1d(t)])
        spread = spread[0] if scalar else spread
        return mean, spread if not self._shape else np.repeat(spread[..., None], self._shape[0], -1)

    @computing
    def predict_interval(self, X: ArrayLike, coverage: float = 0.95) -> Pair:
        """Return the bounds between which a new target lies with a probability, each ``[m]`` or ``[m, o]``.

        The jackknife+ (`jackknife_plus`) of training at the fitted time without each of 20 groups of samples
        (without each sample, up to 20; copies of a record are in one group): CV+. ``return_std`` of
        ``predict`` is the spread of networks by their start, and knows nothing of the noise of targets;
        this does.
        """
        check_fitted(self)
        self._closed()
        level = probability(coverage)
        if self._started or np.ndim(self.t_):
            raise BadValueError("predict_interval takes one time t, and no f0.")
        x, n = self._queries(X), len(self._y)
        cross, zero = self._block(x, self.X_fit_), self._f0[:0]
        left = np.empty((len(x), n, self._y.shape[1]))
        residuals = np.empty((n, self._y.shape[1]))
        times = np.array([float(self.t_)])
        for held in folds(n, GROUPS, self.random_state, self._same):
            rest = torch.as_tensor(np.setdiff1d(np.arange(n), held), device=cross.device)
            out = torch.as_tensor(held, device=cross.device)
            start = zero.new_zeros(len(rest), self._y.shape[1])
            inner = self._gram_[rest][:, rest]
            c = self._trajectory.coefficients(inner, None, self._y[rest], start, times)[0]
            left[:, held] = (cross[:, rest] @ c).cpu().numpy()[:, None]
            residuals[held] = (self._y[out] - self._gram_[out][:, rest] @ c).cpu().numpy()
        low, high = jackknife_plus(left, residuals, level)
        return low.reshape(len(x), *self._shape), high.reshape(len(x), *self._shape)

    def learning_curve(self, t: ArrayLike) -> LearningCurve:
        """Return how the parts along the kernel's eigenvectors are learned, at times t (squared loss)."""
        check_fitted(self)
        self._closed()
        times = _times(t)
        values = self._spectrum.values.flip(0)
        parts = (self._spectrum.vectors.T @ (self._y - self._f0)).flip(0)
        n = len(parts)
        left = torch.stack([1 - values * self._trajectory.filter(values, float(time), n) for time in times])
        loss = torch.stack([(factor[:, None] * parts).square().sum() for factor in left])
        tensors = values / n, parts.reshape(n, *self._shape), left, loss / (2 * n)
        return LearningCurve(times, *(t.cpu().numpy() for t in tensors))

    def _fit_stored(self, system: TiledSystem, y: np.ndarray, f0: Given) -> GradientFlow:
        """Find the coefficients from tiles."""
        if self.loss != "squared" or self.early_stopping is not None:
            raise BadValueError(
                f"{self.X_fit_} does not fit into memory={self.memory!r}, where only loss='squared' at given "
                "times is solved; give these, more memory, or fewer samples."
            )
        y = as_numbers("y", y)
        self._started, self._shape, self._factor = f0 is not None, y.shape[1:], None
        self._y, self._f0 = (torch.as_tensor(v.reshape(system.n, -1)) for v in (y, _start(f0, y)))
        times = _times(self.t)
        self._check_rate(largest_eigenvalue(system))
        self._system, self.t_ = system, times if np.ndim(self.t) else float(times[0])
        self.dual_coef_ = self._coefficients(self.t_)
        return self

    @property
    def _trajectory(self) -> Trajectory:
        return Trajectory(self.loss, self.learning_rate, self.momentum, self.precision_)

    def _rates(self) -> None:
        """Find the largest stable learning rate, and refuse a larger one."""
        self._check_rate(float(self._spectrum.values[-1]))

    def _check_rate(self, largest: float) -> None:
        self._budget = parse_memory(self.memory) if positive("tol", self.tol) else 0
        real("momentum", self.momentum, "a number in [0, 1)", lambda v: 0 <= v < 1)
        if self.learning_rate is not None:
            positive("learning_rate", self.learning_rate)
        loss = loss_of(self.loss)
        curvature = loss.curvature
        if curvature is None:
            curvature = float(torch.linalg.eigvalsh(loss.hessian(self._f0, self._y)).max())
        steepest = largest * curvature / len(self._y)
        self.max_learning_rate_ = 2 * (1 + self.momentum) / steepest if steepest > 0 else float("inf")
        if self.learning_rate is not None and self.learning_rate > self.max_learning_rate_:
            raise BadValueError(
                f"learning_rate={self.learning_rate} diverges: give at most "
                f"{self.max_learning_rate_:.4g}, the largest stable one for this kernel and these samples."
            )

    def _coefficients(self, t: ArrayLike) -> np.ndarray:
        """Return the coefficients at a time, ``[n]`` or ``[n, o]``, or at several, ``[T, ...]``."""
        times = np.atleast_1d(np.asarray(t, dtype=float))
        if self._system is not None:
            path = flow_coefficients(self._system, self._trajectory, self._y - self._f0, times)
        else:
            path = self._trajectory.coefficients(self._gram_, self._spectrum, self._y, self._f0, times)
        coefficients = path.cpu().numpy().reshape(*path.shape[:2], *self._shape)
        return coefficients[0] if np.ndim(t) == 0 else coefficients

    def _stop(self, limit: float) -> float:
        """Return the time at which to stop."""
        largest, n = float(self._spectrum.values[-1]), len(self._y)
        training = self._gram_, self._y, self._f0
        times = stopping.times(self._spectrum.values / n, limit, self.learning_rate)
        if self.loss != "squared":
            times = times[np.isfinite(times)]
        if self.early_stopping == "loo":
            self._closed()
            errors = stopping.leave_one_out(self._trajectory, training, times)
        else:
            held_out = self.validation_fraction, self.random_state
            errors = stopping.validation(self._trajectory, training, times, *held_out)
        self.stopping_times_, self.stopping_errors_ = times, errors
        return float(times[int(np.argmin(errors))]) if largest > 0 else 0.0

    def _closed(self) -> None:
        if self._system is not None:
            raise BadValueError(f"This needs the matrix in memory={self.memory!r}; give more.")
        if self.loss != "squared":
            raise BadValueError(f"Only the squared loss has a closed form, not {self.loss!r}.")

    def _prior(self) -> Kernel:
        if self.kernel_ is None:
            raise BadValueError(
                "The spread of trained networks needs k(x, x) and a second kernel of the samples "
                "themselves, a precomputed kernel has neither; give kernel and prior as functions."
            )
        if self.prior is not None:
            return as_kernel(self.prior)
        prior = prior_of(self.kernel, self.kernel_, self.X_fit_.shape[-1])
        if prior is None:
            raise BadValueError(
                "The spread of trained networks needs the covariance of f_0 besides the tangent kernel: give "
                "prior=, the NNGP, or a limit as kernel."
            )
        return prior

    def _spread(self, X: np.ndarray, t: float, full: bool) -> np.ndarray:
        """Return the covariance ``[m, m]`` or standard deviation ``[m]`` of the ensemble at a time."""
        self._closed()
        if self._started:
            raise BadValueError("With f0 given there is one network, not an ensemble with a spread.")
        prior = self._prior()
        filtered = self._trajectory.filter(self._spectrum.values, t, len(self._y))
        a = self._spectrum.apply(filtered, self._block(self.X_fit_, X)).T
        train, cross = checked(prior(self.X_fit_)).to(a), checked(prior(X, self.X_fit_)).to(a)
        if full:
            cov = checked(prior(X)).to(a) + a @ train @ a.T - a @ cross.T - cross @ a.T
            return ((cov + cov.T) / 2).cpu().numpy()
        variances = checked(prior.diag(X), True, 1).to(a)
        variance = variances + ((a @ train) * a).sum(1) - 2 * (a * cross).sum(1)
        return variance.clamp_min(0).sqrt().cpu().numpy()


def _start(f0: Given, y: np.ndarray) -> np.ndarray:
    """Return the function at the start on the training samples, zero if it is not given."""
    start = np.zeros_like(y) if f0 is None else as_numbers("f0", f0)
    if start.shape != y.shape or not np.isfinite(start).all():
        raise BadValueError(
            f"f0 has shape {start.shape} and {np.isnan(start).sum()} NaN, the targets {y.shape}; give "
            f"f0(X), finite."
        )
    return start


def _times(t: ArrayLike) -> np.ndarray:
    """Return one time, or a list of them, as an array, checked."""
    try:
        times = np.atleast_1d(np.asarray(as_array(t), dtype=float))
    except (TypeError, ValueError):
        times = np.zeros(0)
    if times.ndim != 1 or not len(times) or not (times >= 0).all():
        raise BadValueError(f"t={t!r}; expected a time >= 0, or a list of them.")
    return times
