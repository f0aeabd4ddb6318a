"""Ridge regression on features for a million rows, streamed over the data."""

from __future__ import annotations

import sys
from typing import Literal, cast

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from torch import Tensor, nn

from ntkit.compute.cg import conjugate_gradients
from ntkit.compute.out_of_core import costs
from ntkit.compute.plan import format_bytes, parse_memory
from ntkit.compute.tiled.samples import Samples
from ntkit.errors import BadTypeError, BadValueError, nearest, one_of, positive, whole
from ntkit.inputs import Inputs
from ntkit.machine.estimator import as_numbers, is_size
from ntkit.machine.features import CHECKED, FeatureError, RandomFeatures
from ntkit.machine.large.moments import Moments, Rows, StreamedGram, all_moments, as_rows
from ntkit.machine.large.nystrom_features import NystromFeatures, rows_at
from ntkit.machine.sessions import Threads, computing
from ntkit.machine.solving.minimum import minimum
from ntkit.machine.stored.system import in_words
from ntkit.machine.unfitted import check_fitted
from ntkit.network import Floats

BATCH = 2**13  # rows whose features are in memory at once
RANGE = (1e-12, 1e2)  # of the largest eigenvalue: where the best penalty is looked for
DRAWN = 8  # rows for each feature, of which the preconditioner is made


