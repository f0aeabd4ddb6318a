"""A stored matrix as a kernel of the numbers of its samples, for what asks a kernel for its values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError
from ntkit.inputs import Inputs
from ntkit.kernel import Kernel

if TYPE_CHECKING:
    from ntkit.compute.tiled.kernel import TiledKernel


class StoredKernel(Kernel):
    """k(i, j) of the numbers i, j of samples, read from tiles; made by ``tiled.by_number``."""

    def __init__(self, tiled: TiledKernel) -> None:
        if not tiled.symmetric:
            raise BadValueError(
                f"{tiled} is between two sets of samples; a kernel is k(x, x'): build it with x2 left out."
            )
        self.tiled = tiled

    def identity(self) -> dict[str, object]:
        """Return what tells this kernel from another: what its folder is of."""
        return {"of": {**self.tiled.manifest["kernel"], **self.tiled.manifest["data"]}}

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the kernel between samples by their numbers."""
        rows = self._rows(x1)
        columns = rows if x2 is None else self._rows(x2)
        block = torch.from_numpy(self.tiled.array[rows, columns])
        return unflattened(block, self.tiled.outputs)

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the kernel of samples with themselves, by their numbers."""
        if self.tiled.outputs == 1:
            return self.tiled.diag()[torch.from_numpy(self._rows(x))]
        numbers = self._numbers(x)
        return torch.stack([self(numbers[i : i + 1])[0, 0] for i in range(len(numbers))])

    def _numbers(self, x: Inputs) -> np.ndarray:
        numbers = np.asarray(x)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise BadTypeError(
                f"A stored kernel takes numbers of samples, [n] integers, got {numbers.dtype} of shape "
                f"{numbers.shape}."
            )
        n = self.tiled.samples[0]
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < n:
            raise BadValueError(f"The samples of {self.tiled} have numbers 0 to {n - 1}, got {numbers}.")
        return numbers

    def _rows(self, x: Inputs) -> np.ndarray:
        o = self.tiled.outputs
        return (self._numbers(x)[:, None] * o + np.arange(o)).ravel()


def unflattened(block: Tensor, outputs: int) -> Tensor:
    """Return a matrix ``[n o, m o]`` as the kernel has it, ``[n, m, o, o]``; as it is for one output.

    >>> unflattened(torch.arange(8).reshape(4, 2), 2).shape
    torch.Size([2, 1, 2, 2])
    """
    if outputs == 1:
        return block
    n, m = (size // outputs for size in block.shape)
    return block.reshape(n, outputs, m, outputs).permute(0, 2, 1, 3)
