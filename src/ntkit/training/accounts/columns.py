"""What a sweep over a run starts from, and the sums that it makes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ntkit.inputs import batch_size
from ntkit.training.accounts.averaged_account import Averages
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Step
from ntkit.training.functional.flat_network import FlatNetwork
from ntkit.training.integrals.gauss import QuadratureRule
from ntkit.training.replay.step_vectors import StepVectors
from ntkit.training.replay.steps import Replay

COLUMNS = ("decay", "start", "buffers", "rounding")  # those with one number for each row
WAYS = ("structure", "forward mode", "backward passes", "backward twice")  # where contributions come from
SUMS = (*COLUMNS, "unsigned")


@dataclass(frozen=True)
class Columns:
    """Sums over the path for r = queries times outputs rows: ``contributions [r, n]``, the rest ``[r]``.

    ``by_step [r, steps]`` are the contributions of each step's batch together, instead of each sample's.
    ``nodes`` counts the nodes of each step, the most of one query; ``spent`` the gradients of all queries.
    ``unsigned`` are the absolute residuals of the steps, added up; ``ways`` counts the batches whose
    contributions came from each of `WAYS`.
    """

    contributions: Tensor
    by_step: Tensor
    decay: Tensor
    start: Tensor
    buffers: Tensor
    rounding: Tensor
    unsigned: Tensor
    ways: Tensor
    nodes: Tensor
    spent: int


@dataclass(frozen=True)
class SweepInput:
    """A run with all that a sweep over it needs; ``average`` if predictions are those of an average.

    ``net`` is the network of the queries; ``rule`` the one that all steps take. Without one, each step is to
    reach ``share``; or all together are to reach ``allowed``, where that is given.
    """

    run: Run
    net: FlatNetwork
    replay: Replay
    rule: QuadratureRule | None
    share: float
    differences: StepVectors | None
    mixing: frozenset[tuple[tuple[str, ...], ...]] = frozenset()
    average: Averages | None = None
    allowed: float | None = None

    @property
    def samples(self) -> int:
        """The number of training samples."""
        return batch_size(self.replay.data[0])

    def mixes(self, step: Step) -> bool:
        """Whether the samples of a step's batch depend on each other, or on random numbers."""
        return tuple(f.modes for f in step.forwards) in self.mixing or self.replay.mixes(step)
