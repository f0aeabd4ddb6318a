"""Vectors of one row per step, in memory or on disk."""

from __future__ import annotations

import os
import tempfile
import weakref

import numpy as np
import torch
from torch import Tensor


class StepVectors:
    """Vectors ``[P]`` of a dtype, one for each step; on disk where they outgrow a budget of bytes."""

    def __init__(self, count: int, size: int, budget: int, dtype: torch.dtype = torch.float64) -> None:
        kind = np.float64 if dtype == torch.float64 else np.float32
        if count * size * np.dtype(kind).itemsize <= budget:
            self._rows = np.zeros((count, size), kind)
        else:
            handle, name = tempfile.mkstemp(prefix="ntkit-rows-")
            os.close(handle)
            self._rows = np.memmap(name, kind, "w+", shape=(count, size))
            weakref.finalize(self, os.unlink, name)  # copies in other processes read the same file
        self._given: set[int] = set()

    def __getitem__(self, k: int) -> Tensor:
        return torch.from_numpy(np.array(self._rows[k]))

    def __setitem__(self, k: int, value: Tensor) -> None:
        self._rows[k] = value.cpu().numpy()  # cast
        self._given.add(k)

    def __contains__(self, k: int) -> bool:
        """Whether a vector was given for this step."""
        return k in self._given
