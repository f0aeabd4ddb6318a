"""Fused operations written out in plain torch, so that their graph holds layers like any others."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from ntkit.errors import NotPerSampleError

aten = torch.ops.aten


def _bilinear(a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """a^T W_k b, as a linear map of the products of their entries."""
    products = (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2)
    return aten.linear(products, weight.flatten(1), bias)


def _embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One bag of embeddings (a sample has one), as an embedding and a sum or a mean."""
    if offsets.numel() - include_last_offset != 1 or mode == 2:
        raise NotImplementedError("embedding_bag with several bags in one sample, or with mode='max'")
    padding = -1 if padding_idx is None else padding_idx
    rows = aten.embedding(weight, indices, padding, scale_grad_by_freq, sparse)
    keep = (indices != padding).to(rows.dtype).unsqueeze(-1)
    scale = keep if per_sample_weights is None else keep * per_sample_weights.unsqueeze(-1)
    bag = (rows * scale).sum(0, keepdim=True)
    return (bag / keep.sum().clamp(min=1) if mode == 1 else bag), offsets, offsets, offsets


# Whether, in this trace, a value decided what is in the graph.
DECIDED: ContextVar[bool] = ContextVar("decided", default=False)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(Q K^T scale + mask) V, as torch documents its fused kernels."""
    if dropout_p > 0:
        raise NotPerSampleError(
            f"scaled_dot_product_attention drops at random (dropout_p={dropout_p}): the network is not a "
            f"function of its input. Call model.eval(), or set the probability of dropout to 0."
        )
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    if attn_mask is not None:
        is_bool = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -torch.inf) if is_bool else scores + attn_mask
        empty = (~attn_mask if is_bool else attn_mask == -torch.inf).all(-1, keepdim=True)
        DECIDED.set(True)
        with disable_proxy_modes_tracing():
            some = bool(empty.any())
        if some:  # a query that sees nothing gives zero
            return torch.softmax(scores.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0) @ value
    return torch.softmax(scores, -1) @ value


# Fused nodes that break under vmap; written out, they are layers like any others.
DECOMPOSITIONS: dict[Any, Any] = {
    **get_decompositions([aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input]),
    aten.embedding_bag.default: _embedding_bag,
    aten.embedding_bag.padding_idx: _embedding_bag,
    aten.scaled_dot_product_attention.default: _attention,
    aten.bilinear.default: _bilinear,
    # products that are made of others, which have rules
    **{
        op: op.decompose for op in (aten.tensordot.default, aten.inner.default, aten.linalg_multi_dot.default)
    },
}
