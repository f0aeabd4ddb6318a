"""How far two ways to the same number may differ: by the lowest precision that a network computes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Lowered(TorchDispatchMode):
    """Notes while a network runs the lowest precision that some of its numbers are brought down to."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Run the operation, and compare the precision of what goes in and comes out."""
        result = func(*args, **(kwargs or {}))
        epsilons = [_epsilon(t.dtype) for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        finest = min(filter(None, epsilons), default=0.0)
        for t in pytree.tree_leaves(result):
            if isinstance(t, Tensor) and 0 < finest < _epsilon(t.dtype) > _epsilon(self.dtype):
                self.dtype = t.dtype.to_real()
        return result


def _epsilon(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative difference that rounding may make in a network of many operations."""
    eps = torch.finfo(dtype).eps
    return 1e4 * eps if eps < 1e-6 else 2 * eps**0.5
