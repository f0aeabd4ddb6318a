"""Leave-one-out errors of ridge in closed form, for many penalties from one eigendecomposition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.eigen import Spectrum
from ntkit.machine.solving.minimum import minimum

RANGE = (1e-10, 1e4)  # of the mean eigenvalue: where the best penalty is looked for


@dataclass(frozen=True)
class Targets:
    """Targets of samples that count, as least squares see them: z = R (y - m), R the roots of the weights.

    Attributes
    ----------
    y : Tensor [n, o]
        The targets.
    root : Tensor [n] or None
        The roots of the sample weights, None where all are 1.
    centered : bool
        Whether m is the (weighted) mean of the targets; else it is zero.
    """

    y: Tensor
    root: Tensor | None = None
    centered: bool = False

    def at(self, rows: Tensor) -> Targets:
        """Return those of some of the samples."""
        return Targets(self.y[rows], None if self.root is None else self.root[rows], self.centered)

    def to(self, device: torch.device) -> Targets:
        """Return them on a device."""
        root = None if self.root is None else self.root.to(device)
        return Targets(self.y.to(device), root, self.centered)

    @property
    def weights(self) -> Tensor:
        """The sample weights ``[n]``."""
        return torch.ones_like(self.y[:, 0]) if self.root is None else self.root.square()

    @property
    def mean(self) -> Tensor:
        """What is subtracted, ``[o]``."""
        if not self.centered:
            return torch.zeros_like(self.y[0])
        return (self.weights[:, None] * self.y).sum(0) / self.weights.sum()

    @property
    def z(self) -> Tensor:
        """The right side of the system (R K R + alpha) c = z, ``[n, o]``."""
        rest = self.y - self.mean
        return rest if self.root is None else rest * self.root[:, None]

    def in_units(self) -> Targets:
        """Return the targets in units of their deviations, in which outputs count alike."""
        std = (self.weights[:, None] * (self.y - self.mean).square()).sum(0).div(self.weights.sum()).sqrt()
        return Targets(self.y / torch.where(std > 0, std, 1.0), self.root, True)

    def residuals(self, c: Tensor, constant: Tensor, diagonal: Tensor) -> Tensor:
        """Return y_n - f(x_n) for f fitted without sample n, ``[..., n, o]``: mean and all, exactly.

            (c_n - (m_-n - m) (G R 1)_n) / (R_n G_nn),    G = (R K R + alpha)^-1,  c = G z

        ``c`` ``[..., n, o]``, ``constant`` = G R 1 ``[..., n]``, ``diagonal`` of G ``[..., n]``.
        """
        if self.centered and len(self.y) > 1:
            w, total = self.weights, self.weights.sum()
            shift = w[:, None] * (self.mean - self.y) / (total - w)[:, None]
            c = c - constant[..., None] * shift
        scale = diagonal if self.root is None else diagonal * self.root
        return c / scale[..., None]

    def of(self, whole: Spectrum, alphas: Tensor) -> Tensor:
        """Return the residuals ``[a, n, o]`` for penalties ``[a]``, by the spectrum of R K R."""
        inverse = 1 / (whole.values + alphas[:, None]).clamp_min(1e-300)  # [a, n]
        ones = torch.ones_like(self.weights) if self.root is None else self.root
        right = torch.cat([self.z, ones[:, None]], 1)
        parts = whole.vectors.T @ right
        scaled = (inverse.T[:, :, None] * parts[:, None, :]).reshape(len(parts), -1)
        solved = (whole.vectors @ scaled).reshape(len(parts), len(alphas), -1).transpose(0, 1)
        diagonal = (whole.vectors.square() @ inverse.T).T
        return self.residuals(solved[..., :-1], solved[..., -1], diagonal)


def losses(targets: Targets, residuals: Tensor) -> Tensor:
    """Return the weighted squared error of each sample, a mean over outputs, ``[..., n]``."""
    return targets.weights * residuals.square().mean(-1)


def gcv(targets: Targets, whole: Spectrum, alpha: float) -> float:
    """Return n |c|^2 / (tr G)^2, a mean over outputs."""
    inverse, z = whole.inverse(alpha), targets.z
    parts = inverse[:, None] * (whole.vectors.T @ z)
    return float(len(z) * parts.square().sum() / z.shape[1] / inverse.sum().square())


def error(targets: Targets, whole: Spectrum, alpha: float, score: str) -> float:
    """Return the mean error of a penalty by its score, ``"loo"`` or ``"gcv"``."""
    if score == "gcv":
        return gcv(targets, whole, alpha)
    return float(losses(targets, targets.of(whole, whole.values.new_tensor([alpha]))).mean())


def mean_eigenvalue(whole: Spectrum) -> float:
    """Return the mean eigenvalue, the scale of penalties; 1 for a kernel that is zero."""
    return float(whole.values.mean()) or 1.0


def grid(whole: Spectrum, count: int) -> np.ndarray:
    """Return logarithms of penalties to try, over the mean eigenvalue."""
    scale = mean_eigenvalue(whole)
    return np.linspace(np.log(max(RANGE[0], whole.floor / scale)), np.log(RANGE[1]), count)


def best_penalty(targets: Targets, whole: Spectrum, score: str = "loo") -> float:
    """Return the penalty of least leave-one-out or GCV error: the best of a grid, refined."""
    logs, scale = grid(whole, 57), mean_eigenvalue(whole)

    def at(log: float) -> float:
        return error(targets, whole, scale * float(np.exp(log)), score)

    if score == "loo":
        alphas = torch.as_tensor(scale * np.exp(logs)).to(whole.values)
        parts = alphas.split(max(1, 2**24 // targets.y.numel()))
        values = torch.cat([losses(targets, targets.of(whole, a)).mean(-1) for a in parts]).cpu().numpy()
    else:
        values = np.array([at(log) for log in logs])
    # flat up to rounding (a constant target, an exact fit): the largest penalty that is as good
    best = int(np.flatnonzero(values <= values.min() * (1 + 1e-9) + 1e-300)[-1])
    if best in (0, len(logs) - 1):
        return float(scale * np.exp(logs[best]))
    bounds = (logs[best - 1], logs[best + 1])
    log, value = minimum(at, bounds[0], bounds[1], 1e-3)
    return float(scale * np.exp(log if value <= values[best] else logs[best]))
