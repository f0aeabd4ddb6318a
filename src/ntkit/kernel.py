"""What a kernel is: a function of two batches that gives a dense block or a diagonal."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from ntkit.errors import NtkitError


class Kernel(ABC):
    """A symmetric positive semi-definite function of two inputs, evaluated on batches.

    ``k(x1, x2)`` is the block with shape ``[n1, n2]`` (or ``[n1, n2, o]``, ``[n1, n2, o, o]`` where a
    kernel has one value per output or per pair of outputs); ``k(x)`` is ``k(x, x)``. ``k.diag(x)`` is
    the diagonal over samples, ``[n]`` (or ``[n, o]``, ``[n, o, o]``), made without the block.
    """

    @abstractmethod
    def __call__(self, x1: Any, x2: Any = None) -> Tensor:
        """Return the block of the kernel between two batches (the second is the first if left out)."""

    @abstractmethod
    def diag(self, x: Any) -> Tensor:
        """Return the kernel of each sample with itself."""

    def normalized(self) -> Kernel:
        """Return k(x, x') / sqrt(k(x, x) k(x', x')), a cosine: 1 on the diagonal (no unit)."""
        return Normalized(self)


class Normalized(Kernel):
    """The cosine of another kernel: k(x, x') / sqrt(k(x, x) k(x', x')).

    Where k has a value per pair of outputs, output o of x is divided by its own norm sqrt(k_oo(x, x)).
    """

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel

    def __call__(self, x1: Any, x2: Any = None) -> Tensor:
        """Return the cosines of two batches."""
        block = self.kernel(x1, x2)
        n1 = self._norms(x1, block.ndim)
        n2 = n1 if x2 is None else self._norms(x2, block.ndim)
        if block.ndim == 4:
            return block / (n1[:, None, :, None] * n2[None, :, None, :])
        return block / (n1[:, None] * n2[None, :])

    def diag(self, x: Any) -> Tensor:
        """Return ones; off the diagonal of outputs, the cosines of a sample's outputs."""
        diag = self.kernel.diag(x)
        if diag.ndim == 3:
            norms = self._norms(x, 4)
            return diag / (norms[:, :, None] * norms[:, None, :])
        self._norms(x, diag.ndim + 1)
        return torch.ones_like(diag)

    def _norms(self, x: Any, block_ndim: int) -> Tensor:
        diag = self.kernel.diag(x)
        if block_ndim == 4:
            diag = torch.diagonal(diag, dim1=-2, dim2=-1)
        bad = (diag <= 0).reshape(diag.shape[0], -1).any(1).nonzero().flatten().tolist()
        if bad:
            raise NtkitError(
                f"A kernel is normalized by k(x, x), which must be positive; it is zero or negative "
                f"for sample(s) {bad[:10]}. Leave those samples out or use the kernel as it is."
            )
        return diag.sqrt()
