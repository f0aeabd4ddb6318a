"""The Bayesian posterior under one kernel: mean, covariance, evidence, and scales by maximizing it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal, cast, overload

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.stats import norm
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from torch import Tensor

from ntkit.compute.cholesky import Cholesky, cholesky
from ntkit.compute.eigen import Shifted, Spectrum, spectrum
from ntkit.compute.plan import parse_memory
from ntkit.errors import BadTypeError, BadValueError, nearest, one_of, positive, whole
from ntkit.kernel import Kernel
from ntkit.machine.choice.candidates import starts
from ntkit.machine.choice.copies import copies_once
from ntkit.machine.choice.evidence import Found, Scales, climb
from ntkit.machine.choice.leave_one_out import Targets
from ntkit.machine.choice.search import MOST, PART, Search, part
from ntkit.machine.estimator import FactoredMachine, as_numbers, checked, is_size, refusing
from ntkit.machine.inputs.scaling import AUTO, SCALES, Scale, Scaling
from ntkit.machine.kernels import KernelLike
from ntkit.machine.sessions import computing
from ntkit.machine.stored.fits import chosen_by, variances
from ntkit.machine.stored.system import SOLVERS as STORED
from ntkit.machine.stored.system import TiledSystem
from ntkit.network import Floats, No, Pair

REACH = 10.0  # how far from its value, as a factor, a scale of the kernel is looked for


class GaussianProcess(MultiOutputMixin, RegressorMixin, FactoredMachine):
    """Gaussian process regression: y = m + f(x) + noise, f ~ GP(0, a k), with the mean m of the targets.

        mean = m + a K_*X (a K + s^2)^-1 (y - m),    cov = a K_** - a^2 K_*X (a K + s^2)^-1 K_X*
        log p(y) = -(y - m)^T (a K + s^2)^-1 (y - m) / 2 - log det(a K + s^2) / 2 - n log(2 pi) / 2

    Records that a table holds twice, inputs and target, are one for the choice of scales: as two observations
    of one value they would say that there is no noise.

    With the NNGP of a limit this is the posterior over infinitely wide networks; the ensemble of
    **trained** networks has another covariance: `GradientFlow`. Outputs are independent, of one kernel.

    Parameters
    ----------
    kernel : optional
        As of `KernelRidge`, but by the evidence: ``"auto"`` is the NTK of an infinitely wide ReLU network of
        a depth and sigma_b, or the Gaussian kernel of a length scale, whichever is the likeliest. None: the
        NTK of depth 3 with sigma_b = 0.5, inputs as given.
    noise : float or "ml"
        The variance s^2 of the noise, in units of y^2; ``"ml"``: the one of largest evidence, at least 1e-5
        of the variance of the targets.
    amplitude : float or "ml"
        The factor a of the kernel, in units of y^2; ``"ml"``: the one of largest evidence, of several outputs
        the same multiple of the variance of each.
    normalize_y : bool
        Whether the mean of the targets is subtracted, and outputs count by their variances; else m = 0.
    optimize : sequence of str
        Parameters of the kernel, such as ``("sigma_w", "sigma_b")`` of a limit or of the default kernel,
        to be chosen by the evidence too, within a factor of ten of their values (Nelder-Mead on logarithms).
    depth, scale : optional
        As of `KernelRidge`, by the evidence.
    random_state : int
        Of the draw of 2,000 samples, by which scales are chosen where there are more than 2,500.
    solver, tol, memory
        Of a stored matrix (`TiledKernel`) that does not fit into ``memory``, as of `KernelRidge`: the mean,
        and the deviations of queries by a solution each.
    n_jobs, verbose : int or None, bool
        The number of threads (None: as many as are free, -1: all), and whether a progress bar is shown.

    Attributes
    ----------
    noise_, amplitude_ : float, or array [o] where they differ
        The variance of the noise and the factor of the kernel that were used, in units of y^2.
    kernel_ : Kernel
        The kernel that was used, with the scales found.
    search_, scaling_
        The evidence of what was compared (print it), and the scaling that was taken.
    dual_coef_ : array [n] or [n, o]
        (K + s^2 / a)^-1 (y - m).
    log_marginal_likelihood_ : float
        log p(y), in nats, summed over outputs; of more than 2,500 samples that of the part, and of a table
        that holds records twice that of each once, unless noise and amplitude are given.
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
        kernel: KernelLike = "auto",
        noise: float | Literal["ml"] = "ml",
        *,
        amplitude: float | Literal["ml"] = "ml",
        normalize_y: bool = True,
        optimize: Sequence[str] = (),
        depth: int | None = None,
        scale: Scale = "auto",
        random_state: int = 0,
        solver: Literal["auto", "cholesky", "cg"] = "auto",
        tol: float = 1e-8,
        memory: int | str = "8GiB",
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.kernel = kernel
        self.noise = noise
        self.amplitude = amplitude
        self.normalize_y = normalize_y
        self.optimize = optimize
        self.depth, self.scale, self.random_state = depth, scale, random_state
        self.solver, self.tol, self.memory = solver, tol, memory
        self.n_jobs, self.verbose = n_jobs, verbose

    @computing
    def fit(self, X: ArrayLike, y: ArrayLike) -> GaussianProcess:
        """Solve for the posterior, and choose what is to be chosen."""
        stored, self._system = self._stored(X, y, self.memory), None
        if stored is not None:
            return self._fit_stored(stored[0], as_numbers("y", stored[1]))
        x, y = self._take(X, y, multi_output=True, y_numeric=True)
        self._check()
        y = np.array(as_numbers("y", y))
        centered, scales = self._centered(y)
        index = part(len(x), None, self.random_state) if len(x) > MOST else np.arange(len(x))
        if self._named or self.optimize or None in (scales.noise, scales.amplitude):
            index = copies_once(x, y, index)
        self._find(x, centered, scales, index)
        if self.optimize:
            some = index if len(x) <= MOST else copies_once(x, y, np.arange(len(x)))
            self.kernel_ = self._scales(centered, scales, some)
        known = len(index) < len(x) and None not in (scales.noise, scales.amplitude)
        found, whole = (scales.given(), None) if known else self._evidence(centered, scales, index)
        self.noise_, self.amplitude_ = _one(found.noise), _one(found.amplitude)
        self._ratios = (found.noise / found.amplitude).tolist()
        self._factors = self._solvers(whole)
        self._factor = self._factors[self._ratios[0]]
        columns = [
            self._factors[ratio].solve(column[:, None])
            for ratio, column in zip(self._ratios, centered.T, strict=True)
        ]
        self.dual_coef_ = torch.cat(columns, 1).cpu().numpy().reshape(y.shape)
        if known:
            assert isinstance(self._factor, Cholesky), "many samples are factored"
            squares = (centered * torch.cat(columns, 1).cpu()).sum() / found.amplitude[0]
            spread = self._factor.logdet + len(x) * float((2 * np.pi * found.amplitude[0]).log())
            self.log_marginal_likelihood_ = -0.5 * (float(squares) + centered.shape[1] * spread)
        return self

    def _centered(self, y: np.ndarray) -> tuple[Tensor, Scales]:
        """Return the targets less their means, and the scales that are known or looked for."""
        targets = y.reshape(len(y), -1)
        self._mean = targets.mean(0) if self.normalize_y else np.zeros(targets.shape[1])
        centered = torch.as_tensor(targets - self._mean)
        spread = centered.std(0, correction=0) if self.normalize_y else torch.ones(targets.shape[1])
        scales = Scales(
            None if self.noise == "ml" else float(self.noise),
            None if self.amplitude == "ml" else float(self.amplitude),
            torch.where(spread > 0, spread, 1.0).square().double(),
        )
        return centered, scales

    def _fit_stored(self, system: TiledSystem, y: np.ndarray) -> GaussianProcess:
        """Find noise and amplitude on a part of the samples, and the mean from tiles."""
        self._check()
        if self.optimize:
            raise BadValueError("A stored matrix has no parameters to optimize; give optimize=().")
        centered, scales = self._centered(y)
        found, _ = self._evidence(centered, scales, part(system.n, None, self.random_state, PART))
        self.noise_, self.amplitude_ = _one(found.noise), _one(found.amplitude)
        self._ratios = (found.noise / found.amplitude).tolist()
        coefficients = torch.zeros_like(centered)
        for ratio in set(self._ratios):
            same = [at for at, r in enumerate(self._ratios) if r == ratio]
            coefficients[:, same] = system.solve(centered[:, same], ratio).coefficients
        self._system, self._factor, self._factors = system, None, {}
        self.solver_, self.solver_reason_ = chosen_by(system)
        self.dual_coef_ = coefficients.numpy().reshape(y.shape)
        return self

    def _stored_std(self, X: np.ndarray, noise: bool) -> list[Tensor]:
        """Return the deviations of queries whose kernel is stored, by solutions, for each output."""
        assert self._system is not None
        outputs, found = len(self._ratios), {}
        for ratio in set(self._ratios):
            found[ratio] = variances(self._system, X, ratio)
        noises, amplitudes = (np.broadcast_to(v, outputs) for v in (self.noise_, self.amplitude_))
        pairs = zip(self._ratios, noises, amplitudes, strict=True)
        return [((a * found[ratio]).clamp_min(0) + s2 * noise).sqrt() for ratio, s2, a in pairs]

    def _find(self, x: np.ndarray, y: Tensor, scales: Scales, index: np.ndarray) -> None:
        """Set scaling, kernel and training samples, by the evidence where the kernel is a name."""
        if not self._named:
            self._settle(x, Targets(y))
            return
        one_of("scale", self.scale, SCALES)
        self.precision_ = torch.float64
        choices = AUTO if self.scale == "auto" else (self.scale,)
        compared = starts(str(self.kernel), self.depth, choices)
        binary = None if self.columns_ is None else self.columns_.binary
        flat = x.reshape(len(x), int(np.prod(x.shape[1:])))
        found = climb(flat[index], y[torch.as_tensor(index)], scales, compared, binary, len(x), self.verbose)
        self.search_: Search | None = found.search
        self.scaling_ = Scaling.of(found.candidate.scale, flat, binary=binary)
        self.X_fit_ = self._scaled(x)
        self.kernel_ = found.candidate.made(found.scaling(flat[index]))
        if found.border:
            warnings.warn(
                f"The evidence still grows at the border of where the kernel's scale is looked for: "
                f"{found.candidate}. Give a kernel that suits the targets.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _evidence(self, y: Tensor, scales: Scales, index: np.ndarray) -> tuple[Found, Spectrum | None]:
        """Return noise and amplitude, by a part of many samples; the spectrum of all where there is one."""
        all_of_them = len(index) == len(self.X_fit_)
        gram = self._gram() if all_of_them else self.matrix_of(index)
        whole = spectrum(gram, self.precision_)
        found = scales.best(whole, y[torch.as_tensor(index)].to(gram))
        if found.ends:
            warnings.warn(
                f"The evidence still grows where the noise is {float(found.noise.mean()):.3g}, far above the "
                f"kernel: the targets look like nothing but noise to it.",
                ConvergenceWarning,
                stacklevel=4,
            )
        self.log_marginal_likelihood_ = found.evidence
        return found, whole if all_of_them else None

    def _solvers(self, whole: Spectrum | None) -> dict[float, Shifted | Cholesky]:
        if whole is not None:
            return {ratio: Shifted(whole, ratio) for ratio in self._ratios}
        gram = self._gram()
        return {ratio: cholesky(gram, ratio) for ratio in set(self._ratios)}

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
        one_of("solver", self.solver, STORED)
        positive("tol", self.tol)
        parse_memory(self.memory)
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
    @computing
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
        if self._system is not None:
            if return_cov:
                raise BadValueError("Of a stored matrix there is return_std, not return_cov.")
            stacked = torch.stack(self._stored_std(x, noise), -1).numpy()
            return mean, stacked[..., 0] if mean.ndim == 1 else stacked
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

    def _scales(self, y: Tensor, scales: Scales, index: np.ndarray) -> Kernel:
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
        x, y = self.X_fit_[index], y[torch.as_tensor(index)]

        def kernel(logs: np.ndarray) -> Kernel:
            values = {name: float(np.exp(v)) for name, v in zip(names, logs, strict=True)}
            return first.__sklearn_clone__().set_params(**values)

        def loss(logs: np.ndarray) -> float:
            whole = spectrum(checked(kernel(logs)(x)))
            return -scales.best(whole, y.to(whole.values)).evidence

        reach = np.log(REACH)
        bounds = [(s - reach, s + reach) for s in start]
        options = {"xatol": 1e-2, "fatol": 1e-2 * max(1, y.shape[0] / 100)}
        return kernel(minimize(loss, start, method="Nelder-Mead", bounds=bounds, options=options).x)


def _one(values: Tensor) -> float | Floats:
    """Return a number where all are the same."""
    first = float(values[0])
    return first if bool((values == first).all()) else values.cpu().numpy()
