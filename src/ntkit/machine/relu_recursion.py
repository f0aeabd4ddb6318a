"""The kernels of infinitely wide ReLU networks on vectors, layer by layer in closed form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from ntkit.compute.plan import chunks

TILE = 2**16  # entries that are computed at once: they stay in the processor's cache
STRIP = 2**22  # entries of a product of the inputs: few rows at once would read all columns too often


@torch.no_grad()
def relu_kernels(
    x1: Tensor,
    x2: Tensor | None,
    depths: Sequence[int],
    sigma_w: float,
    sigma_b: float,
    kind: Literal["ntk", "nngp"] = "ntk",
) -> dict[int, Tensor]:
    """Return the NTK or the NNGP ``[n1, n2]`` of networks with several numbers of hidden layers, in one pass.

        S_1 = T_1 = sigma_w^2 x . x' / d + sigma_b^2,    cos t = S_l / (s s'),  s^2 = S_l(x, x)
        S_{l+1} = sigma_w^2 s s' (sin t + (pi - t) cos t) / (2 pi) + sigma_b^2
        T_{l+1} = S_{l+1} + sigma_w^2 (pi - t) / (2 pi) T_l

    ``x2`` None: between x1 and itself.

    References
    ----------
    Cho, Saul (2009), Eq. 3-6; Jacot et al. (2018), Theorem 1; Giancola (2023), chapter II.

    Examples
    --------
    >>> import torch
    >>> relu_kernels(torch.eye(2).double(), None, [1], 2**0.5, 0.0)[1].round(decimals=4)
    tensor([[2.0000, 0.3183],
            [0.3183, 2.0000]], dtype=torch.float64)
    """
    other, d = x1 if x2 is None else x2, x1.shape[1]
    blocks = {depth: x1.new_empty(len(x1), len(other)) for depth in depths}
    sizes = (own_variances(x, sigma_w, sigma_b) for x in (x1, other))
    first, second = sizes
    right = other.T * (sigma_w**2 / d)
    for strip in chunks(len(x1), max(1, STRIP // max(1, len(other)))):
        products = x1[strip] @ right
        for part in chunks(len(products), max(1, TILE // max(1, len(other)))):
            rows = slice(strip.start + part.start, strip.start + part.stop)
            nngp = products[part] + sigma_b**2
            equal = _equal(nngp, first[rows], second, x1[rows], other)
            layers = _layers(nngp, first[rows], second, max(depths), sigma_w**2, sigma_b**2, equal)
            for depth, (nngp_, ntk) in enumerate(layers, 1):
                if depth in blocks:
                    blocks[depth][rows] = ntk if kind == "ntk" else nngp_
    if x2 is None:
        for block in blocks.values():  # rounding of products differs between the halves
            block.copy_((block + block.T) / 2)
    return blocks


def relu_diagonal(x: Tensor, depth: int, sigma_w: float, sigma_b: float, kind: str = "ntk") -> Tensor:
    """Return k(x, x) ``[n]``: there t is zero."""
    nngp = ntk = own_variances(x, sigma_w, sigma_b)
    for _ in range(depth):
        nngp = nngp * (sigma_w**2 / 2) + sigma_b**2
        ntk = nngp + ntk * (sigma_w**2 / 2)
    return ntk if kind == "ntk" else nngp


def own_variances(x: Tensor, sigma_w: float, sigma_b: float) -> Tensor:
    """Return S_1(x, x) ``[n]``."""
    return x.square().sum(1) * (sigma_w**2 / x.shape[1]) + sigma_b**2


def _equal(nngp: Tensor, one: Tensor, two: Tensor, x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of pairs of the same vector, whose angle is zero, not the root of rounding."""
    near = nngp * nngp > (1 - 1e-9) * one[:, None] * two
    i, j = near.nonzero(as_tuple=True)
    same = (x1[i] == x2[j]).all(1) & (one[i] > 0)
    return i[same], j[same]


def _layers(
    nngp: Tensor, one: Tensor, two: Tensor, depth: int, w: float, b: float, equal: tuple[Tensor, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield NNGP and NTK of each layer for a block of rows, in which some pairs are the same vector."""
    ntk = nngp
    for _ in range(depth):
        roots = two.sqrt()
        sizes = one.sqrt()[:, None] * roots
        cosine = (nngp / sizes.clamp_min(1e-300)).clamp_(-1, 1)
        cosine[equal] = 1.0
        rest = torch.arccos(cosine).neg_().add_(torch.pi).mul_(w / (2 * torch.pi))
        sine = (1 - cosine.square()).sqrt_().mul_(w / (2 * torch.pi))
        nngp = cosine.mul_(rest).add_(sine).mul_(sizes).add_(b)
        one, two = one * (w / 2) + b, two * (w / 2) + b
        ntk = rest.mul_(ntk).add_(nngp)
        yield nngp, ntk
