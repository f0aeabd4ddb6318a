"""Kernels to a tolerance: made again with more points, nodes and terms until their error is small enough."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ntkit.infinite.moments.pairs import Pairs
from ntkit.infinite.moments.sides import PairSide
from ntkit.infinite.tiles import Tiles, kernels, memory_told
from ntkit.infinite.variables.functions import Apply
from ntkit.infinite.variables.numerics import Numerics
from ntkit.inputs import Batch, batch_size, take

MOST = {"points": 8, "nodes": 5}  # doublings of what a kernel is first made with

REPLICATES = 4  # of a sampled kernel, each with a part of its points
SURE = 4  # standard errors that a sampled value may be off


class ToleranceWarning(UserWarning):
    """A kernel whose error is larger than the ``tol`` that was asked for: of what, and how large."""


def within(
    tol: float | None, tiles: Tiles, ntk: bool, x1: Batch, x2: Batch | None, diagonal: bool = False
) -> Tensor:
    """Return a kernel whose error is at most ``tol``, or the last one with a `ToleranceWarning`.

    K or Theta, a block or the diagonal of the first batch; without a ``tol`` it is made once.
    """
    numerics, errors = tiles.numerics, list[float]()
    while True:
        made = tiles.diagonal(ntk, x1)[-1] if diagonal else tiles(ntk, x1, x2, last=True)[0]
        if numerics.sampled:
            numerics.spread = spread(tiles, ntk, x1, x2, diagonal)
            numerics.blame("points", numerics.spread)
        errors.append(numerics.now)
        if tol is None or errors[-1] <= tol:
            break
        if not _hopeful(numerics, errors, tol):
            _warn(numerics, errors[-1], tol)
            break
        numerics.refine(tol)
    numerics.settle()
    return made


def spread(tiles: Tiles, ntk: bool, x1: Batch, x2: Batch | None, diagonal: bool = False) -> float:
    """Return four standard errors of a kernel's entries, relative to the diagonal: of the worst of five.

    The kernel of the first and the middle sample with the last, and of each with itself, is made `REPLICATES`
    times, each with as many times fewer points of its own: their mean has the standard error
    s / sqrt(`REPLICATES`), whatever layers make of it.
    """
    second = x1 if x2 is None else x2
    n = batch_size(x1)
    ends = [take(x1, torch.tensor([0, n // 2] if n > 2 else [0]))]
    if x2 is not None or n > 1:
        ends.append(take(second, slice(batch_size(second) - 1, None)))
    found: list[list[Tensor]] = []
    with torch.no_grad(), memory_told():
        for number in range(REPLICATES):
            own = tiles.numerics.replicate(number, REPLICATES)
            own.tangents = ntk
            sides = [PairSide(x, own) for x in ends]
            values = [kernels(side.itself, tiles.value, ntk, tiles.positions)[-1] for side in sides]
            if not diagonal:
                pairs = Pairs(sides[0], sides[-1], True, ntk)
                values.append(tiles.evaluated(pairs, ntk)[-1])
            found.append(values)
    *own_ends, block = (torch.stack(parts) for parts in zip(*found, strict=True))
    if diagonal:
        own_ends, block = [block], None
    scales = [t.mean(0).abs().flatten(1).amax(1) if t.ndim > 2 else t.mean(0).abs() for t in own_ends]
    errors = [_relative(t, scale) for t, scale in zip(own_ends, scales, strict=True)]
    if block is not None:
        errors.append(_relative(block, (scales[0][:, None] * scales[-1]).sqrt()))
    return SURE * max(errors) / REPLICATES**0.5


def _relative(replicates: Tensor, scale: Tensor) -> float:
    scale = scale.reshape(*scale.shape, *(1 for _ in range(replicates.ndim - 1 - scale.ndim)))
    return float((replicates.std(0) / scale.clamp(min=torch.finfo(scale.dtype).tiny)).max())


def _hopeful(numerics: Numerics, errors: list[float], tol: float) -> bool:
    """Return whether what is left of the doublings may do, at the rate of the last one or at a half each."""
    left = max(MOST[kind] - numerics.levels[kind] for kind in numerics.arose)
    if left < 1:
        return False
    rate = 0.5 if len(errors) < 2 else min(0.5, errors[-1] / errors[-2])
    return len(errors) < 2 or errors[-1] * rate**left <= tol


def _warn(numerics: Numerics, error: float, tol: float) -> None:
    worst = max(numerics.found, key=lambda e: max(numerics.found[e]), default=None)
    name = worst.function.name if isinstance(worst, Apply) else "attention"
    if numerics.spread > error / 2:
        name = " or ".join(dict.fromkeys(s.function for s in numerics.plan.values()))
    used = [f"{numerics.count} points"] * ("points" in numerics.arose)
    used += [f"{numerics.fineness} times the usual nodes and terms"] * ("nodes" in numerics.arose)
    more = ", or more samples=" if "points" in numerics.arose else ""
    text = (
        f"tol={tol:.3g} is not reached: with {' and '.join(used)} the relative error of the kernel is "
        f"{error:.1e}, the most of it behind {name}. Give a larger tol{more}."
    )
    warnings.warn(text, ToleranceWarning, stacklevel=3)
