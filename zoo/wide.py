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
    "growth_rate num_init_features init_size base_width inner_dim pre_head_norm_dim classifier_proj_size "
    "conv_dim mlp_dim rotary_dim r num_filters attention_head_dim block_out_channels"
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
    sized = _times(build, factor)
    if isinstance(build, partial) and (sized.args != build.args or sized.keywords != build.keywords):
        return sized().double().eval()
    network = build()
    if factor != 1:
        for module in list(network.modules()):
            for name, child in list(module.named_children()):
                setattr(module, name, _widened(child, factor))
    return network.double().eval()


def widths(one: nn.Module, other: nn.Module) -> tuple[int, int] | None:
    """Return the smallest width of two networks that differ in widths, or None where they do not."""
    shapes = {name: p.shape for name, p in other.named_parameters()}
    pairs = [z for name, p in one.named_parameters() for z in zip(p.shape, shapes[name], strict=True)]
    return min((z for z in pairs if z[0] != z[1]), default=None)


def _times(value: Any, factor: float, size: bool = False) -> Any:
    """Return options with their sizes times a factor: of a maker, in a dict, or of makers in these."""
    if isinstance(value, partial):
        args = (_times(a, factor) for a in value.args)
        return partial(value.func, *args, **_times(value.keywords, factor))
    if isinstance(value, dict):
        return {k: _times(v, factor, k in SIZES) for k, v in value.items()}
    if isinstance(value, (tuple, list)) and size:
        return type(value)(_times(v, factor, size) for v in value)
    return int(value * factor) if size and type(value) is int else value


def _size(value: int, factor: float) -> int:
    return value if value in FIXED else int(value * factor)


def _widened(layer: nn.Module, factor: float) -> nn.Module:
    """Return a fresh layer with more channels, or the layer itself."""
    for kind in Conv:
        if isinstance(layer, kind) and type(layer).forward is kind.forward:
            each = 1 < layer.groups == layer.in_channels  # depthwise
            groups = int(layer.groups * factor) if each else layer.groups
            return kind(
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
    if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward:
        sizes = (_size(layer.in_features, factor), _size(layer.out_features, factor))
        return nn.Linear(*sizes, bias=layer.bias is not None)
    if isinstance(layer, nn.GroupNorm):
        return nn.GroupNorm(layer.num_groups, _size(layer.num_channels, factor), layer.eps)
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        layer = type(layer)(_size(layer.normalized_shape[0], factor), layer.eps)
    return layer
