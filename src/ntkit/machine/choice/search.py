"""Scaling, kernel and penalty by leave-one-out: one eigendecomposition for each kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.eigen import Spectrum, spectrum
from ntkit.compute.progress import progress
from ntkit.kernel import Kernel
from ntkit.machine.choice.candidates import Candidate
from ntkit.machine.choice.leave_one_out import (
    Targets,
    best_penalty,
    error,
    grid,
    losses,
    mean_eigenvalue,
)
from ntkit.machine.distances import as_vectors
from ntkit.machine.inputs.scaling import Scaling
from ntkit.machine.relu_recursion import relu_kernels

T = TypeVar("T")
MOST, PART = 2500, 2000  # samples up to which all are compared on, and how many of more
MARGIN = 0.05  # by how much of its error rows of equal norm have to be better than standardized columns
PENALTIES = 29  # that are compared for each kernel, before the best one is refined


@dataclass(frozen=True)
class Tried:
    """A candidate, its best penalty (NaN where it has none), and its error there."""

    candidate: Candidate
    alpha: float
    error: float


@dataclass(frozen=True)
class Search:
    """What was compared: ``tried``, the ``best`` of them, on ``rows`` of ``n`` samples. Print it."""

    tried: tuple[Tried, ...]
    best: Tried
    rows: int
    n: int
    score: str = "leave-one-out error"

    def __str__(self) -> str:
        lines = [f"{self.score}, on {self.rows} of {self.n} samples"]
        for one in sorted(self.tried, key=lambda t: t.error):
            mark = "*" if one is self.best else " "
            penalty = "" if np.isnan(one.alpha) else f", alpha {one.alpha:.3g}"
            lines.append(f"{mark} {one.error:.5g}  {one.candidate}, {Scaling(one.candidate.scale)}{penalty}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Chosen:
    """The best scaling and kernel, its penalty for all samples, and its spectrum if it was seen."""

    search: Search
    scaling: Scaling
    kernel: Kernel
    alpha: float
    whole: Spectrum | None


def choose(
    x: np.ndarray,
    targets: Targets,
    compared: Sequence[Candidate],
    alpha: float | None = None,
    labels: np.ndarray | None = None,
    binary: np.ndarray | None = None,
    seed: int = 0,
    verbose: bool = False,
) -> Chosen:
    """Return the candidate of least leave-one-out error, at its best penalty or a given one.

    Parameters
    ----------
    x : array [n, d]
        The samples as given, as numbers.
    targets : Targets
        What is learned.
    compared : sequence of Candidate
        What is compared.
    alpha : float or None
        The penalty; None: the best one of each candidate.
    labels : array [n] or None
        Classes, whose shares a part of many samples keeps.
    binary : array [d] or None
        Which columns are one-hot.
    seed : int
        Of the draw of that part.
    verbose : bool
        Whether a progress bar is shown.
    """
    n = len(x)
    index = np.arange(n) if n <= MOST else part(n, labels, seed)
    seen = targets.at(torch.as_tensor(index))
    root = seen.root
    weights = None if targets.root is None else targets.weights.numpy()
    scalings = {c.scale: Scaling.of(c.scale, x, weights, binary) for c in compared}
    tried: list[Tried] = []
    best, best_whole = None, None
    for candidate, gram in shown(grams(x[index], compared, scalings), len(compared), verbose):
        if root is not None:
            gram = gram * root[:, None] * root
        whole = spectrum(gram)
        one = _tried(candidate, seen, whole, alpha)
        tried.append(one)
        if best is None or _better(one, best):
            best, best_whole = one, whole
    assert best is not None and best_whole is not None
    found = best.alpha
    if alpha is None:
        found = best_penalty(seen, best_whole)
        best = Tried(best.candidate, found, error(seen, best_whole, found, "loo"))
        tried = [best if t.candidate is best.candidate else t for t in tried]
        found = moved_to(n, found, len(index))
    scaling = scalings[best.candidate.scale]
    kernel = best.candidate.made(scaling(x[index]))
    search = Search(tuple(tried), best, len(index), n)
    return Chosen(search, scaling, kernel, found, best_whole if len(index) == n else None)


def shown(steps: Iterable[T], count: int, verbose: bool) -> Iterator[T]:
    """Yield steps, with a progress bar where that is asked for."""
    if not verbose:
        yield from steps
        return
    with progress("comparing kernels", count) as done:
        for step in steps:
            yield step
            done(1)


def moved_to(n: int, alpha: float, rows: int) -> float:
    """Return the best penalty for n samples from that for some of them: it grows with the root of n.

    Between that of a process, which stays, and that of a mean loss, which grows with n; for three times as
    many samples of functions with noise and of digits the best ones were 1.4 to 2.1 times as large.
    """
    return alpha * (n / rows) ** 0.5


def part(n: int, labels: np.ndarray | None, seed: int, count: int = PART) -> np.ndarray:
    """Return so many of the samples, all if there are no more; each class keeps its share."""
    if n <= count:
        return np.arange(n)
    order = np.random.default_rng(seed).permutation(n)
    if labels is not None:  # every (n / count)-th of the samples, class after class
        order = order[np.argsort(labels[order], kind="stable")]
    return np.sort(order[np.linspace(0, n - 1, count).round().astype(int)])


def _better(one: Tried, best: Tried) -> bool:
    if one.candidate.scale == "unit" and best.candidate.scale != "unit":
        return one.error < (1 - MARGIN) * best.error
    return one.error < best.error


def _tried(candidate: Candidate, targets: Targets, whole: Spectrum, alpha: float | None) -> Tried:
    if alpha is not None:  # without one: of rounding, which takes the null space out likewise
        return Tried(candidate, alpha, error(targets, whole, alpha or whole.floor, "loo"))
    alphas = mean_eigenvalue(whole) * np.exp(grid(whole, PENALTIES))
    errors = losses(targets, targets.of(whole, torch.as_tensor(alphas).to(whole.values))).mean(-1)
    return Tried(candidate, float(alphas[int(errors.argmin())]), float(errors.min()))


def grams(
    x: np.ndarray, compared: Sequence[Candidate], scalings: dict[str | None, Scaling]
) -> Iterator[tuple[Candidate, Tensor]]:
    """Yield each candidate with its kernel matrix; depths of a network are layers of one pass."""
    groups: dict[tuple[object, ...], list[Candidate]] = {}
    for c in compared:
        groups.setdefault((c.scale, c.kernel, c.sigma_b, c.length), []).append(c)
    for group in groups.values():
        scaled = scalings[group[0].scale](x)
        depths = [c.depth for c in group if c.depth is not None]
        if not depths:
            yield group[0], group[0].made(scaled)(scaled)
            continue
        kind = "nngp" if group[0].kernel == "nngp" else "ntk"
        sigma_b = group[0].sigma_b
        assert sigma_b is not None
        blocks = relu_kernels(as_vectors(scaled), None, depths, 2**0.5, sigma_b, kind)
        for c in group:
            if c.depth is not None:
                yield c, blocks.pop(c.depth)
