"""Toy sets of the papers, drawn from a seed."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.errors import BadValueError


def ball_sphere(n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Draw points of the unit circle, labelled 1, and of the disk of half its radius, labelled -1.

    Half of the points are on the circle (the larger half, if n is odd), in random order; both are uniform::

        {(x, 1): |x| = 1} and {(x, -1): |x| <= 0.5},  x in the plane

    (Courtois, Morel, Arias, "Can neural networks extrapolate?", Section 5.1, with n = 1024.)

    Parameters
    ----------
    n
        Number of points.
    seed
        The same seed gives the same points.
    dtype
        Of both tensors.

    Returns
    -------
    x, y
        Points ``[n, 2]`` and labels ``[n, 1]``.

    Examples
    --------
    >>> x, y = ball_sphere(4, seed=0)
    >>> x.shape, sorted(y.flatten().tolist())
    (torch.Size([4, 2]), [-1.0, -1.0, 1.0, 1.0])
    """
    draw = _generator(n, seed)
    angle = 2 * torch.pi * torch.rand(n, generator=draw, dtype=torch.float64)
    on_sphere = torch.randperm(n, generator=draw) < (n + 1) // 2
    radius = torch.where(on_sphere, 1.0, 0.5 * torch.rand(n, generator=draw, dtype=torch.float64).sqrt())
    x = radius[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
    y = torch.where(on_sphere, 1.0, -1.0)[:, None]
    return x.to(dtype), y.to(dtype)


def half_plane(n: int, seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Draw points of the square [-1, 1]^2, labelled by the side of a line through its middle.

    The two sides are::

        {(x, 1): x . a >= 0} and {(x, -1): x . a < 0},  a = (0.6, 0.8)

    (Courtois, Morel, Arias, "Can neural networks extrapolate?", Section 5.2, with n = 1024.)

    Parameters
    ----------
    n, seed, dtype
        As for `ball_sphere`, and so is what is returned.

    Examples
    --------
    >>> x, y = half_plane(4, seed=0)
    >>> bool(((x @ torch.tensor([0.6, 0.8], dtype=torch.float64) >= 0) == (y[:, 0] > 0)).all())
    True
    """
    draw = _generator(n, seed)
    x = 2 * torch.rand(n, 2, generator=draw, dtype=torch.float64) - 1
    side = x @ torch.tensor([0.6, 0.8], dtype=torch.float64)
    return x.to(dtype), torch.where(side >= 0, 1.0, -1.0)[:, None].to(dtype)


def _generator(n: int, seed: int) -> torch.Generator:
    if n < 1:
        raise BadValueError(f"A toy set has at least one point, not {n}.")
    return torch.Generator().manual_seed(seed)
