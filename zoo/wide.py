"""A model of the zoo with all its widths multiplied, as the limit of infinite width asks for."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from entry import Entry
from torch import nn

FIXED = {1, 2, 3, 4}  # channels of data, classes and heads' own: no widths
SIZES = (
    "hidden_size intermediate_size embedding_size d_model d_ff d_kv d_inner n_embd n_inner dim hidden_dim "
    "ffn_dim embed_dim embed_dims base_dims dims channels hidden_sizes encoder_ffn_dim decoder_ffn_dim "
    "head_dim word_embed_proj_dim decoder_hidden_size encoder_hidden_size width hidden_channels last_channel "
    "growth_rate init_size base_width inner_dim pre_head_norm_dim classifier_proj_size conv_dim"
).split()
Conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def wide(entry: Entry, factor: float) -> nn.Module:
    """Return the network of an entry, its widths times a factor, fresh, in float64 and eval mode.

    The sizes are options where the entry names them; else the layers are made anew, which holds where the
    network's own code knows no width.
    """
    torch.manual_seed(0)
    build = entry.build
    if isinstance(build, partial):
        args = [_scaled(a, factor) if isinstance(a, dict) else a for a in build.args]
        options = _scaled(build.keywords, factor)
        if args != list(build.args) or options != build.keywords:
            return build.func(*args, **options).double().eval()
    network = build()
    if factor != 1:
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                setattr(module, name, _widened(child, factor))
    return network.double().eval()


def width(network: nn.Module) -> int:
    """Return the smallest width: of the outputs of a matrix or a convolution that are no classes."""
    sizes = [p.shape[0] for p in network.parameters() if p.ndim > 1 and p.shape[0] not in FIXED]
    return min(sizes, default=1)


def _scaled(options: dict[str, Any], factor: float) -> dict[str, Any]:
    return {k: _times(v, factor) if k in SIZES else v for k, v in options.items()}


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_times(v, factor) for v in value)
    return int(value * factor) if isinstance(value, int) and not isinstance(value, bool) else value


def _size(value: int, factor: float) -> int:
    return value if value in FIXED else int(value * factor)


def _widened(layer: nn.Module, factor: float) -> nn.Module:
    """Return a fresh layer with more channels, or the layer itself."""
    if type(layer) in Conv:
        assert isinstance(layer, Conv)
        each = 1 < layer.groups == layer.in_channels  # depthwise
        groups = int(layer.groups * factor) if each else layer.groups
        return type(layer)(
            _size(layer.in_channels, factor),
            _size(layer.out_channels, factor),
            layer.kernel_size,  # pyright: ignore[reportArgumentType]
            layer.stride,  # pyright: ignore[reportArgumentType]
            layer.padding,  # pyright: ignore[reportArgumentType]
            layer.dilation,  # pyright: ignore[reportArgumentType]
            groups,
            layer.bias is not None,
        )
    if isinstance(layer, Norm):
        return type(layer)(_size(layer.num_features, factor), layer.eps)
    if type(layer) is nn.Linear:
        sizes = (_size(layer.in_features, factor), _size(layer.out_features, factor))
        return nn.Linear(*sizes, bias=layer.bias is not None)
    if isinstance(layer, nn.GroupNorm):
        return nn.GroupNorm(layer.num_groups, _size(layer.num_channels, factor), layer.eps)
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        layer = type(layer)(_size(layer.normalized_shape[0], factor), layer.eps)
    return layer
