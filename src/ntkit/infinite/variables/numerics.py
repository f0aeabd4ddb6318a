"""The fixed points at which functions are sampled, and numbers of one dtype and device."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from threading import Lock

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

SOBOL = 1024  # dimensions of Sobol's points: beyond, they are no better than others, and costly to scramble
LEAST = 2**20  # bytes of draws at a time: with fewer, each operation takes longer to call than to run
ROUNDING = 100  # epsilons, relative to the largest variance, that a covariance may lack by rounding
NOISE = 1e-12  # a relative error up to which a value counts as exact
FEW_VARIABLES = 12  # variables up to which a factor is written out

_LOCK = Lock()  # on the engines of Sobol, which tiles in several threads move


@dataclass(frozen=True)
class Sampled:
    """How a function is sampled: how many points, how many at a time, and the bytes that these hold."""

    function: str
    how: str  # what is drawn together
    points: int
    at_once: int
    bytes: int


class Numerics:
    """Sobol points through the normal quantile: the same ones for every pair of samples.

    ``jitter`` is the largest number added to a covariance, relative to its diagonal, for it to have a
    Cholesky factor; ``error`` the largest relative error of a value so far, of those ``found`` in this call
    (`accuracy`) and of all ``past`` ones; ``memory`` is the budget in bytes, of which draws may take a
    quarter, and a mebibyte always. ``levels`` say how often points, or nodes
    and terms, were doubled.
    """

    def __init__(
        self, count: int, seed: int, dtype: torch.dtype, device: torch.device, memory: int = 2**30
    ) -> None:
        self.count, self.seed = count, seed
        self.dtype, self.device = dtype, device
        self.jitter, self.budget = 0.0, max(LEAST, min(2**28, memory // 4))
        self.sampled, self.past, self.spread = False, 0.0, 0.0
        self.levels, self._least = {"points": 0, "nodes": 0}, count
        self.arose: dict[str, float] = {}
        self.found: dict[Hashable, tuple[float, float]] = {}  # of K and of Theta
        self.ratios: dict[Hashable, float] = {}  # E[h^2] / Var[h] of functions that are centered
        self.tangents = False  # whether Theta is asked for in this call
        self.plan: dict[tuple[str, str], Sampled] = {}
        self._drawn: dict[int, Tensor] = {}
        self._engines: dict[int, SobolEngine] = {}

    def probe(self) -> Numerics:
        """Return the same with few points: what values hold in memory does not depend on their number."""
        return Numerics(64, self.seed, self.dtype, self.device, 4 * self.budget)

    def replicate(self, number: int, parts: int) -> Numerics:
        """Return one of some others with so many times fewer points, of their own."""
        other = Numerics(max(32, self.count // parts), self.seed, self.dtype, self.device, 4 * self.budget)
        other.seed, other.levels["nodes"] = hash((self.seed, number + 1)) % 2**31, self.levels["nodes"]
        return other

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros of the program's dtype."""
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def eye(self, n: int) -> Tensor:
        """Return the identity."""
        return torch.eye(n, dtype=self.dtype, device=self.device)

    def normal(self, dimensions: int) -> Tensor:
        """Return standard normal points ``[count, dimensions]``."""
        if dimensions not in self._drawn:
            self._drawn[dimensions] = self._points(dimensions, slice(0, self.count))
        return self._drawn[dimensions]

    def points(self, dimensions: int, part: slice) -> Tensor:
        """Return some of the points ``[size of part, dimensions]``, the same whatever the parts."""
        small = self.count * dimensions * 8 <= self.budget // 4
        return self.normal(dimensions)[part] if small else self._points(dimensions, part)

    def _points(self, dimensions: int, part: slice) -> Tensor:
        """Return points of Sobol through the normal quantile, pseudo-random in the dimensions behind."""
        if dimensions not in self._engines:
            self._engines[dimensions] = SobolEngine(min(dimensions, SOBOL), scramble=True, seed=self.seed)
        with _LOCK:
            engine = self._engines[dimensions]
            if engine.num_generated > part.start:
                engine.reset()
            engine.fast_forward(part.start - engine.num_generated)
            uniform = engine.draw(part.stop - part.start, dtype=torch.float64)
        half = 0.5 / 2**30
        found = [torch.special.ndtri(uniform.clamp_(half, 1 - half))]
        if dimensions > SOBOL:
            made = [torch.Generator().manual_seed(hash((self.seed, i))) for i in range(part.start, part.stop)]
            rest = [torch.randn(dimensions - SOBOL, generator=g, dtype=torch.float64) for g in made]
            found.append(torch.stack(rest))
        return torch.cat(found, 1).to(self.device, self.dtype)

    @property
    def error(self) -> float:
        """The largest relative error so far."""
        return max(self.past, self.now)

    @property
    def now(self) -> float:
        """The largest relative error of this call."""
        found = (max(pair) if self.tangents else pair[0] for pair in self.found.values())
        return max(found, default=0.0) + self.spread

    def tell(self, of: Hashable, moment: float, tangent: float) -> None:
        """Keep the relative errors of moments and tangents of a function, where more than rounding."""
        if max(moment, tangent) > NOISE:
            with _LOCK:
                one, two = self.found.get(of, (0.0, 0.0))
                self.found[of] = max(one, moment), max(two, tangent)

    def blame(self, kind: str, error: float) -> None:
        """Keep the largest error that arose in one way: ``"points"``, or ``"nodes"`` and terms of series."""
        with _LOCK:
            self.arose[kind] = max(self.arose.get(kind, 0.0), error)

    def refine(self, tol: float) -> None:
        """Take twice as many from now on of what errors above a fourth of ``tol`` arise from."""
        most = max(self.arose.values(), default=0.0)
        for kind, error in self.arose.items():
            if error > min(tol / 4, most / 2):
                self.levels[kind] += 1
        self.count = self._least << self.levels["points"]
        self.found, self.arose, self.ratios, self.sampled, self.spread = {}, {}, {}, False, 0.0
        self.plan.clear()
        self._drawn.clear()

    @property
    def fineness(self) -> int:
        """How many times the usual nodes and terms are taken."""
        return 2 ** self.levels["nodes"]

    def settle(self) -> None:
        """Count the errors of this call among the past ones."""
        self.past = self.error
        self.found, self.arose, self.ratios, self.spread = {}, {}, {}, 0.0

    def planned(self, function: str, how: str, points: int, parts: list[slice], bytes: int) -> None:
        """Keep how a function is sampled: all points, or the largest of parts of them at a time."""
        at_once = max(part.stop - part.start for part in parts)
        self.plan[function, how] = Sampled(function, how, points, at_once, at_once * bytes)

    def factor(self, covariance: Tensor) -> Tensor:
        """Return lower triangular factors of covariances ``[B, m, m]`` that may be singular.

        Covariances that were themselves sampled may have negative eigenvalues: these are left out, all
        variances kept, and what that changes is part of the error. Each factor depends on its matrix only.
        """
        covariance = covariance.double()
        if covariance.shape[-1] <= FEW_VARIABLES:
            return _cholesky(covariance).to(self.dtype)
        variances = torch.diagonal(covariance, dim1=-2, dim2=-1)
        largest = variances.amax(-1)[..., None, None]
        eye = torch.eye(covariance.shape[-1], dtype=torch.float64, device=covariance.device)
        jitter = 4 * covariance.shape[-1] * torch.finfo(torch.float64).eps
        factor, failed = torch.linalg.cholesky_ex(covariance + (jitter * largest + 1e-300) * eye)
        left = failed != 0
        most = max(jitter, ROUNDING * torch.finfo(self.dtype).eps)
        while left.any() and jitter < most:
            jitter *= 10
            again, failed = torch.linalg.cholesky_ex(
                covariance[left] + (jitter * largest[left] + 1e-300) * eye
            )
            factor[left] = again
            left[left.clone()] = failed != 0
        self.jitter = max(self.jitter, jitter)
        left &= covariance.isfinite().all(-1).all(-1)  # what is none overflowed, and is refused at the end
        if left.any():
            factor[left] = nearest = _semidefinite(covariance[left])
            change = (nearest @ nearest.mT - covariance[left]).abs().amax((-2, -1))
            self.jitter = max(self.jitter, float((change / largest[left, 0, 0].clamp(min=1e-300)).max()))
        return (factor * (variances > 0)[..., None]).to(self.dtype)  # what does not vary stays at zero


