"""The span of a few samples' kernel functions as features."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from torch import Tensor, nn

from ntkit.compute.cholesky import cholesky
from ntkit.compute.matrix import MatrixFree
from ntkit.compute.pivoted import pivoted_cholesky
from ntkit.compute.tiled.samples import Samples
from ntkit.errors import whole
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel
from ntkit.machine.kernels import KernelLike, as_kernel
from ntkit.machine.large.moments import as_rows
from ntkit.machine.unfitted import check_fitted
from ntkit.network import Floats

CANDIDATES = 4  # samples among which a landmark is chosen


class NystromFeatures(TransformerMixin, BaseEstimator):
    """Features whose inner products are the Nystrom approximation of a kernel from a few of the samples.

        z(x) = L^-1 k(S, x),    k(S, S) = L L^T,    z(x) . z(x') = k(x, S) k(S, S)^-1 k(S, x')

    The landmarks S are pivots of a randomly pivoted Cholesky factorization of 4 m samples drawn from all.

    Parameters
    ----------
    kernel : optional
        What the estimators take as a kernel, besides names: of ntkit, scikit-learn, GPyTorch, a limit, a
        function; None: `ReLUKernel`.
    m : int
        The number of landmarks, at most that of the samples.
    random_state : int
        The seed of the draws.

    Attributes
    ----------
    landmarks_ : array [r, d]
        S; fewer than m where the kernel matrix of the samples drawn has a smaller rank.
    kernel_ : Kernel
        The kernel.

    References
    ----------
    Williams, Seeger (2001); Rudi, Carratino, Rosasco, "FALKON" (2017); Chen et al., "Randomly pivoted
    Cholesky" (2022).

    Examples
    --------
    >>> import numpy as np, ntkit
    >>> x = np.random.default_rng(0).normal(size=(300, 2))
    >>> features = ntkit.NystromFeatures(m=100).fit(x)
    >>> z, k = features.transform(x), features.kernel_(x).numpy()
    >>> bool(np.linalg.norm(z @ z.T - k) < 1e-2 * np.linalg.norm(k))
    True
    """

    landmarks_: Floats
    kernel_: Kernel

    def __init__(self, kernel: KernelLike = None, m: int = 1000, *, random_state: int = 0) -> None:
        self.kernel, self.m, self.random_state = kernel, m, random_state

    def fit(self, X: Inputs, y: ArrayLike | None = None) -> NystromFeatures:
        """Choose the landmarks."""
        whole("m", self.m)
        whole("random_state", self.random_state, 0)
        samples = Samples(X, "X")
        self.kernel_ = as_kernel(self.kernel)
        rng = np.random.default_rng(self.random_state)
        count = min(len(samples), CANDIDATES * self.m)
        some = np.sort(rng.choice(len(samples), count, replace=False))
        x = rows_at(samples, some)
        low = pivoted_cholesky(MatrixFree(self.kernel_, x), min(self.m, count), self.random_state)
        self.landmarks_ = x[low.pivots].numpy()
        self.n_features_in_ = self.landmarks_.shape[1]
        self._map = NystromMap(self.kernel_, x[low.pivots])
        return self

    def transform(self, X: Inputs) -> Float[Floats, "n r"]:
        """Return the features ``[n, r]``."""
        check_fitted(self)
        return self._map(as_rows(X)).numpy()

    def to_module(self) -> nn.Module:
        """Return the map as a torch module."""
        check_fitted(self)
        return self._map


class NystromMap(nn.Module):
    """x -> L^-1 k(S, x)."""

    def __init__(self, kernel: Kernel, landmarks: Tensor) -> None:
        super().__init__()
        self.kernel = kernel
        self.register_buffer("landmarks", landmarks)
        found = cholesky(kernel(landmarks), what="kernel matrix of the landmarks")
        self.register_buffer("factor", found.factor)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the features of rows."""
        landmarks, factor = (self.get_buffer(name).double() for name in ("landmarks", "factor"))
        block = self.kernel(x.double(), landmarks).double()
        return torch.linalg.solve_triangular(factor, block.T, upper=False).T.to(x)


def rows_at(samples: Samples, index: np.ndarray) -> Tensor:
    """Return some rows of samples, in rising order, in float64; what lies between is not kept."""
    parts = []
    for start in range(0, len(samples), 2**16):
        inside = index[(index >= start) & (index < start + 2**16)]
        if len(inside):
            stop = min(len(samples), start + 2**16)
            parts.append(as_rows(samples.take(slice(start, stop)))[torch.as_tensor(inside - start)].double())
    return torch.cat(parts)
