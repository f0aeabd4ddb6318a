"""The tangent kernel of a large network from random projections of its features."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from ntkit.errors import BadTypeError, whole
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel


class Sketched(Kernel):
    """An unbiased estimate of a tangent kernel (mean over outputs): the Gram matrix of J S.

        k(x, x') ~ (1/o) sum_o (J(x) S)_o . (J(x') S)_o,    S [P, m],  E[S S^T] = I

    No block costs more than features ``[n, o m]`` and one product, however many weights there are.

    >>> import torch, ntkit
    >>> k, x = ntkit.EmpiricalNTK(torch.nn.Linear(3, 2)), torch.randn(4, 3)
    >>> Sketched(k, 64)(x).shape
    torch.Size([4, 4])
    """

    def __init__(self, kernel: Kernel, size: int, seed: int = 0) -> None:
        if not isinstance(kernel, EmpiricalNTK):
            raise BadTypeError(
                f"sketch= is for the tangent kernels of networks, not for {type(kernel).__name__}; "
                f"leave it out."
            )
        self.kernel, self.size, self.seed = kernel, whole("sketch", size), seed

    def features(self, x: Inputs) -> Float[Tensor, "n f"]:
        """Return J S / sqrt(o) of all outputs, ``[n, o m]``."""
        sketch = self.kernel.features(x, self.size, seed=self.seed)
        return sketch.flatten(1) / sketch.shape[1] ** 0.5

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the block ``[n1, n2]``."""
        first = self.features(x1)
        return first @ (first if x2 is None else self.features(x2)).T

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the kernel of each sample with itself, ``[n]``."""
        return self.features(x).square().sum(1)
