"""The averaged network (EMA, SWA) of a run: where it was before each step."""

from __future__ import annotations

import torch
from torch import Tensor

from ntkit.errors import BadValueError
from ntkit.training.folder.run import Run
from ntkit.training.replay.step_vectors import StepVectors


def refuse_missing_average(run: Run) -> None:
    """Refuse to speak of the average of a run that was recorded without one, or without its buffers."""
    if not run.averaged:
        raise BadValueError(f"{run.folder} was recorded without an average of weights: record with average=.")
    if run.changes_buffers:
        raise BadValueError(
            "The buffers of the network changed in this run; those of its average are not recorded. Ask for "
            "the last network (average=False)."
        )


class Averages:
    """The average before each step and after the last, ``[P]`` each, recomputed from a run's weights."""

    def __init__(self, run: Run, budget: int) -> None:
        self.taus, start, end = run.average()
        self.steps = run.steps
        first = run.weights(0)
        self.lag = first - start if start is not None else torch.zeros_like(first)
        self.lag = (1 - self.taus[0]) * self.lag
        self._rows = StepVectors(run.steps + 1, len(first), budget)
        at = first - self.lag
        self._rows[0] = at
        for k in range(run.steps):
            at = at + self.taus[k + 1] * (run.weights(k + 1) - at)
            self._rows[k + 1] = at
        self.rounding = torch.zeros_like(at)
        if end is not None and run.steps > 0:
            self.rounding = end - at
            self._rows[run.steps] = end

    def weights(self, k: int) -> Tensor:
        """Return the average before step k."""
        return self._rows[k]
