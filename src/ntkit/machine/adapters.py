"""One adapter each way: scikit-learn's kernels and GPyTorch's as ours, ours as theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from sklearn.gaussian_process import kernels as sklearn_kernels
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError, NtkitError
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel


class FromSklearn(Kernel):
    """A kernel of scikit-learn as a kernel of ntkit, ``[n1, n2]`` in the dtype of the inputs."""

    def __init__(self, kernel: sklearn_kernels.Kernel) -> None:
        if not isinstance(kernel, sklearn_kernels.Kernel):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise BadTypeError(
                f"Expected a kernel of sklearn.gaussian_process.kernels, got {type(kernel).__name__}."
            )
        self.kernel = kernel

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2"]:
        """Return the block."""
        return _like(self.kernel(_numpy(x1), None if x2 is None else _numpy(x2)), x1)

    def diag(self, x: Inputs) -> Float[Tensor, " n"]:
        """Return the diagonal."""
        return _like(self.kernel.diag(_numpy(x)), x)


class ToSklearn(sklearn_kernels.Kernel):
    """A kernel of ntkit as a kernel of scikit-learn, without hyperparameters of its own.

    It combines with scikit-learn's (``+``, ``*``, a `WhiteKernel`), whose hyperparameters are fitted.
    Estimators that take any callable (`SVC`, `KernelPCA`, `SpectralClustering`) take it too.

    >>> import numpy as np, torch, ntkit
    >>> from ntkit.machine.adapters import ToSklearn
    >>> from sklearn.gaussian_process import GaussianProcessRegressor
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    >>> x = np.random.default_rng(0).normal(size=(20, 2))
    >>> gp = GaussianProcessRegressor(ToSklearn(ntkit.EmpiricalNTK(model)), alpha=1e-3)
    >>> gp.fit(x, x[:, 0]).predict(x[:3]).shape
    (3,)
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, X: np.ndarray, Y: np.ndarray | None = None, eval_gradient: bool = False) -> Any:
        """Return the block as float64; its gradient has no columns, as there is nothing to fit."""
        block = _block(self.kernel(X, Y))
        return (block, np.empty((*block.shape, 0))) if eval_gradient else block

    def diag(self, X: np.ndarray) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return the diagonal as float64."""
        return _block(self.kernel.diag(X), 1)

    def is_stationary(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return False: a tangent kernel depends on where its inputs are."""
        return False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ToSklearn) and self.kernel is other.kernel

    def __repr__(self) -> str:
        return f"ToSklearn({type(self.kernel).__name__})"


class FromGPyTorch(Kernel):
    """A kernel of GPyTorch as a kernel of ntkit, at its present hyperparameters (no gradient)."""

    def __init__(self, kernel: Any) -> None:
        gpytorch = _gpytorch()
        if not isinstance(kernel, gpytorch.kernels.Kernel):
            raise BadTypeError(f"Expected a gpytorch.kernels.Kernel, got {type(kernel).__name__}.")
        self.kernel = kernel

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2"]:
        """Return the block."""
        first = _tensor(x1)
        with torch.no_grad():
            second = first if x2 is None else _tensor(x2)
            return self.kernel(first, second).to_dense()

    def diag(self, x: Inputs) -> Float[Tensor, " n"]:
        """Return the diagonal."""
        with torch.no_grad():
            return self.kernel(_tensor(x), diag=True)


def to_gpytorch(kernel: Kernel, matrix_free: bool = False) -> Any:
    """Return a kernel of ntkit as a ``gpytorch.kernels.Kernel``, without hyperparameters of its own.

    Wrap it in GPyTorch's ``ScaleKernel`` for a scale that is fitted. With ``matrix_free=True`` it hands
    out ``kernel.operator`` (kernels of a network with scalar values), so that GPyTorch's iterative
    solvers never form the matrix. Inputs are ``[n, d]``, without batch axes before the samples.
    """
    gpytorch = _gpytorch()
    if matrix_free and not hasattr(kernel, "operator"):
        raise BadValueError(f"{type(kernel).__name__} has no operator; use matrix_free=False.")

    class ToGPyTorch(gpytorch.kernels.Kernel):
        has_lengthscale = False

        def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **params: object) -> Any:
            if x1.ndim != 2 or x2.ndim != 2:
                raise BadValueError(
                    f"Inputs of shapes {tuple(x1.shape)} and {tuple(x2.shape)}; expected [n, d] without "
                    f"batch axes."
                )
            if torch.is_grad_enabled() and (x1.requires_grad or x2.requires_grad):
                raise BadValueError(
                    "The inputs require a gradient, by which the kernel of a network is not differentiable. "
                    "Give x.detach(), or call the model under torch.no_grad()."
                )
            same = x1.shape == x2.shape and torch.equal(x1, x2)
            if diag:
                return kernel.diag(x1) if same else torch.diagonal(kernel(x1, x2))
            if matrix_free:
                return kernel.operator(x1, None if same else x2)  # pyright: ignore[reportAttributeAccessIssue]
            return kernel(x1, None if same else x2)

    return ToGPyTorch()


def _gpytorch() -> Any:
    try:
        import gpytorch
    except ImportError as error:
        raise NtkitError("GPyTorch is not installed; pip install gpytorch.") from error
    return gpytorch


def _numpy(x: Inputs) -> np.ndarray:
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)


def _tensor(x: Inputs) -> Tensor:
    """Return inputs as a tensor; arrays are copied, as torch takes no read-only ones."""
    return x if isinstance(x, Tensor) else torch.as_tensor(np.array(x))


def _like(value: Any, like: Any) -> Tensor:
    """Return values on the device and in the floating dtype of the inputs, float64 for other inputs."""
    like = _tensor(like[:1])
    dtype = like.dtype if like.is_floating_point() else torch.float64
    return _tensor(value).to(like.device, dtype)


def _block(value: Tensor, ndim: int = 2) -> np.ndarray:
    if value.ndim != ndim:
        raise BadValueError(
            f"scikit-learn needs one number for two samples, the kernel gives {tuple(value.shape[ndim:])}; "
            f"use outputs='mean' or 'trace'."
        )
    return value.detach().cpu().double().numpy()
