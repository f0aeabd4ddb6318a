"""Embeddings: the left slot is a row of the identity for each token."""

from __future__ import annotations

import torch

from ntkit.finite.factors import Factor, OneHot
from ntkit.finite.rules import Use, rule

aten = torch.ops.aten


@rule(aten.embedding.default, "weight")
def embedding(use: Use) -> Factor | None:
    """Y_t = W[token_t]; the padding token has no gradient."""
    if use.args["scale_grad_by_freq"] or use.args["sparse"]:
        return None
    index = use.tensor("indices")
    g = use.g
    n, o, d = *g.shape[:2], g.shape[-1]
    index = index.expand(n, *index.shape[1:]).reshape(n, -1)
    g = g.reshape(n, o, 1, -1, d)
    padding = use.args["padding_idx"]
    if padding >= 0:
        g = g * (index != padding)[:, None, None, :, None]
    return Factor(OneHot(index, use.weight.shape[0], g.dtype), g, lambda w: w[None])