class FeatureRidge(Threads, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression on features of a kernel: its approximation for more rows than a matrix has room for.

        w = argmin sum_n |y_n - c - w . z(x_n)|^2 + alpha |w|^2,    f(x) = c + w . z(x)
        (Z^T Z + alpha) w = Z^T (y - c)

    with the mean c of the targets. Rows are read a batch at a time: arrays, memory maps, zarr arrays,
    datasets; nothing of size n is made but the targets.

    Parameters
    ----------
    features : RandomFeatures or NystromFeatures, optional
        The map z; it is drawn anew for the data. None: ``RandomFeatures("ntk", 4096)``.
    alpha : float or "gcv"
        The penalty in units of the kernel, as of `KernelRidge`; ``"gcv"`` takes the one of least generalized
        cross-validation error, by all eigenvalues of Z^T Z (``"normal"`` only).
    solver : {"auto", "normal", "cg"}
        ``"normal"``: Z^T Z in one pass over the data, its products in ``dtype``, their sums in float64, and
        a Cholesky factor. ``"cg"``: conjugate gradients, a pass for each iteration, with the factor of
        Z^T Z of a few rows as preconditioner (with `NystromFeatures` this is Falkon). ``"auto"``:
        ``"normal"`` where Z^T Z fits into memory.
    tol, max_iter : float, int
        Of ``"cg"``: the relative residual and the most passes.
    dtype : {"float32", "float64"}
        In which features are computed.
    memory : int or str
        Bytes that may hold Z^T Z, its factor and a batch.
    random_state : int
        The seed of the rows on which the features are compared with the kernel, and of the preconditioner.
    n_jobs, verbose : int or None, bool
        Processes of joblib that share the rows of ``"normal"`` (None: this one, with its threads; under
        ``joblib.parallel_config`` those of Dask or Ray); whether the time expected and a bar are shown.

    Attributes
    ----------
    coef_ : array [m] or [m, o]
        The weights w.
    intercept_ : array [] or [o]
        The mean c.
    alpha_ : float
        The penalty that was used.
    error_ : FeatureError
        How far z(x) . z(x') is from the kernel, on 256 rows drawn from the data.
    solver_, solver_reason_, n_iter_
        The solver, why, with the time that was expected; the passes of ``"cg"``, else 1.

    Raises
    ------
    NtkitError
        Features or an alpha that are not known, rows that are not finite, too little memory.

    References
    ----------
    Zandieh et al., "Scaling neural tangent kernels via sketching and random features" (2021); Rudi,
    Carratino, Rosasco, "FALKON: An optimal large scale kernel method" (2017); Golub, Heath, Wahba (1979) for
    GCV.

    Examples
    --------
    >>> import numpy as np, ntkit
    >>> X = np.random.default_rng(0).normal(size=(5000, 3))
    >>> y = np.sin(X.sum(1))
    >>> model = ntkit.FeatureRidge(ntkit.RandomFeatures("gaussian", 500)).fit(X[:4000], y[:4000])
    >>> bool(model.score(X[4000:], y[4000:]) > 0.99), model.error_.relative < 0.2
    (True, True)
    """

    coef_: Floats
    intercept_: Floats
    alpha_: float
    error_: FeatureError
    solver_: str
    solver_reason_: str
    n_iter_: int

    def __init__(
        self,
        features: RandomFeatures | NystromFeatures | None = None,
        alpha: float | str = "gcv",
        *,
        solver: Literal["auto", "normal", "cg"] = "auto",
        tol: float = 1e-6,
        max_iter: int = 100,
        dtype: Literal["float32", "float64"] = "float32",
        memory: int | str = "4GiB",
        random_state: int = 0,
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.features, self.alpha, self.solver, self.tol, self.max_iter = (
            features,
            alpha,
            solver,
            tol,
            max_iter,
        )
        self.dtype: Literal["float32", "float64"] = dtype
        self.memory, self.random_state, self.n_jobs, self.verbose = memory, random_state, n_jobs, verbose

    def fit(self, X: Inputs, y: ArrayLike) -> FeatureRidge:
        """Draw the features, sum over the rows, solve."""
        self._check()
        samples = Samples(X, "X")
        targets = np.array(as_numbers("y", y))
        if len(targets) != len(samples) or targets.ndim > 2 or not np.isfinite(targets).all():
            raise BadValueError(
                f"y has shape {targets.shape} for {len(samples)} rows; expected a finite target for each, "
                "[n] or [n, o]."
            )
        rng = np.random.default_rng(self.random_state)
        some = np.sort(rng.choice(len(samples), min(CHECKED, len(samples)), replace=False))
        self._draw(samples, rows_at(samples, some).numpy())
        flat = torch.as_tensor(targets.reshape(len(targets), -1))
        mean = flat.mean(0)
        rows = Rows(samples, flat - mean, self._module, getattr(torch, self.dtype), BATCH)
        self._shape, self._mean = targets.shape[1:], mean
        self._choose(rows)
        if self.verbose:
            print(f"ntkit: {len(rows):,} rows, {self.solver_}: {self.solver_reason_}", file=sys.stderr)
        w = self._normal(rows) if self.solver_ == "normal" else self._iterated(rows)
        self.coef_ = w.numpy().reshape(-1, *self._shape)
        self.intercept_ = mean.numpy().reshape(self._shape)
        return self

    def predict(self, X: Inputs) -> Float[Floats, " m *o"]:
        """Return f at rows, ``[m]`` or ``[m, o]``."""
        check_fitted(self)
        samples, dtype = Samples(X, "X"), getattr(torch, self.dtype)
        rows = Rows(samples, torch.empty(len(samples), 0), self._module, dtype, BATCH)
        w = torch.as_tensor(self.coef_.reshape(len(self.coef_), -1)).to(dtype)
        width = as_rows(samples.take(slice(0, 1))).shape[1]
        if width != self.n_features_in_:
            raise BadValueError(f"X has {width} columns; expected {self.n_features_in_}, as in fit.")
        parts = [z @ w for _, z in rows.batches(slice(0, len(samples)))]
        return torch.cat(parts).double().numpy().reshape(len(samples), *self._shape) + self.intercept_

    def _check(self) -> None:
        self._check_session()
        given = cast(object, self.features)  # whatever a user has set
        if given is not None and not isinstance(given, RandomFeatures | NystromFeatures):
            raise BadTypeError(
                f"features={self.features!r:.80}; expected ntkit.RandomFeatures(kind, m), "
                "ntkit.NystromFeatures(kernel, m) or None."
            )
        if not is_size(self.alpha) and self.alpha != "gcv":
            raise BadValueError(
                f"alpha={self.alpha!r}; expected a number >= 0 or 'gcv'.{nearest(self.alpha, ('gcv',))}"
            )
        one_of("solver", self.solver, ("auto", "normal", "cg"))
        one_of("dtype", self.dtype, ("float32", "float64"))
        positive("tol", self.tol)
        whole("max_iter", self.max_iter)
        whole("random_state", self.random_state, 0)

    def _draw(self, samples: Samples, some: np.ndarray) -> None:
        """Draw the features for this data, and compare them with the kernel."""
        if isinstance(self.features, NystromFeatures):
            self.features_ = NystromFeatures(**self.features.get_params(deep=False)).fit(samples.x)
            z, exact = self.features_.transform(some), self.features_.kernel_(some).double().numpy()
            off = z @ z.T - exact
            self.error_ = FeatureError(
                float(np.linalg.norm(off) / (np.linalg.norm(exact) or 1.0)), float(np.abs(off).max())
            )
        else:
            given = self.features or RandomFeatures("ntk", 4096)
            self.features_ = RandomFeatures(**given.get_params(deep=False)).fit(some)
            self.error_ = self.features_.error_
        self.n_features_in_ = some.shape[1]
        module = self.features_.to_module()
        self._module: nn.Module = module.to(getattr(torch, self.dtype))

    def _choose(self, rows: Rows) -> None:
        """Choose the solver, and say why and how long it is expected to take."""
        m = rows.of(slice(0, 1)).shape[1]
        flops = 2.0 * sum(p.numel() for p in (*self._module.parameters(), *self._module.buffers()))
        cost = costs.normal_equations(len(rows), m, rows.y.shape[1], flops)
        budget, machine = parse_memory(self.memory), costs.this_machine(torch.get_num_threads())
        fits = cost.held <= budget
        size = f"{m} features take {format_bytes(cost.held)} of {format_bytes(budget)}"
        if self.solver == "normal" and not fits:
            raise BadValueError(f"solver='normal': {size}; give memory=, or solver='cg'.")
        self.solver_ = self.solver if self.solver != "auto" else ("normal" if fits else "cg")
        if self.solver_ == "cg" and self.alpha == "gcv":
            raise BadValueError(f"alpha='gcv' needs Z^T Z, and solver is 'cg' ({size}); give a number.")
        passes = 1.0
        if self.solver_ == "cg":
            passes = 20.0
            cost = costs.Cost(flops=passes * len(rows) * (flops + 4.0 * m * rows.y.shape[1]))
        seconds = cost.seconds(machine, getattr(torch, self.dtype).itemsize)
        how = "one pass" if passes == 1 else f"about {passes:.0f} passes"
        self.solver_reason_ = f"{size}; {how}, about {in_words(seconds)}"

    @computing
    def _normal(self, rows: Rows) -> Tensor:
        m = rows.of(slice(0, 1)).shape[1]
        jobs = 1 if self.n_jobs is None else self.n_jobs
        if jobs == -1:
            import joblib

            jobs = joblib.cpu_count()
        sums = all_moments(rows, m, jobs, self.verbose)
        self.n_iter_ = 1
        if not bool(sums.cross.isfinite().all()):
            raise BadValueError("X holds NaN or infinite values; leave these rows out.")
        gram = sums.whole()
        if isinstance(self.alpha, str):
            return self._by_gcv(gram, sums, len(rows))
        self.alpha_ = float(self.alpha)
        return solved(gram, sums.cross, self.alpha_)

    def _by_gcv(self, gram: Tensor, sums: Moments, n: int) -> Tensor:
        """Return the weights at the penalty of least GCV error n |r|^2 / (n - tr H)^2."""
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp_min(0)
        inside = vectors.T @ sums.cross

        def error(alpha: float) -> float:
            d = 1 / (values + alpha)
            fitted = (inside.square() * ((2 * d - values * d.square())[:, None])).sum(0)
            rest = (sums.square - fitted).clamp_min(0) / sums.square.clamp_min(1e-300)
            return float(n * rest.sum() / (n - float((values * d).sum())) ** 2)

        top = float(values[-1]) or 1.0
        least = max(RANGE[0], torch.finfo(getattr(torch, self.dtype)).eps)  # below it there is only rounding
        low, high = (float(np.log(share * top)) for share in (least, RANGE[1]))
        self.alpha_ = float(np.exp(minimum(lambda a: error(float(np.exp(a))), low, high, 1e-2)[0]))
        return vectors @ (inside / (values + self.alpha_)[:, None])

    @computing
    def _iterated(self, rows: Rows) -> Tensor:
        self.alpha_ = float(self.alpha)
        gram = StreamedGram(rows, rows.of(slice(0, 1)).shape[1])
        few = slice(0, min(len(rows), DRAWN * gram.n))
        start = int(np.random.default_rng(self.random_state).integers(0, len(rows) - few.stop + 1))
        part = Moments.zero(gram.n, 0)
        for at, z in rows.batches(slice(start, start + few.stop)):
            part.add(z, rows.y[at][:, :0])
        work = part.whole().mul_(len(rows) / few.stop)
        work.diagonal().add_(self.alpha_ + 1e-7 * float(work.diagonal().mean()))
        factor = torch.linalg.cholesky(work)
        found = conjugate_gradients(
            gram,
            gram.cross(),
            self.alpha_,
            precondition=lambda r: torch.cholesky_solve(r, factor),
            tol=self.tol,
            max_iter=self.max_iter,
        )
        self.n_iter_ = found.iterations
        return found.x


def solved(gram: Tensor, b: Tensor, alpha: float) -> Tensor:
    """Return (G + alpha)^-1 b; G is overwritten. Where rounding spoils a factor, by eigenvalues."""
    gram.diagonal().add_(alpha)
    factor, info = torch.linalg.cholesky_ex(gram)
    if not int(info):
        return torch.cholesky_solve(b, factor)
    values, vectors = torch.linalg.eigh(gram)
    floor = len(values) * torch.finfo(torch.float32).eps * float(values[-1])
    inverse = torch.where(values > floor, 1 / values.clamp_min(1e-300), 0.0)
    return vectors @ (inverse[:, None] * (vectors.T @ b))
