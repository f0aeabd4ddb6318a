"""Training by gradient flow or descent: coefficients over time, in closed form where the loss is squared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.eigen import Spectrum, spectrum
from ntkit.errors import BadValueError
from ntkit.machine.solving.descent import descend, descent_filter, flow_filter, integrate
from ntkit.machine.solving.losses import loss_of


@dataclass(frozen=True)
class Trajectory:
    """How coefficients move: by gradient flow, or by descent with a rate and a momentum.

    ``precision`` is the dtype in which kernels were computed.
    """

    loss: str | Callable[[Tensor, Tensor], Tensor]
    learning_rate: float | None
    momentum: float
    precision: torch.dtype

    def filter(self, values: Tensor, t: float, n: int) -> Tensor:
        """Return what a target along each eigenvector is multiplied by, to give its coefficient at t."""
        if self.learning_rate is None:
            return flow_filter(values, t, n)
        return descent_filter(values, t, n, self.learning_rate, self.momentum)

    def coefficients(
        self, gram: Tensor, whole: Spectrum | None, y: Tensor, f0: Tensor, times: np.ndarray
    ) -> Tensor:
        """Return coefficients ``[T, n, o]`` for a kernel matrix and targets (its spectrum, if known)."""
        if self.loss == "squared":
            whole = spectrum(gram, self.precision) if whole is None else whole
            rest = y - f0
            filters = [self.filter(whole.values, float(t), len(y)) for t in times]
            return torch.stack([whole.apply(g, rest) for g in filters])
        if not np.isfinite(times).all():
            raise BadValueError(
                f"t=inf with loss={self.loss!r}: such a flow need not converge; give a finite t, or "
                f"early_stopping."
            )
        order, loss = np.argsort(times), loss_of(self.loss)
        rising = [float(t) for t in times[order]]
        if self.learning_rate is not None:
            path = descend(gram, y, f0, loss, rising, self.learning_rate, self.momentum)
        elif rising[-1]:
            path = integrate(gram, y, f0, loss, rising)
        else:
            path = gram.new_zeros(len(rising), *y.shape)
        return path[torch.as_tensor(np.argsort(order))]
