"""Vectors of one row per step, in memory or on disk."""

from __future__ import annotations

import os
import tempfile
import weakref

import numpy as np
import torch
from torch import Tensor


class StepVectors:
    """Vectors ``[P]``, one for each step; on disk where they outgrow a budget of bytes."""

    def __init__(self, count: int, size: int, budget: int, dtype: torch.dtype = torch.float64) -> None:
        of = np.float32 if dtype == torch.float32 else np.float64
        if count * size * of().itemsize <= budget:
            self._rows = np.zeros((count, size), of)
        else:
            handle, name = tempfile.mkstemp(prefix="ntkit-rows-")
            os.close(handle)
            self._rows = np.memmap(name, of, "w+", shape=(count, size))
            weakref.finalize(self, os.unlink, name)  # copies in other processes read the same file

    def __getitem__(self, k: int) -> Tensor:
        return torch.from_numpy(np.array(self._rows[k]))

    def __setitem__(self, k: int, value: Tensor) -> None:
        self._rows[k] = value.cpu().numpy()
