"""Systems with a stored kernel matrix: which solver, why, how long, and the solution."""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from ntkit.compute.cg import Solution, conjugate_gradients, low_rank_inverse
from ntkit.compute.out_of_core import costs
from ntkit.compute.out_of_core.blocked import LEAST_WIDTH, BlockedCholesky, panel_width
from ntkit.compute.out_of_core.checkpoint import Checkpoint
from ntkit.compute.out_of_core.factor import LEAST, ColumnFactor
from ntkit.compute.out_of_core.in_place import InPlaceCholesky
from ntkit.compute.out_of_core.refine import refined
from ntkit.compute.out_of_core.source import TiledMatrix, fingerprint
from ntkit.compute.pivoted import pivoted_cholesky
from ntkit.compute.plan import format_bytes
from ntkit.compute.progress import progress
from ntkit.compute.tiled.kernel import TiledKernel
from ntkit.errors import BadValueError, one_of
from ntkit.files import Scratch, hash_data
from ntkit.machine.solving.solve import Solved

SOLVERS = ("auto", "cholesky", "cg")
PASSES = 4  # through the tiles, and a few more for what is rejected, in which a preconditioner is made
FACTORS = "factors"  # the folder beside the tiles


@dataclass(frozen=True)
class Way:
    """A solver for a stored matrix, why it was taken, and the seconds that it is expected to take."""

    solver: str
    reason: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.solver}: {self.reason}; about {in_words(self.seconds)}"


@dataclass(frozen=True)
class How:
    """What a user says of the solution: ``memory`` in bytes, the others as of `KernelRidge`."""

    solver: str = "auto"
    memory: int = 2**33
    tol: float = 1e-8
    max_iter: int | None = None
    rank: int | None = None
    seed: int = 0
    verbose: bool = False


def in_words(seconds: float) -> str:
    """Return a time for people.

    >>> in_words(0.2), in_words(100.0), in_words(9000.0)
    ('1 second', '100 seconds', '2.5 hours')
    """
    if seconds < 180:
        count = max(1, round(seconds))
        return f"{count} second{'s' * (count > 1)}"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def choose(n: int, itemsize: int, columns: int, how: How, shift: float, mean_diagonal: float) -> Way:
    """Return the solver for a stored matrix of n rows: of those that can serve, the one that is done first.

    Cholesky in place needs room for n x n values, else a panel and the factor on disk, and in float32 a
    ridge of a thousandth of the mean diagonal; conjugate gradients keep as many tiles as fit.
    """
    one_of("solver", how.solver, SOLVERS)
    machine = costs.this_machine(torch.get_num_threads())
    exact, where = _cholesky(n, itemsize, columns, how.memory)
    steps = costs.ITERATIONS * max(1.0, np.log(how.tol) / np.log(1e-8))
    iterative = costs.conjugate_gradients(n, itemsize, columns, how.memory, steps)
    ways = {
        "cholesky": Way("cholesky", where, exact.seconds(machine, itemsize)),
        "cg": Way(
            "cg",
            f"about {steps:.0f} products with {format_bytes(costs.stored(n, itemsize))} of tiles, of which "
            f"{format_bytes(min(how.memory, costs.stored(n, itemsize)))} stay in memory",
            iterative.seconds(machine, itemsize),
        ),
    }
    if how.solver != "auto":
        chosen = ways[how.solver]
        return Way(chosen.solver, f"asked for, {chosen.reason}", chosen.seconds)
    if not _in_place(n, itemsize, how.memory) and panel_width(n, itemsize, how.memory) < LEAST_WIDTH:
        return Way("cg", f"no memory for Cholesky's columns; {ways['cg'].reason}", ways["cg"].seconds)
    if itemsize == 4 and shift < LEAST * mean_diagonal:
        chosen = ways["cg"]
        low = f"a factor in float32 needs a ridge of {LEAST * mean_diagonal:.3g}, this is {shift:.3g}; "
        return Way("cg", low + chosen.reason, chosen.seconds)
    best = min(ways.values(), key=lambda way: way.seconds)
    other = ways["cg" if best.solver == "cholesky" else "cholesky"]
    return Way(
        best.solver, f"{best.reason} ({other.solver} would take {in_words(other.seconds)})", best.seconds
    )


def _in_place(n: int, itemsize: int, memory: int) -> bool:
    return costs.cholesky_in_place(n, itemsize, 1).held <= memory


def _cholesky(n: int, itemsize: int, columns: int, memory: int) -> tuple[costs.Cost, str]:
    if _in_place(n, itemsize, memory):
        return costs.cholesky_in_place(n, itemsize, columns), "exact, in place"
    whole = format_bytes(costs.cholesky_in_place(n, itemsize, columns).held)
    disk = f"exact, the factor on disk ({whole} in place, memory is {format_bytes(memory)})"
    return costs.cholesky_from_disk(n, itemsize, columns, memory), disk


