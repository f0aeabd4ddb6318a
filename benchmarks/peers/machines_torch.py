"""Contestants on one Gram matrix: ntkit, scikit-learn, GPyTorch, and plain linear algebra as the truth."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from machines import ALPHA, TIME, read
from worker import serve

WHO, JOB, FILE, THREADS = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])

Run = Callable[[], object]


def lookup(tt: np.ndarray, qt: np.ndarray, qq: np.ndarray) -> tuple[Callable, np.ndarray, np.ndarray]:
    """Return the kernel as a function of numbered samples, and the numbers of samples and of queries."""
    n, m = len(tt), len(qq)
    known = {(True, True): tt, (False, True): qt, (True, False): qt.T, (False, False): qq}

    def kernel(a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
        b = a if b is None else b
        block = known[bool(a[0, 0] < n), bool(b[0, 0] < n)]
        rows, columns = (v[:, 0].astype(int) - n * bool(v[0, 0] >= n) for v in (a, b))
        some = (len(rows), len(columns)) != block.shape  # a part, by which scales are chosen
        return block[np.ix_(rows, columns)] if some else block

    return kernel, np.arange(float(n))[:, None], np.arange(float(n), float(n + m))[:, None]


def with_ntkit() -> Run:
    import ntkit

    tt, qt, qq, y = read(JOB, FILE)
    if JOB == "ridge":
        return lambda: ntkit.KernelRidge("precomputed", alpha=ALPHA, normalize_y=False).fit(tt, y).predict(qt)
    if JOB == "flow":
        return lambda: ntkit.GradientFlow("precomputed", TIME).fit(tt, y).predict(qt)
    from ntkit.kernel import Kernel

    function, x, q = lookup(tt, qt, qq)

    class Lookup(Kernel):
        def __call__(self, a: object, b: object = None) -> object:
            return torch.as_tensor(function(np.asarray(a), None if b is None else np.asarray(b)))

        def diag(self, a: object) -> object:
            return torch.as_tensor(qq.diagonal().copy())

    settings = {"noise": ALPHA, "amplitude": 1.0, "normalize_y": False}

    def run() -> np.ndarray:
        gp = ntkit.GaussianProcess(Lookup(), **settings).fit(x, y[:, 0])
        return np.stack(gp.predict(q, return_std=True))

    return run


def with_sklearn() -> Run:
    tt, qt, qq, y = read(JOB, FILE)
    if JOB == "ridge":
        from sklearn.kernel_ridge import KernelRidge

        return lambda: KernelRidge(alpha=ALPHA, kernel="precomputed").fit(tt, y).predict(qt)
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Kernel

    function, x, q = lookup(tt, qt, qq)

    class Lookup(Kernel):
        def __init__(self) -> None:
            pass

        def __call__(self, X: np.ndarray, Y: np.ndarray | None = None, eval_gradient: bool = False) -> object:
            return function(X, Y).copy()

        def diag(self, X: np.ndarray) -> np.ndarray:
            return qq.diagonal().copy()

        def is_stationary(self) -> bool:
            return False

    def run() -> np.ndarray:
        gp = GaussianProcessRegressor(Lookup(), alpha=ALPHA, optimizer=None).fit(x, y[:, 0])
        return np.stack(gp.predict(q, return_std=True))

    return run


def with_gpytorch() -> Run:
    import gpytorch

    tt, qt, qq, y = read(JOB, FILE)
    n = len(tt)
    whole = torch.as_tensor(np.block([[tt, qt.T], [qt, qq]]))
    numbers = torch.arange(len(whole), dtype=torch.float64)[:, None]

    class Lookup(gpytorch.kernels.Kernel):
        def forward(
            self, x1: torch.Tensor, x2: torch.Tensor, diag: bool = False, **_: object
        ) -> torch.Tensor:
            a, b = int(x1[0, 0]), int(x2[0, 0])
            block = whole[a : a + len(x1), b : b + len(x2)]
            return block.diagonal() if diag else block

    class Exact(gpytorch.models.ExactGP):
        def __init__(self, x: torch.Tensor, y: torch.Tensor, likelihood: object) -> None:
            super().__init__(x, y, likelihood)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), Lookup()

        def forward(self, x: torch.Tensor) -> object:
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    def run() -> np.ndarray:
        likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
        likelihood.noise = ALPHA
        model = Exact(numbers[:n], torch.as_tensor(y[:, 0]), likelihood).double().eval()
        with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False):
            f = model(numbers[n:])
            return torch.stack([f.mean, f.variance.sqrt()]).numpy()

    return run


def with_linear_algebra() -> Run:
    """Return the formulas themselves."""
    tt, qt, qq, y = read(JOB, FILE)

    def run() -> np.ndarray:
        if JOB == "flow":
            values, vectors = np.linalg.eigh(tt)
            filtered = -np.expm1(-TIME / len(tt) * values) / values
            return qt @ (vectors @ (filtered[:, None] * (vectors.T @ y)))
        solved = np.linalg.solve(tt + ALPHA * np.eye(len(tt)), np.concatenate([y, qt.T], 1))
        mean = qt @ solved[:, : y.shape[1]]
        if JOB == "ridge":
            return mean
        return np.stack([mean[:, 0], np.sqrt(qq.diagonal() - (qt.T * solved[:, y.shape[1] :]).sum(0))])

    return run


def gemm() -> Run:
    """Return a product of two square matrices: the rate that the machine gives."""
    a = torch.randn(2048, 2048)
    return lambda: (a @ a).numpy()


CONTESTANTS = {
    "ntkit": with_ntkit,
    "scikit-learn": with_sklearn,
    "GPyTorch": with_gpytorch,
    "float64": with_linear_algebra,
    "gemm": gemm,
}

if __name__ == "__main__":
    import torch

    torch.set_num_threads(THREADS)
    serve(CONTESTANTS[WHO])
