"""What an estimator takes as a kernel, and the one that it takes when none is given."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from sklearn.gaussian_process.kernels import Kernel as SklearnKernel
from torch import Tensor, nn

from ntkit.compute.plan import chunks
from ntkit.compute.tiled.kernel import TiledKernel
from ntkit.errors import BadTypeError, BadValueError, nearest
from ntkit.infinite.limit import Limit, LimitKernel, infinite_width
from ntkit.inputs import Inputs, batch_size, take
from ntkit.kernel import Kernel
from ntkit.machine.adapters import FromGPyTorch, FromSklearn
from ntkit.machine.distances import as_vectors
from ntkit.machine.relu_recursion import relu_diagonal, relu_kernels

# What estimators take as a kernel; a name is
# one of NAMES below; None: the NTK of a ReLU network.
KernelLike: TypeAlias = Kernel | Limit | SklearnKernel | Callable[..., ArrayLike] | str | None
NAMES = ("auto", "ntk", "nngp", "rbf", "laplace")  # kernels of vectors, whose scales come from the data


class ReLUKernel(Kernel):
    """The NTK (or NNGP) of an infinitely wide ReLU network on vectors: the estimators' default kernel.

        g_1 = sigma_w / sqrt(d) W x + sigma_b b,    g_{l+1} = sigma_w / sqrt(width) W relu(g_l) + sigma_b b

    with ``depth`` hidden layers, in closed form and in float64: what `infinite_width` reads off such a
    network, which ``limit(d)`` is.

    >>> import numpy as np
    >>> ReLUKernel(depth=1, sigma_b=0.0, kind="nngp")(np.eye(2)).numpy().round(4)
    array([[1.    , 0.3183],
           [0.3183, 1.    ]])
    """

    def __init__(
        self,
        depth: int = 3,
        sigma_w: float = 2**0.5,
        sigma_b: float = 0.5,
        kind: Literal["ntk", "nngp"] = "ntk",
    ) -> None:
        if depth < 1:
            raise BadValueError(f"depth={depth}; a ReLU network has at least one hidden layer.")
        self.depth, self.sigma_w, self.sigma_b = depth, sigma_w, sigma_b
        self.kind: Literal["ntk", "nngp"] = kind
        self._limits: dict[int, Limit] = {}

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the block ``[n1, n2]``."""
        a, b = as_vectors(x1), None if x2 is None or x2 is x1 else as_vectors(x2)
        if b is not None and b.shape[1] != a.shape[1]:
            raise BadValueError(f"x1 has {a.shape[1]} columns, x2 has {b.shape[1]}; expected as many.")
        depth = self._depth()
        return relu_kernels(a, b, [depth], self.sigma_w, self.sigma_b, self.kind)[depth]

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the kernel of each sample with itself, ``[n]``."""
        return relu_diagonal(as_vectors(x), self._depth(), self.sigma_w, self.sigma_b, self.kind)

    def limit(self, d: int) -> Limit:
        """Return the limit of the network with d inputs."""
        if d not in self._limits:
            layers: list[nn.Module] = [nn.Linear(d, 1)]
            for _ in range(self._depth()):  # the limit does not depend on the widths
                layers += [nn.ReLU(), nn.Linear(1, 1)]
            model = nn.Sequential(*layers).double()
            example = torch.zeros(1, d, dtype=torch.float64)
            self._limits[d] = infinite_width(model, example, self.sigma_w, self.sigma_b)
        return self._limits[d]

    def _depth(self) -> int:
        if not isinstance(self.depth, Integral):
            raise BadValueError(f"depth={self.depth!r}; expected a whole number of hidden layers.")
        return int(self.depth)


class FromFunction(Kernel):
    """A function ``k(X1, X2)`` of NumPy arrays as a kernel of ntkit, ``[n1, n2]``."""

    def __init__(self, function: Callable[..., ArrayLike]) -> None:
        self.function = function

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the block."""
        x2 = x1 if x2 is None else x2
        block = self.function(x1, x2)
        if not isinstance(block, Tensor):
            block = np.array(block)
            block = torch.as_tensor(block if block.dtype.kind in "fiub" else block.astype(float))
        block = block.detach()
        n, m = batch_size(x1), batch_size(x2)
        if block.shape[:2] != (n, m):
            raise BadValueError(
                f"The kernel function returned shape {tuple(block.shape)} for batches of {n} and {m} "
                f"samples; it must return [n1, n2]."
            )
        return block

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the diagonal, from small square blocks."""
        parts = [self(take(x, s), take(x, s)) for s in chunks(batch_size(x), 64)]
        return torch.cat([torch.diagonal(part).movedim(-1, 0) for part in parts])


def as_kernel(kernel: KernelLike) -> Kernel:
    """Return what an estimator was given as a kernel of ntkit.

    None is `ReLUKernel`; a limit gives its NTK; kernels of ntkit, scikit-learn and GPyTorch, and functions
    ``k(X1, X2)`` of NumPy arrays, are taken as they are.
    """
    if kernel is None:
        return ReLUKernel()
    if isinstance(kernel, Limit):
        return kernel.ntk
    if isinstance(kernel, Kernel):
        return kernel
    if isinstance(kernel, SklearnKernel):
        return FromSklearn(kernel)
    if type(kernel).__module__.startswith("gpytorch."):
        return FromGPyTorch(kernel)
    if isinstance(kernel, nn.Module):
        raise BadTypeError(
            f"{type(kernel).__name__} is a network, not a kernel; give ntkit.EmpiricalNTK(model) or "
            f"ntkit.infinite_width(model, x[:1])."
        )
    if isinstance(kernel, (str, type)) or not callable(kernel):
        refusal = BadValueError if isinstance(kernel, str) else BadTypeError
        raise refusal(
            f"kernel={kernel!r}; expected {', '.join(map(repr, NAMES))}, 'precomputed', None, a kernel of "
            "ntkit, scikit-learn or GPyTorch, a limit, or a function k(X1, X2)."
            f"{nearest(kernel, (*NAMES, 'precomputed'))}"
        )
    return FromFunction(kernel)


def as_array(x: ArrayLike | Tensor) -> ArrayLike:
    """Return tensors and tiles as an array; leave lists and data frames as they are."""
    if isinstance(x, TiledKernel):
        return x.values().numpy()
    return x.detach().cpu().numpy() if isinstance(x, Tensor) else x


def prior_of(kernel: KernelLike, fitted: Kernel, d: int) -> Kernel | None:
    """Return the NNGP that belongs to an NTK: that of the same limit."""
    if isinstance(kernel, Limit):
        return kernel.nngp
    if isinstance(fitted, ReLUKernel) and fitted.kind == "ntk":
        return fitted.limit(d).nngp
    if isinstance(fitted, LimitKernel) and fitted.kind == "ntk" and fitted.line is None:
        return fitted.limit.nngp
    return None
