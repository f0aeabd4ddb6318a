"""The Bayesian posterior under one kernel: mean, covariance, evidence, and scales by maximizing it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, cast, overload

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import minimize, minimize_scalar
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.utils import check_random_state
from torch import Tensor

from ntkit.compute.cholesky import Cholesky, cholesky
from ntkit.compute.eigen import Shifted, Spectrum, spectrum
from ntkit.errors import BadTypeError, BadValueError, nearest, whole
from ntkit.kernel import Kernel
from ntkit.machine.estimator import FactoredMachine, as_numbers, checked, is_size, refusing
from ntkit.machine.kernels import KernelLike
from ntkit.network import Floats, No, Pair

RANGE = (1e-10, 1e2)  # of the mean diagonal: where the noise is looked for
REACH = 10.0  # how far from its value, as a factor, a scale of the kernel is looked for


class GaussianProcess(MultiOutputMixin, RegressorMixin, FactoredMachine):
    """Gaussian process regression: y = f(x) + noise, f ~ GP(0, k).

        mean = K_*X (K + s^2)^-1 y,    cov = K_** - K_*X (K + s^2)^-1 K_X*
        log p(y) = -y^T (K + s^2)^-1 y / 2 - log det(K + s^2) / 2 - n log(2 pi) / 2

    With the NNGP of a limit this is the posterior over infinitely wide networks; the ensemble of
    **trained** networks has another covariance: `GradientFlow`. Outputs are independent, of one kernel.

    Parameters
    ----------
    kernel : optional
        As of `KernelRidge`; None: the NTK of an infinitely wide ReLU network of depth 3.
    noise : float or "ml"
        The variance s^2 of the noise; ``"ml"``: the one of largest evidence.
    optimize : sequence of str
        Parameters of the kernel, such as ``("sigma_w", "sigma_b")`` of a limit or of the default kernel,
        to be chosen by the evidence too, within a factor of ten of their values (Nelder-Mead on logarithms).

    Attributes
    ----------
    noise_ : float
        The variance that was used.
    kernel_ : Kernel
        The kernel that was used, with the scales found.
    dual_coef_ : array [n] or [n, o]
        (K + s^2)^-1 y.
    log_marginal_likelihood_ : float
        log p(y), in nats, summed over outputs.
    jitter_, condition_, min_eigenvalue_ : float
        As of `KernelRidge`.

    Raises
    ------
    NtkitError
        A kernel that is not positive semi-definite; a variance asked of a precomputed kernel.

    References
    ----------
    Ravikumar (2024), section 4; Rasmussen, Williams (2006), Eq. 2.25-2.30.

    Examples
    --------
    >>> import numpy as np, ntkit
    >>> X = np.linspace(-1, 1, 12)[:, None]
    >>> gp = ntkit.GaussianProcess(noise=1e-4).fit(X, np.sin(3 * X[:, 0]))
    >>> mean, std = gp.predict([[0.2], [3.0]], return_std=True)
    >>> bool(abs(mean[0] - np.sin(0.6)) < 3 * std[0]), bool(std[0] < std[1])
    (True, True)
    """

    def __init__(
        self, kernel: KernelLike = None, noise: float | Literal["ml"] = "ml", *, optimize: Sequence[str] = ()
    ) -> None:
        self.kernel = kernel
        self.noise = noise
        self.optimize = optimize

    def fit(self, X: ArrayLike, y: ArrayLike) -> GaussianProcess:
        """Solve for the posterior, and choose what is to be chosen."""
        x, y = self._take(X, y, multi_output=True, y_numeric=True)
        chosen = isinstance(self.noise, str) and self.noise == "ml"
        if not chosen and not is_size(self.noise):
            near = nearest(self.noise, ("ml",))
            raise BadValueError(f"noise={self.noise!r}; expected a variance >= 0, or 'ml'.{near}")
        if not isinstance(cast(object, self.optimize), Iterable):  # whatever a user has set
            raise BadTypeError(f"optimize={self.optimize!r}; expected names of the kernel's parameters.")
        y = np.array(as_numbers("y", y))
        targets = torch.as_tensor(y.reshape(len(x), -1))
        if self.optimize:
            self.kernel_ = self._scales(targets)
        gram = self._gram()
        targets = targets.to(gram)
        if self.noise == "ml" or self.noise == 0:
            whole = spectrum(gram, self.precision_)
            self.noise_ = best_noise(whole, targets)[0] if self.noise == "ml" else 0.0
            factor = Shifted(whole, self.noise_)
        else:
            self.noise_ = float(self.noise)
            factor = cholesky(gram, self.noise_)
        coefficients, self._factor = factor.solve(targets), factor
        self.dual_coef_ = coefficients.cpu().numpy().reshape(y.shape)
        self.log_marginal_likelihood_ = self._evidence(factor, targets, coefficients)
        return self

    @overload
    def predict(self, X: ArrayLike, return_std: No = ..., return_cov: No = ...) -> Float[Floats, " m *o"]: ...
    @overload
    def predict(self, X: ArrayLike, return_std: Literal[True], return_cov: bool = False) -> Pair: ...
    @overload
    def predict(self, X: ArrayLike, return_std: bool = False, *, return_cov: Literal[True]) -> Pair: ...
    def predict(
        self, X: ArrayLike, return_std: bool = False, return_cov: bool = False
    ) -> Float[Floats, " m *o"] | Pair:
        """Return the posterior mean of f, ``[m]`` or ``[m, o]``, and with it its deviation or covariance.

        ``return_std``: shaped as the mean. ``return_cov``: ``[m, m]``, or ``[m, m, o]``. Both are those of
        f; those of a new y have the noise variance on top.
        """
        if return_std and return_cov:
            raise BadValueError("Ask for return_std or return_cov, not for both.")
        x = self._queries(X)
        mean = self._apply(x, self.dual_coef_)
        if not return_std and not return_cov:
            return mean
        prior = self._diag(x) if return_std else None
        assert self._factor is not None
        half = self._factor.half(self._block(self.X_fit_, x))
        if prior is not None:
            std = (prior - half.square().sum(0)).clamp_min(0).sqrt().cpu().numpy()
            return mean, std if mean.ndim == 1 else np.repeat(std[:, None], mean.shape[1], 1)
        cov = (self._block(x, x) - half.T @ half).cpu().numpy()
        return mean, cov if mean.ndim == 1 else np.repeat(cov[..., None], mean.shape[1], 2)

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: int | np.random.RandomState | None = 0
    ) -> Float[Floats, " m *o"]:
        """Return draws of f from the posterior, ``[m, n_samples]`` or ``[m, o, n_samples]``."""
        mean, cov = self.predict(X, return_cov=True)
        with refusing("a whole number >= 0 as random_state"):
            rng = check_random_state(random_state)
        whole("n_samples", n_samples)
        means, cov = mean.reshape(len(mean), -1), cov if cov.ndim == 2 else cov[..., 0]
        values, vectors = np.linalg.eigh(cov)  # a posterior covariance is singular at the training points
        root = vectors * np.sqrt(values.clip(0))
        draws = means[..., None] + np.einsum("mk,kos->mos", root, rng.normal(size=(*means.shape, n_samples)))
        return draws.reshape(*mean.shape, n_samples)

    def _evidence(self, factor: Cholesky | Shifted, y: Tensor, c: Tensor) -> float:
        if isinstance(factor, Shifted):
            return evidence(factor.whole, y, self.noise_)
        fit = float((y * c).sum())
        return -0.5 * (fit + y.shape[1] * (factor.logdet + len(y) * np.log(2 * np.pi)))

    def _scales(self, y: Tensor) -> Kernel:
        """Return the kernel with the parameters that maximize the evidence."""
        if self.kernel_ is None:
            raise BadValueError("A precomputed kernel has no parameters to optimize; give the kernel.")
        names = [self.optimize] if isinstance(self.optimize, str) else list(self.optimize)
        first = self.kernel_
        known = first.get_params()
        for name in names:
            value = known.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise BadValueError(
                    f"optimize={names}: {name!r} is {value!r} in {type(first).__name__}; only "
                    f"positive numbers can be optimized. It has {sorted(known)}.{nearest(name, known)}"
                )
        start = np.log([known[name] for name in names])

        def kernel(logs: np.ndarray) -> Kernel:
            values = {name: float(np.exp(v)) for name, v in zip(names, logs, strict=True)}
            return first.__sklearn_clone__().set_params(**values)

        def loss(logs: np.ndarray) -> float:
            whole = spectrum(checked(kernel(logs)(self.X_fit_)))
            at = y.to(whole.values)
            return (
                -best_noise(whole, at)[1] if self.noise == "ml" else -evidence(whole, at, float(self.noise))
            )

        reach = np.log(REACH)
        bounds = [(s - reach, s + reach) for s in start]
        options = {"xatol": 1e-2, "fatol": 1e-2 * max(1, y.shape[0] / 100)}
        return kernel(minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options).x)


def evidence(whole: Spectrum, y: Tensor, noise: float) -> float:
    """Return log p(y) for targets ``[n, o]``, summed over outputs; minus infinity where y has no density."""
    values = whole.values + noise
    if bool((values <= 0).any()):
        return -float("inf")
    fit = float(((whole.vectors.T @ y).square() / values[:, None]).sum())
    return -0.5 * (fit + y.shape[1] * (float(values.log().sum()) + len(y) * np.log(2 * np.pi)))


def best_noise(whole: Spectrum, y: Tensor) -> tuple[float, float]:
    """Return the noise variance of largest evidence, and that evidence: the best of a grid, refined."""
    scale = float(whole.values.mean()) or 1.0
    low = max(RANGE[0], whole.floor / scale)
    grid = np.linspace(np.log(low), np.log(max(RANGE[1], 10 * low)), 49)

    def loss(log: float) -> float:
        return -evidence(whole, y, scale * np.exp(log))

    values = [loss(log) for log in grid]
    i = int(np.argmin(values))
    low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
    minimum = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    at, value = (minimum.x, minimum.fun) if minimum.fun <= values[i] else (grid[i], values[i])
    return float(scale * np.exp(at)), -float(value)
