"""The indices of a batch, as a loop may give them: lists, arrays, slices, masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError

Indices: TypeAlias = Tensor | np.ndarray | Sequence[int] | Sequence[bool] | slice


def as_indices(indices: Indices, samples: int | None, what: str) -> Tensor:
    """Return the numbers of the samples of a batch, checked; ``what`` names the batch in errors."""
    index = _as_tensor(indices, samples, what)
    if index.numel() == 0:
        raise BadValueError(f"{what} is empty; a step needs at least one sample.")
    if int(index.min()) < 0 or (samples is not None and int(index.max()) >= samples):
        limit = "" if samples is None else f" and less than {samples}, the size of `train`"
        raise BadValueError(
            f"{what} has indices from {int(index.min())} to {int(index.max())}; they must be at least "
            f"0{limit}."
        )
    return index.to(torch.int32 if int(index.max()) < 2**31 else torch.int64)


def _as_tensor(indices: Indices, samples: int | None, what: str) -> Tensor:
    if isinstance(indices, slice):
        if samples is None:
            raise BadValueError(f"{what} is a slice, whose end depends on the data: give `train` to record.")
        return torch.arange(samples)[indices]
    try:
        index = torch.as_tensor(indices).detach().cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadTypeError(f"{what} is a {type(indices).__name__}; expected a list of indices.") from error
    if index.dtype == torch.bool:
        if index.ndim != 1 or (samples is not None and len(index) != samples):
            raise BadValueError(f"{what} is a mask of shape {tuple(index.shape)}, expected ({samples},).")
        return index.nonzero().flatten()
    if index.ndim != 1 or (index.numel() and (index.is_floating_point() or index.is_complex())):
        raise BadValueError(
            f"{what} has shape {tuple(index.shape)}, dtype {index.dtype}; expected one axis of integers."
        )
    return index.long()
