"""Embeddings: rows of a table, so that two positions are equal or independent."""

from __future__ import annotations

import torch

from ntkit.infinite.layers.linear import PositionMean, matrix_of
from ntkit.infinite.moments.protocols import SideValues
from ntkit.infinite.moments.vectors import Coefficient, Line, Raw
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Known, Weight, Wide, numbered, numbers

aten = torch.ops.aten


@rule(aten.embedding.default)
def embedding(read: Reading, weight: object, tokens: object, padding: int = -1, *_: object) -> Wide:
    """K(t, t') = sigma_w^2 where the tokens are equal (entries of the table have variance one)."""
    data = numbers(tokens)
    if not isinstance(weight, Weight) or not isinstance(data, Known):
        raise read.refuse("its table is not a parameter of the model, or its tokens depend on weights.")
    count, width = weight.tensor.shape
    sizes = tuple(data.example.shape)
    shape = tuple(s for s in sizes if s != 1)
    full = (*shape, count)

    def of(side: SideValues) -> torch.Tensor:
        index = data.numbers.value(side).reshape(-1, *shape)
        hot = torch.nn.functional.one_hot(index, count).to(side.numerics.dtype)
        if padding >= 0:
            hot[..., padding] = 0
        return hot * count**0.5

    matrix, rows = matrix_of(read, weight, 1, 1)
    fixed = isinstance(tokens, torch.Tensor) and not bool((tokens == padding).any())
    raw = Raw(shape, Coefficient(full, of), data.example.reshape(shape) if fixed else None)
    line = Line(shape, matrix, rows, ((1.0, raw),), PositionMean(len(shape)))
    dims = numbered([[True] if s != 1 else [] for s in sizes])
    wide = Wide(((width, line),), shape, (width,), (*dims, (-1,)))
    text = f"{weight.name}[{read.name(tokens)}]   (embedding of {count} tokens)"
    return read.write("MatMul", text, wide, "g")