def _semidefinite(covariance: Tensor) -> Tensor:
    """Return lower triangular factors of matrices without negative eigenvalues, of the same diagonals."""
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp(min=0).sqrt()[..., None, :]
    variances = torch.diagonal(covariance, dim1=-2, dim2=-1)
    kept = root.square().sum(-1)
    scale = torch.where(kept > 0, variances / torch.where(kept > 0, kept, 1.0), 0.0).sqrt()
    return torch.linalg.qr((root * scale[..., None]).mT).R.mT


def _cholesky(covariance: Tensor) -> Tensor:
    """Return Cholesky factors of small matrices; a variable without variance of its own adds nothing."""
    m = covariance.shape[-1]
    zero = torch.zeros_like(covariance[..., 0, 0])
    rows: list[list[Tensor]] = []
    for i in range(m):
        row: list[Tensor] = []
        for j in range(i):
            rest = covariance[..., i, j] - sum((row[k] * rows[j][k] for k in range(j)), zero)
            pivot = rows[j][j]
            row.append(torch.where(pivot > 0, rest / torch.where(pivot > 0, pivot, 1.0), zero))
        rest = covariance[..., i, i] - sum((value.square() for value in row), zero)
        floor = 1e-13 * covariance[..., i, i]
        row.append(torch.where(rest > floor, rest.clamp(min=0).sqrt(), zero))
        rows.append(row)
    full = [torch.stack([*row, *([zero] * (m - len(row)))], -1) for row in rows]
    return torch.stack(full, -2)
