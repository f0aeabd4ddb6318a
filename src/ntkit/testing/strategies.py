"""Batches for hypothesis: sizes, seeds and dtypes are drawn, so that a failure shrinks to a small one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ntkit.errors import BadTypeError, whole

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def batches(
    *shape: int, most: int = 6, dtypes: Sequence[torch.dtype] = (torch.float64, torch.float32)
) -> SearchStrategy[tuple[Tensor, Tensor]]:
    """Return a hypothesis strategy for pairs of batches ``[n, *shape]``, ``[m, *shape]`` of one dtype.

    Their entries are standard normal, from a seed that is drawn; samples 0 of both are the same.

    .. versionadded:: 0.1.0

    Parameters
    ----------
    *shape
        The shape of a sample.
    most
        The largest number of samples of a batch.
    dtypes
        Those to draw from.

    Examples
    --------
    >>> import ntkit.testing
    >>> strategy = ntkit.testing.batches(3)  # for @hypothesis.given
    """
    from hypothesis import strategies as st

    for size in (*shape, most):
        whole("each of shape and most", size)
    several = isinstance(dtypes, tuple | list) and len(dtypes) > 0
    if not several or not all(isinstance(d, torch.dtype) for d in dtypes):
        raise BadTypeError(f"dtypes={dtypes!r}; expected a list of dtypes of torch, one or several.")

    def draw(n: int, m: int, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        x = torch.randn(n + m, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x[n] = x[0]
        return x[:n].to(dtype), x[n:].to(dtype)

    sizes = st.integers(1, most)
    return st.builds(draw, sizes, sizes, st.integers(0, 2**16), st.sampled_from(list(dtypes)))