@dataclass
class TiledSystem:
    """(K + shift) x = b for a stored matrix K, in float64; a factor stays for the next right-hand sides.

    Attributes
    ----------
    way : Way or None
        What was chosen for the last solution.
    """

    tiled: TiledKernel
    how: How
    way: Way | None = None
    _factors: dict[float, ColumnFactor] = field(default_factory=dict)
    _ways: dict[float, Way] = field(default_factory=dict)
    _mean: float | None = None
    _inverses: dict[float, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tiled.symmetric or self.tiled.outputs != 1:
            raise BadValueError(
                f"{self.tiled} has {self.tiled.outputs} outputs for a sample and shape {self.tiled.shape}; "
                "solvers on tiles take a square matrix with one value for two samples: build it with x2 left "
                "out and outputs='mean'."
            )
        self.n = self.tiled.shape[0]
        self.matrix = TiledMatrix(self.tiled, self.how.memory, None)
        self._scratch: Scratch | None = None

    def submatrix(self, index: np.ndarray) -> Tensor:
        """Return the kernel matrix of some samples, in float64."""
        return self.matrix.submatrix(torch.as_tensor(index))

    def solve(self, b: Tensor, shift: float) -> Solved:
        """Return (K + shift)^-1 b for columns ``[n, r]``; say before which solver, why, and how long."""
        itemsize = self.tiled.dtype.itemsize
        if shift not in self._ways:
            if self._mean is None:
                self._mean = float(self.matrix.diag().mean())
            self._ways[shift] = choose(self.n, itemsize, b.shape[1], self.how, shift, self._mean)
            told = self.how.verbose
        else:  # the factor or preconditioner is there
            told = False
        self.way = self._ways[shift]
        if told:
            print(f"ntkit: {self.n:,} samples, {self.way}", file=sys.stderr, flush=True)
        begin = time.perf_counter()
        found = self._exact(b, shift) if self.way.solver == "cholesky" else self._iterative(b, shift)
        if told:
            took = in_words(time.perf_counter() - begin)
            print(f"ntkit: {took}, residual {float(found.residual.max()):.1e}", file=sys.stderr, flush=True)
        if not found.converged:
            warnings.warn(
                f"The solution on tiles stopped at a relative residual of {float(found.residual.max()):.1e} "
                f"after {found.iterations} steps, tol={self.how.tol:.1e}. Give a larger alpha or noise, "
                "max_iter or rank, or tiles in float64.",
                ConvergenceWarning,
                stacklevel=4,
            )
        return Solved(found.x, None, found.residual, found.iterations)

    def _exact(self, b: Tensor, shift: float) -> Solution:
        if shift not in self._factors:
            self._factors.clear()
            self._factors[shift] = self._factored(shift)
        factor = self._factors[shift]
        matrix = factor if isinstance(factor, InPlaceCholesky) else self.matrix
        return refined(matrix, factor, b, self.how.tol)

    def _factored(self, shift: float) -> ColumnFactor:
        place = _in_place(self.n, self.tiled.dtype.itemsize, self.how.memory)
        key = {"matrix": fingerprint(self.tiled)}
        folder = self._folder({**key, "shift": shift, "memory": 0 if place else self.how.memory})
        with progress("Cholesky", 100) as step:
            done = [0]

            def report(k: int, count: int) -> None:
                share = round(100 * (1 - (1 - k / count) ** 2))
                step(share - done[0])
                done[0] = share

            if place:
                self.matrix = TiledMatrix(self.tiled, 0)  # the buffer takes the memory
                return InPlaceCholesky(self.tiled, shift, folder, key, report=report)
            self.matrix = TiledMatrix(self.tiled, 0)
            return BlockedCholesky(self.tiled, shift, folder, key, memory=self.how.memory, report=report)

    def _folder(self, key: dict[str, object]) -> Path:
        """Return where the columns of a factor go: beside the tiles, or a temporary place for remote ones."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        root = self.tiled.store.root
        if root is not None:
            return root / FACTORS / name
        self._scratch = self._scratch or Scratch("factor")
        return self._scratch.path / name

    def _iterative(self, b: Tensor, shift: float) -> Solution:
        if shift not in self._inverses:
            rank = self.how.rank or max(1, min(self.n // 4, int(costs.RANK * self.n**0.5)))
            low = pivoted_cholesky(self.matrix, rank, self.how.seed, block=max(16, rank // PASSES))
            self._inverses[shift] = low_rank_inverse(low, shift)
        how = (shift, self.how.tol, self.how.max_iter, self.how.rank, self.how.seed, hash_data(b))
        key = json.dumps([fingerprint(self.tiled), *how])
        kept = Checkpoint(self._folder({"cg": key}) / "state.safetensors", key)
        found = conjugate_gradients(
            self.matrix,
            b,
            shift,
            precondition=self._inverses[shift],
            tol=self.how.tol,
            max_iter=self.how.max_iter,
            kept=kept,
        )
        kept.remove()
        return found
