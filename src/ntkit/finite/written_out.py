"""Fused operations written out in plain torch, where torch's own higher derivatives are wrong or missing.

Seen with torch 2.13: the second forward-mode derivative of layer norm and the second reverse-mode
derivative of weight norm are silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode


def _standardized(x: Tensor, axes: list[int], eps: float) -> Tensor:
    centered = x - x.mean(axes, keepdim=True)
    return centered / (centered.square().mean(axes, keepdim=True) + eps).sqrt()


def _affine(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    x = x if weight is None else x * weight
    return x if bias is None else x + bias


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    return _affine(_standardized(x, list(range(-len(shape), 0)), eps), weight, bias)


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    mean = x.square().mean(list(range(-len(shape), 0)), keepdim=True)
    return _affine(x / (mean + eps).sqrt(), weight, None)


def _channels(value: Tensor | None, x: Tensor) -> Tensor | None:
    return None if value is None else value.reshape(-1, *(1,) * (x.ndim - 2))


def _group_norm(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    y = _standardized(x.reshape(x.shape[0], groups, -1), [2], eps).reshape(x.shape)
    return _affine(y, _channels(weight, x), _channels(bias, x))


def _batch_norm(
    x: Tensor,
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    if training or mean is None or var is None:
        return F.batch_norm(x, mean, var, weight, bias, training, momentum, eps)
    y = (x - _channels(mean, x)) / (_channels(var, x) + eps).sqrt()  # pyright: ignore
    return _affine(y, _channels(weight, x), _channels(bias, x))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    return v * (g / torch.norm_except_dim(v, 2, dim))


WRITTEN_OUT: dict[Any, Callable] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    torch._weight_norm: _weight_norm,  # pyright: ignore[reportPrivateImportUsage]
}


class WrittenOut(TorchFunctionMode):
    """Within it, the operations of the table run in plain torch."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Replace the operation, or leave it as it is."""
        function = WRITTEN_OUT[func] if func in WRITTEN_OUT else func
        return function(*args, **(kwargs or {}))
