"""Random projections of tangent features, whose Gram matrix is unbiased."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.errors import one_of, whole

_ROWS = 4096  # rows of the projection that one seed draws: the draw does not depend on any budget

PROJECTIONS = ("rademacher", "sparse")


class Projection:
    """A random matrix S ``[p, m]`` with E[S S^T] = I, drawn in blocks of rows when needed.

    ``"rademacher"``: entries +-1 / sqrt(m); ``"sparse"``: +-sqrt(3 / m), each with probability 1/6,
    else zero (Achlioptas 2003).
    """

    def __init__(self, m: int, seed: int, kind: str) -> None:
        self.m, self.seed = whole("project", m), whole("seed", seed, None)
        self.kind = one_of("kind", kind, PROJECTIONS)

    def block(self, number: int, rows: int, like: Tensor) -> Tensor:
        """Return a block of rows."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**63)
        if self.kind == "rademacher":
            signs = torch.randint(0, 2, (_ROWS, self.m), generator=generator, dtype=torch.int8) * 2 - 1
            scale = self.m**-0.5
        else:
            draw = torch.randint(0, 6, (_ROWS, self.m), generator=generator, dtype=torch.int8)
            signs = (draw == 0).to(torch.int8) - (draw == 1).to(torch.int8)
            scale = (3 / self.m) ** 0.5
        return signs[:rows].to(like.device, like.dtype) * scale

    def add(self, out: Tensor, features: Tensor, start: int) -> None:
        """Add the projection of features ``[n, o, width]`` that stand at column ``start`` of all."""
        at, end = start, start + features.shape[-1]
        while at < end:
            number, offset = divmod(at, _ROWS)
            rows = min(_ROWS - offset, end - at)
            block = self.block(number, offset + rows, out)[offset:]
            out += features[..., at - start : at - start + rows] @ block
            at += rows
