"""The product of two dense matrices, by the fastest of the libraries that torch brings."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.compute.plan import chunks

# oneDNN is up to 1.4 times as fast as torch's own choice where one side is a panel of a hundred rows;
# below this many multiplications its call costs more than it saves.
_LEAST = 2**21


def product_transposed(a: Tensor, b: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """Return A B^T for ``[n, k]`` and ``[m, k]``, plus a bias ``[m]``, its negative entries set to zero.

    On CPU in float32 through oneDNN, else ``a @ b.T``; as exact as each other (a relative error of some
    1e-7 of the largest entry). Not differentiable.

    >>> import torch
    >>> product_transposed(torch.ones(2, 3), torch.ones(4, 3)).shape
    torch.Size([2, 4])
    """
    large = a.shape[0] * b.shape[0] * a.shape[1] >= _LEAST
    if large and a.dtype == b.dtype == torch.float32 and not a.is_cuda and _has_onednn():
        then = "relu" if relu else "none"
        return torch.ops.mkldnn._linear_pointwise(_dense(a), _dense(b), bias, then, [], "")
    out = a @ b.T
    out = out if bias is None else out.add_(bias)  # rounded as torch's linear maps under vmap are
    return out.relu_() if relu else out


def gram(a: Tensor) -> Tensor:
    """Return A A^T for ``[n, k]``; where the product is large, its upper half twice.

    >>> import torch
    >>> gram(torch.ones(2, 3))
    tensor([[3., 3.],
            [3., 3.]])
    """
    n, k = a.shape
    if n < 64 or n * n * k < 2**26:
        return product_transposed(a, a)
    out = a.new_empty(n, n)
    for s in chunks(n, max(64, -(-n // 8))):
        out[s, s.start :] = product_transposed(a[s], a[s.start :])
    mirror(out)
    return out


def mirror(out: Tensor) -> None:
    """Copy the upper triangle of symmetric matrices ``[..., n, n]`` to the lower one."""
    for s in chunks(out.shape[-1], 512):
        before, corner = slice(0, s.start), out[..., s, s]
        out[..., s, before] = out[..., before, s].transpose(-1, -2)
        corner.copy_(corner.triu() + corner.triu(1).transpose(-1, -2))


def _dense(a: Tensor) -> Tensor:
    """Copy what is broadcast or strided on both axes, for which oneDNN has no fast way."""
    (n, k), (row, column) = a.shape, a.stride()
    return a if (column == 1 and row >= k) or (row == 1 and column >= n) else a.contiguous()


def _has_onednn() -> bool:
    mkldnn = torch.backends.mkldnn
    enabled = mkldnn.is_available() and torch._C._get_mkldnn_enabled()  # pyright: ignore[reportPrivateUsage]
    # Without mkldnn.matmul (before torch 2.9), nothing here could keep it from bfloat16.
    return enabled and hasattr(mkldnn, "matmul") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
