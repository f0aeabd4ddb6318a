"""The Bayesian posterior under one kernel: mean, covariance, evidence, and scales by maximizing it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, overload

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import minimize, minimize_scalar
from scipy.stats import norm
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from torch import Tensor

from ntkit.compute.eigen import Shifted, Spectrum, spectrum
from ntkit.compute.threads import fitting_threads
from ntkit.errors import BadTypeError, BadValueError, nearest, one_of, whole
from ntkit.kernel import Kernel
from ntkit.machine.estimator import FactoredMachine, as_numbers, checked, is_size, refusing
from ntkit.machine.kernels import KernelLike
from ntkit.network import Floats, No, Pair

RANGE = (1e-10, 1e6)  # of noise to amplitude, over the mean eigenvalue: where the noise is looked for
REACH = 10.0  # how far from its value, as a factor, a scale of the kernel is looked for


class GaussianProcess(MultiOutputMixin, RegressorMixin, FactoredMachine):
    """Gaussian process regression: y = m + f(x) + noise, f ~ GP(0, a k), with the mean m of the targets.

        mean = m + a K_*X (a K + s^2)^-1 (y - m),    cov = a K_** - a^2 K_*X (a K + s^2)^-1 K_X*
        log p(y) = -(y - m)^T (a K + s^2)^-1 (y - m) / 2 - log det(a K + s^2) / 2 - n log(2 pi) / 2

    With the NNGP of a limit this is the posterior over infinitely wide networks; the ensemble of
    **trained** networks has another covariance: `GradientFlow`. Outputs are independent, of one kernel.

    Parameters
    ----------
    kernel : optional
        As of `KernelRidge`; None: the NTK of an infinitely wide ReLU network of depth 3.
    noise : float or "ml"
        The variance s^2 of the noise, in units of y^2; ``"ml"``: the one of largest evidence.
    amplitude : float or "ml"
        The factor a of the kernel, in units of y^2; ``"ml"``: the one of largest evidence, of several outputs
        the same multiple of the variance of each.
    normalize_y : bool
        Whether the mean of the targets is subtracted, and outputs count by their variances; else m = 0.
    optimize : sequence of str
        Parameters of the kernel, such as ``("sigma_w", "sigma_b")`` of a limit or of the default kernel,
        to be chosen by the evidence too, within a factor of ten of their values (Nelder-Mead on logarithms).

    Attributes
    ----------
    noise_, amplitude_ : float, or array [o] where they differ
        The variance of the noise and the factor of the kernel that were used, in units of y^2.
    kernel_ : Kernel
        The kernel that was used, with the scales found.
    dual_coef_ : array [n] or [n, o]
        (K + s^2 / a)^-1 (y - m).
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
        self,
        kernel: KernelLike = None,
        noise: float | Literal["ml"] = "ml",
        *,
        amplitude: float | Literal["ml"] = "ml",
        normalize_y: bool = True,
        optimize: Sequence[str] = (),
    ) -> None:
        self.kernel = kernel
        self.noise = noise
        self.amplitude = amplitude
        self.normalize_y = normalize_y
        self.optimize = optimize

    @fitting_threads()
    def fit(self, X: ArrayLike, y: ArrayLike) -> GaussianProcess:
        """Solve for the posterior, and choose what is to be chosen."""
        x, y = self._take(X, y, multi_output=True, y_numeric=True)
        self._check()
        y = np.array(as_numbers("y", y))
        targets = y.reshape(len(x), -1)
        self._mean = targets.mean(0) if self.normalize_y else np.zeros(targets.shape[1])
        centered = torch.as_tensor(targets - self._mean)
        spread = centered.std(0, correction=0) if self.normalize_y else torch.ones(targets.shape[1])
        scales = Scales(
            None if self.noise == "ml" else float(self.noise),
            None if self.amplitude == "ml" else float(self.amplitude),
            torch.where(spread > 0, spread, 1.0).square().double(),
        )
        if self.optimize:
            self.kernel_ = self._scales(centered, scales)
        gram = self._gram()
        whole = spectrum(gram, self.precision_)
        found = scales.best(whole, centered.to(gram))
        if found.ends:
            warnings.warn(
                f"The evidence still grows where the noise is {float(found.noise.mean()):.3g}, far above the "
                f"kernel: the targets look like nothing but noise to it.",
                ConvergenceWarning,
                stacklevel=2,
            )
        self.noise_, self.amplitude_ = _one(found.noise), _one(found.amplitude)
        self._ratios = (found.noise / found.amplitude).tolist()
        self._factors = {ratio: Shifted(whole, ratio) for ratio in self._ratios}
        self._factor = self._factors[self._ratios[0]]
        coefficients = [
            self._factors[ratio].solve(column[:, None])
            for ratio, column in zip(self._ratios, centered.to(gram).T, strict=True)
        ]
        self.dual_coef_ = torch.cat(coefficients, 1).cpu().numpy().reshape(y.shape)
        self.log_marginal_likelihood_ = found.evidence
        return self

    def _check(self) -> None:
        for name, least in (("noise", 0.0), ("amplitude", np.nextafter(0, 1))):
            value = getattr(self, name)
            if not (isinstance(value, str) and value == "ml") and not (
                is_size(value) and float(value) >= least
            ):
                near = nearest(value, ("ml",))
                expected = "a variance >= 0" if name == "noise" else "a factor > 0"
                raise BadValueError(f"{name}={value!r}; expected {expected}, or 'ml'.{near}")
        one_of("normalize_y", self.normalize_y, (True, False))
        if not isinstance(cast(object, self.optimize), Iterable):  # whatever a user has set
            raise BadTypeError(f"optimize={self.optimize!r}; expected names of the kernel's parameters.")

    @overload
    def predict(
        self, X: ArrayLike, return_std: No = ..., return_cov: No = ..., *, noise: bool = ...
    ) -> Float[Floats, " m *o"]: ...
    @overload
    def predict(
        self, X: ArrayLike, return_std: Literal[True], return_cov: bool = False, *, noise: bool = ...
    ) -> Pair: ...
    @overload
    def predict(
        self, X: ArrayLike, return_std: bool = False, *, return_cov: Literal[True], noise: bool = ...
    ) -> Pair: ...
    @fitting_threads()
    def predict(
        self, X: ArrayLike, return_std: bool = False, return_cov: bool = False, *, noise: bool = False
    ) -> Float[Floats, " m *o"] | Pair:
        """Return the posterior mean, ``[m]`` or ``[m, o]``, and with it its deviation or covariance.

        ``return_std``: shaped as the mean. ``return_cov``: ``[m, m]``, or ``[m, m, o]``. Both are those of
        f; with ``noise=True`` those of new targets y, the variance of the noise on top.
        """
        if return_std and return_cov:
            raise BadValueError("Ask for return_std or return_cov, not for both.")
        x = self._queries(X)
        mean = self._apply(x, self.dual_coef_)
        mean = mean + self._mean.reshape(mean.shape[1:])
        if not return_std and not return_cov:
            return mean
        prior = self._diag(x) if return_std else self._block(x, x)
        cross = self._block(self.X_fit_, x)
        outputs = len(self._ratios)
        noises, amplitudes = (np.broadcast_to(v, outputs) for v in (self.noise_, self.amplitude_))
        found = []
        for ratio, s2, a in zip(self._ratios, noises, amplitudes, strict=True):
            half = self._factors[ratio].half(cross)
            known = half.square().sum(0) if return_std else half.T @ half
            cov = a * (prior - known)
            added = s2 * noise if return_std else s2 * noise * torch.eye(len(x), dtype=cov.dtype).to(cov)
            found.append((cov.clamp_min(0) + added).sqrt() if return_std else cov + added)
        stacked = torch.stack(found, -1).cpu().numpy()
        return mean, stacked[..., 0] if mean.ndim == 1 else stacked

    def predict_interval(self, X: ArrayLike, coverage: float = 0.95) -> Pair:
        """Return the bounds between which a new target lies with a probability, each ``[m]`` or ``[m, o]``.

        mean -+ z std of y, the noise included, with the quantile z of the normal distribution.
        """
        if not is_size(coverage) or not 0 < coverage < 1:
            raise BadValueError(f"coverage={coverage!r}; expected a probability between 0 and 1.")
        mean, std = self.predict(X, return_std=True, noise=True)
        reach = float(norm.ppf((1 + coverage) / 2)) * std
        return mean - reach, mean + reach

    def log_predictive_density(self, X: ArrayLike, y: ArrayLike) -> Float[Floats, " m *o"]:
        """Return log p of new targets, each alone, given the training data, in nats, shaped as they."""
        mean, std = self.predict(X, return_std=True, noise=True)
        targets = as_numbers("y", y)
        if targets.shape != mean.shape:
            raise BadValueError(
                f"y has shape {targets.shape}; expected that of the predictions, {mean.shape}."
            )
        return norm.logpdf(targets, mean, std)

    def sample_y(
        self, X: ArrayLike, n_samples: int = 1, random_state: int | np.random.RandomState | None = 0
    ) -> Float[Floats, " m *o"]:
        """Return draws of f from the posterior, ``[m, n_samples]`` or ``[m, o, n_samples]``."""
        mean, cov = self.predict(X, return_cov=True)
        with refusing("a whole number >= 0 as random_state"):
            rng = check_random_state(random_state)
        whole("n_samples", n_samples)
        means, cov = mean.reshape(len(mean), -1), cov if cov.ndim == 3 else cov[..., None]
        values, vectors = np.linalg.eigh(cov.transpose(2, 0, 1))  # singular at the training points
        roots = vectors * np.sqrt(values.clip(0))[:, None, :]
        draws = means[..., None] + np.einsum(
            "omk,kos->mos", roots, rng.normal(size=(*means.shape, n_samples))
        )
        return draws.reshape(*mean.shape, n_samples)

    def _scales(self, y: Tensor, scales: Scales) -> Kernel:
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
            return -scales.best(whole, y.to(whole.values)).evidence

        reach = np.log(REACH)
        bounds = [(s - reach, s + reach) for s in start]
        options = {"xatol": 1e-2, "fatol": 1e-2 * max(1, y.shape[0] / 100)}
        return kernel(minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options).x)


