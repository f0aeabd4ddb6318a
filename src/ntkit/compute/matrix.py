"""A kernel matrix as the solvers see it: its shape, its products, its diagonal, some of its columns."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.plan import chunks
from ntkit.errors import BadValueError
from ntkit.kernel import Kernel


class Matrix(Protocol):
    """A symmetric matrix ``[n, n]`` in float64 that iterative solvers can use."""

    @property
    def n(self) -> int:
        """The number of rows."""
        ...

    def __matmul__(self, v: Tensor) -> Tensor:
        """Return the product with columns ``[n, r]``."""
        ...

    def diag(self) -> Tensor:
        """Return the diagonal ``[n]``."""
        ...

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns ``[n, len(index)]``."""
        ...


class Dense:
    """A matrix in memory, as float64."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.double()
        self.n = len(values)

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.values @ v

    def diag(self) -> Tensor:
        """Return the diagonal ``[n]``."""
        return self.values.diagonal()

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns ``[n, len(index)]``."""
        return self.values[:, index]


class MatrixFree:
    """The matrix of a kernel on a batch of samples, never formed.

    Products go through ``kernel.operator`` where there is one, else through blocks of rows, recomputed for
    each product, of at most ``budget`` bytes. They are as exact as the kernel's own dtype.

    >>> import torch, ntkit
    >>> k = ntkit.EmpiricalNTK(torch.nn.Linear(3, 1).double())
    >>> x = torch.randn(5, 3, dtype=torch.float64)
    >>> v = torch.ones(5, 2, dtype=torch.float64)
    >>> torch.allclose(MatrixFree(k, x) @ v, k(x) @ v)
    True
    """

    def __init__(self, kernel: Kernel, x: np.ndarray | Tensor, budget: int = 2**30) -> None:
        self.kernel, self.x, self.n = kernel, x, len(x)
        self.rows = max(1, budget // (8 * self.n))
        make = getattr(kernel, "operator", None)
        self.operator = None if make is None else make(x)
        if self.operator is not None and self.operator.shape[0] != self.n:
            raise BadValueError(
                f"The kernel's operator has {self.operator.shape[0]} rows for {self.n} samples; iterative "
                f"solvers take kernels with one number for two samples: outputs='mean' or 'trace'."
            )

    def __matmul__(self, v: Tensor) -> Tensor:
        if self.operator is not None:
            return (self.operator @ v.to(self.operator.device, self.operator.dtype)).to(v)
        return torch.cat([self.kernel(self.x[s], self.x).to(v) @ v for s in chunks(self.n, self.rows)])

    def diag(self) -> Tensor:
        """Return the diagonal ``[n]``."""
        return self.kernel.diag(self.x).double()

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns ``[n, len(index)]``."""
        return self.kernel(self.x, self.x[index.cpu().numpy()]).double()
