"""Random features: a kernel as the inner product of a finite, random map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.gaussian_process.kernels import RBF, Matern
from sklearn.metrics.pairwise import laplacian_kernel
from sklearn.utils.validation import validate_data
from torch import nn

from ntkit.compute.plan import chunks
from ntkit.compute.progress import progress
from ntkit.errors import BadValueError, one_of, positive, real, whole
from ntkit.kernel import Kernel
from ntkit.machine.adapters import FromSklearn
from ntkit.machine.estimator import as_numbers, refusing
from ntkit.machine.feature_maps import (
    NTKFeatures,
    arc_cosine,
    arc_cosine_kernel,
    cauchy_kernel,
    fourier,
    linear,
)
from ntkit.machine.kernels import FromFunction, ReLUKernel, as_array
from ntkit.machine.sessions import Threads, computing
from ntkit.machine.solving.densities import frequencies
from ntkit.machine.unfitted import check_fitted
from ntkit.network import Floats

FOURIER = ("gaussian", "laplacian", "cauchy", "matern")
KINDS = (*FOURIER, "arccos0", "arccos1", "ntk")
BATCH = 2**12  # rows of which a bar tells
CHECKED = 256  # training samples on which the error is measured


@dataclass(frozen=True)
class FeatureError:
    """How far features are from the kernel on a batch: |Z Z^T - K| over |K| (Frobenius), and the maximum."""

    relative: float
    largest: float


class RandomFeatures(Threads, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Random features of a kernel: k(x, x') ~ phi(x) . phi(x'), phi(x) in R^m.

        k(x, x') = E_w [phi(w, x) phi(w, x')],    phi(x) = (phi(w_1, x), ..., phi(w_m, x)) / sqrt(m)

    Parameters
    ----------
    kind : str
        ``"gaussian"`` exp(-|x - x'|^2 / 2), ``"laplacian"`` exp(-|x - x'|_1), ``"cauchy"`` prod_i 1 /
        (1 + (x_i - x'_i)^2), ``"matern"`` of smoothness ``nu``, all of x / ``lengthscale``: cosines and sines
        of m / 2 frequencies. ``"arccos0"``, ``"arccos1"``: steps and ReLUs, the arc-cosine kernels
        1 - theta / pi and |x| |x'| (sin theta + (pi - theta) cos theta) / pi. ``"ntk"``: the NTK of an
        infinitely wide ReLU network with ``depth`` hidden layers, in the scales of `ReLUKernel`.
    m : int
        The number of features (even for cosines and sines).
    seed : int, optional
        Another name of ``random_state``, which it overrides.
    draw : {"iid", "orthogonal", "sobol"}
        Independent frequencies, orthogonal ones (not for the Laplacian and Cauchy kernels), or
        quasi-random ones.
    lengthscale, nu : float
        The length scale of the kernels of x - x', and the smoothness of ``"matern"``.
    depth, sigma_w, sigma_b
        Of ``"ntk"``, as of `ReLUKernel`.
    random_state : int
        The seed of the draw.
    n_jobs, verbose : int or None, bool
        The number of threads (None: as many as are free, -1: all), and whether a progress bar is shown.

    Attributes
    ----------
    error_ : FeatureError
        Against the exact kernel, on the first 256 training samples.

    Raises
    ------
    NtkitError
        A kind or draw that is not known, an impossible number of features.

    References
    ----------
    Ravikumar (2024), sections 2, 2.3-2.4 and 6; Rahimi, Recht (2008); Cho, Saul (2009).

    Examples
    --------
    >>> import numpy as np, ntkit
    >>> x = np.random.default_rng(0).normal(size=(50, 3))
    >>> z = ntkit.RandomFeatures("gaussian", 2000, seed=0).fit_transform(x)
    >>> exact = np.exp(-((x[:, None] - x) ** 2).sum(-1) / 2)
    >>> z.shape, bool(np.abs(z @ z.T - exact).max() < 0.1)
    ((50, 2000), True)
    """

    n_features_in_: int

    def __init__(
        self,
        kind: str = "gaussian",
        m: int = 1000,
        seed: int | None = None,
        *,
        draw: str = "iid",
        lengthscale: float = 1.0,
        nu: float = 1.5,
        depth: int = 3,
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.5,
        random_state: int = 0,
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.kind, self.m, self.seed, self.draw, self.lengthscale = kind, m, seed, draw, lengthscale
        self.random_state, self.n_jobs, self.verbose = random_state, n_jobs, verbose
        self.nu, self.depth, self.sigma_w, self.sigma_b = nu, depth, sigma_w, sigma_b

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> RandomFeatures:
        """Draw the features for inputs of this dimension, and measure their error."""
        with refusing("X [n, d] of finite numbers"):
            x = np.asarray(validate_data(self, as_array(X), dtype=np.float64))  # pyright: ignore[reportArgumentType]
        self._check_session()
        one_of("kind", self.kind, KINDS)
        real("m", self.m)
        whole("random_state" if self.seed is None else "seed", self._seed, 0)
        least = 4 if self.kind == "ntk" else 1
        if self.m != int(self.m) or self.m < least or (self.kind in FOURIER and self.m % 2):
            even = ", even, for cosines come with sines" if self.kind in FOURIER else ""
            raise BadValueError(f"m={self.m}; expected a number of features >= {least}{even}.")
        for name in ("lengthscale", "nu"):
            positive(name, getattr(self, name))
        whole("depth", self.depth)
        for name in ("sigma_w", "sigma_b"):
            real(name, getattr(self, name))
        self._map = self._draw(x.shape[1], int(self.m))
        self._n_features_out = int(self.m)
        self.error_ = self.error(x[:CHECKED])
        return self

    if TYPE_CHECKING:  # TransformerMixin has it, without a type

        def fit_transform(self, X: ArrayLike, y: ArrayLike | None = None, **fit_params: object) -> Floats: ...  # noqa: D102

    @computing
    def transform(self, X: ArrayLike) -> Float[Floats, "n m"]:
        """Return the features ``[n, m]``."""
        check_fitted(self)
        x = self._queries(X)
        if not self.verbose:
            return self._features(x)
        out = np.empty((len(x), int(self.m)))
        with progress("Features", len(x)) as step:
            for s in chunks(len(x), BATCH):
                out[s] = self._features(x[s])
                step(s.stop - s.start)
        return out

    def _queries(self, X: ArrayLike) -> np.ndarray:
        with refusing("X [n, d] of finite numbers, with the columns that fit had"):
            x = validate_data(self, as_array(X), reset=False, dtype=np.float64)  # pyright: ignore[reportArgumentType]
        return np.asarray(x)

    def error(self, X: ArrayLike) -> FeatureError:
        """Return how far the features' inner products are from the exact kernel on a batch."""
        x = self._queries(X)
        z, exact = self._features(x), self.kernel()(x).numpy()
        off = z @ z.T - exact
        scale = float(np.linalg.norm(exact)) or 1.0
        return FeatureError(float(np.linalg.norm(off)) / scale, float(np.abs(off).max()))

    def kernel(self) -> Kernel:
        """Return the exact kernel that the features stand for."""
        scale = self.lengthscale
        if self.kind == "gaussian":
            return FromSklearn(RBF(scale))
        if self.kind == "matern":
            return FromSklearn(Matern(scale, nu=self.nu))
        if self.kind == "laplacian":
            return FromFunction(lambda a, b: laplacian_kernel(a, b, gamma=1 / scale))
        if self.kind == "cauchy":
            return FromFunction(cauchy_kernel(scale))
        if self.kind == "ntk":
            return ReLUKernel(self.depth, self.sigma_w, self.sigma_b)
        return FromFunction(arc_cosine_kernel(int(self.kind[-1])))

    def to_module(self, coef: ArrayLike | None = None, intercept: ArrayLike = 0.0) -> nn.Sequential:
        """Return the features as a torch network, with a linear layer on top where ``coef`` is given.

            f(x) = sum_j coef_j phi(w_j, x) + intercept

        ``coef`` ``[m]`` or ``[o, m]`` as scikit-learn's linear models have it: with ``Ridge().fit(Z, y)`` the
        two-layer network of its ``coef_`` and ``intercept_``, in float64, whose weights can be trained on.
        """
        check_fitted(self)
        layers = list(self._draw(self.n_features_in_, int(self.m)))
        if coef is not None:
            weight = np.atleast_2d(as_numbers("coef", coef))
            if weight.shape[1:] != (int(self.m),) or not np.isfinite(weight).all():
                raise BadValueError(
                    f"coef={coef!r:.100} has shape {weight.shape}; expected finite ones, [o, {int(self.m)}]."
                )
            bias = np.broadcast_to(np.asarray(intercept, dtype=float), len(weight)).copy()
            layers.append(linear(weight, bias))
        return nn.Sequential(*layers)

    @property
    def _seed(self) -> int:
        return self.random_state if self.seed is None else self.seed

    def _features(self, X: ArrayLike) -> np.ndarray:
        with torch.no_grad():
            return self._map(torch.as_tensor(np.array(X))).numpy()

    def _draw(self, d: int, m: int) -> nn.Sequential:
        if self.kind == "ntk":
            features = NTKFeatures(d, m, self.depth, self.sigma_w, self.sigma_b, self.draw, self._seed)
            return nn.Sequential(features)
        if self.kind in FOURIER:
            w = frequencies(self.kind, d, m // 2, self.draw, self._seed, self.nu)
            return fourier(w / self.lengthscale)
        return arc_cosine(frequencies("gaussian", d, m, self.draw, self._seed), int(self.kind[-1]))