@dataclass(frozen=True)
class Found:
    """Noise and amplitude ``[o]``, their evidence, and whether they lie at the upper end of the range."""

    noise: Tensor
    amplitude: Tensor
    evidence: float
    ends: bool = False


@dataclass(frozen=True)
class Scales:
    """Noise and amplitude that are given, or to be found (None), for outputs of variances ``units [o]``."""

    noise: float | None
    amplitude: float | None
    units: Tensor

    def best(self, whole: Spectrum, y: Tensor) -> Found:
        """Return those of largest evidence for centered targets ``[n, o]``."""
        squares = (whole.vectors.T @ y).square()
        units = self.units.to(squares)
        mean = float(whole.values.mean()) or 1.0
        low = max(RANGE[0], whole.floor / mean)
        ones = torch.ones_like(units)
        if self.noise is not None and self.amplitude is not None:
            return _found(whole, squares, self.noise * ones, self.amplitude * ones)
        if self.noise is None:

            def at(log: float) -> Found:
                ratio = mean * float(np.exp(log))
                amplitude = self._profile(whole, squares / units, ratio) * units
                amplitude = amplitude if self.amplitude is None else self.amplitude * ones
                return _found(whole, squares, ratio * amplitude, amplitude)

            found, ends = _maximum(at, np.log(low), np.log(max(RANGE[1], 10 * low)))
            return replace(found, ends=ends)
        noise = self.noise
        size = float((squares.sum(0) / units).mean()) / len(y) or 1.0  # near 1 where y is normalized

        def of(log: float) -> Found:
            return _found(whole, squares, noise * ones, size / mean * float(np.exp(log)) * units)

        return _maximum(of, np.log(1e-8), np.log(1e8))[0]

    @staticmethod
    def _profile(whole: Spectrum, squares: Tensor, ratio: float) -> float:
        """Return the amplitude of largest evidence at a ratio of noise to amplitude, in closed form."""
        values = whole.values + ratio
        if bool((values <= 0).any()):
            return 1.0
        return float((squares / values[:, None]).mean()) or 1.0


def _found(whole: Spectrum, squares: Tensor, noise: Tensor, amplitude: Tensor) -> Found:
    """Return the evidence of noise and amplitude, summed over outputs; minus infinity where y has none."""
    values = amplitude * whole.values[:, None] + noise
    if bool((values <= 0).any()):
        return Found(noise, amplitude, -float("inf"))
    total = squares / values + values.log() + np.log(2 * np.pi)
    return Found(noise, amplitude, -0.5 * float(total.sum()))


def _maximum(at: Callable[[float], Found], low: float, high: float) -> tuple[Found, bool]:
    """Return the best of a grid, refined, and whether it is the last."""
    grid = np.linspace(low, high, 65)
    found = [at(log) for log in grid]
    i = max(range(len(grid)), key=lambda j: found[j].evidence)
    bounds = (grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)])
    refined: Any = minimize_scalar(
        lambda log: -at(log).evidence, bounds=bounds, method="bounded", options={"xatol": 1e-5}
    )
    best = max(found[i], at(float(refined.x)), key=lambda one: one.evidence)
    return best, i == len(grid) - 1


def _one(values: Tensor) -> float | Floats:
    """Return a number where all are the same."""
    first = float(values[0])
    return first if bool((values == first).all()) else values.cpu().numpy()
