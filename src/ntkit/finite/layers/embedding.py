"""Embeddings: the left slot is a row of the identity for each token."""

from __future__ import annotations

import torch

from ntkit.finite.factors import Factor, OneHot
from ntkit.finite.rules import Use, rule

aten = torch.ops.aten


@rule(aten.embedding.default, "weight")
def embedding(use: Use) -> Factor | None:
    """Y_t = W[token_t]; the padding token has no gradient."""
    if use.args["scale_grad_by_freq"]:
        return None
    return _rows(use, use.tensor("indices"), use.args["padding_idx"])


@rule(aten.index_select.default, "self")
def index_select(use: Use) -> Factor | None:
    """Y_t = W[index_t]."""
    return _rows(use, use.tensor("index")) if use.args["dim"] % use.weight.ndim == 0 else None


@rule(aten.index.Tensor, "self")
def index(use: Use) -> Factor | None:
    """Y_t = W[index_t], whole numbers in the first axis only."""
    indices = use.args["indices"]
    if len(indices) != 1 or indices[0].dtype not in (torch.int64, torch.int32):
        return None
    return _rows(use, use.tensor("indices", 0))


def _rows(use: Use, index: torch.Tensor, padding: int = -1) -> Factor:
    """Return the factor of rows of a weight ``[size, ...]``, for indices ``[n, *positions]``."""
    n, o = use.g.shape[:2]
    size = use.weight.shape[0]
    index = index.expand(n, *index.shape[1:]).reshape(n, -1)
    g = use.g.reshape(n, o, 1, index.shape[1], -1)
    if padding >= 0:
        g = g * (index != padding)[:, None, None, :, None]
    index = torch.where(index < 0, index + size, index)
    return Factor(OneHot(index, size, g.dtype), g, lambda w: w.reshape(1, size, -1))
