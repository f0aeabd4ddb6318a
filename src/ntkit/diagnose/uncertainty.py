"""How sure a figure is that was measured on some samples: the delete-a-group jackknife, and the bootstrap."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from ntkit.errors import BadValueError
from ntkit.network import Floats

GROUPS = 20
LEVEL = 0.95


class Measured(NamedTuple):
    """A figure and the interval that holds it with 95 % confidence, over the samples drawn."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def jackknife(
    statistic: Callable[[Tensor], Floats], n: int, seed: int = 0, groups: int = GROUPS
) -> tuple[Floats, Floats, Floats]:
    """Return a statistic of all samples, and the ends of its interval, by leaving out groups of them.

        se^2 = (g - 1) / g sum_j (t_j - mean t)^2,    t +- quantile of Student's t with g - 1 degrees

    Parameters
    ----------
    statistic : callable
        Takes the places ``[m]`` of the samples that are kept; returns numbers, ``[...]``.
    n : int
        How many samples there are, at least 4.
    seed : int
        Of the division into groups.
    groups : int
        How many groups; as many as half the samples at most.

    References
    ----------
    Shao, Wu, "A general theory for jackknife variance estimation" (1989).

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(100.0)
    >>> value, low, high = jackknife(lambda kept: x[kept].mean().double().numpy(), 100)
    >>> float(value), bool(low < 49.5 < high)
    (49.5, True)
    """
    if n < 4:
        raise BadValueError(f"There are {n} samples; an interval needs at least 4: give more.")
    whole = torch.arange(n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    value = np.asarray(statistic(whole), dtype=float)
    parts = []
    for left in order.tensor_split(min(groups, n // 2)):
        kept = torch.ones(n, dtype=torch.bool)
        kept[left] = False
        parts.append(np.asarray(statistic(whole[kept]), dtype=float))
    found, g = np.stack(parts), len(parts)
    error = np.sqrt((g - 1) / g * ((found - found.mean(0)) ** 2).sum(0))
    wide = stats.t.ppf((1 + LEVEL) / 2, g - 1) * error
    return value, value - wide, value + wide


def bootstrap(
    statistic: Callable[[np.ndarray], float], n: int, seed: int = 0, draws: int = 400
) -> tuple[float, float]:
    """Return the ends of the percentile interval of a statistic of samples drawn with replacement.

    >>> low, high = bootstrap(lambda index: float(index.mean()), 100)
    >>> low < 49.5 < high
    True
    """
    generator = np.random.default_rng(seed)
    found = [statistic(generator.integers(n, size=n)) for _ in range(draws)]
    low, high = np.nanquantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def auroc(inside: Floats, outside: Floats) -> Measured:
    """Return the chance that one from outside scores higher than one from inside (a tie is half), by ranks.

    The interval is DeLong's: the variance of the two sets' structural components.

    References
    ----------
    DeLong, DeLong, Clarke-Pearson, "Comparing the areas under two or more correlated ROC curves" (1988).

    Examples
    --------
    >>> auroc(np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0])).value
    0.75
    """
    n, m = len(inside), len(outside)
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    above = (ranks[n:] - stats.rankdata(outside)) / n
    below = 1 - (ranks[:n] - stats.rankdata(inside)) / m
    value = float(above.mean())
    spread = sum(float(part.var(ddof=1)) / len(part) for part in (above, below) if len(part) > 1)
    wide = float(stats.norm.ppf((1 + LEVEL) / 2)) * spread**0.5
    return Measured(value, max(0.0, value - wide), min(1.0, value + wide))
