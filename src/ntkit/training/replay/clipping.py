"""What a loop did to gradients between the backward pass and the step, as a rule read off the whole run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ntkit.errors import NtkitError
from ntkit.training.folder.run import Run

_TINY = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by the norm and this
_CLOSE = 1e-4


@dataclass(frozen=True)
class Clipping:
    """Factors of gradients by step, and of which rule they are.

    Either all steps have one factor, or gradients longer than ``most`` were scaled to that length, as
    ``clip_grad_norm_`` does: s = min(1, most / (norm + 1e-6)).
    """

    factors: list[float] = field(default_factory=list)
    most: float | None = None

    @classmethod
    def of(cls, run: Run, gradient: Callable[[int], Tensor]) -> Clipping:
        """Read the rule off a run; ``gradient(k)`` is that of the loss at step k, ``[P]``."""
        factors = [_factor(run, k, gradient) for k in range(run.steps)]
        steps = [k for k, f in enumerate(factors) if f is not None]
        made = [float(f) for f in factors if f is not None]
        every = [1.0 if f is None else f for f in factors]
        if all(f == 1 for f in made):
            return cls(every)
        norms = [float((gradient(k) * run.graded(k)).norm()) for k in steps]
        return cls(every, cls.read(made, norms, torch.finfo(run.dtype).eps, run.folder))

    @staticmethod
    def read(factors: list[float], norms: list[float], eps: float, folder: object) -> float | None:
        """Return the length that gradients were clipped to, None if all steps have one factor.

        Of both the one is taken that varies less from step to step, over the steps that were scaled.
        """
        scaled = [
            (f, f * (norm + _TINY)) for f, norm in zip(factors, norms, strict=True) if abs(f - 1) > 8 * eps
        ]
        most = sorted(length for _, length in scaled)[len(scaled) // 2] if scaled else 0.0
        if not scaled:
            return None
        constant = len(scaled) == len(factors) and _spread([f for f, _ in scaled]) <= _CLOSE
        fits = _spread([length for _, length in scaled]) <= _CLOSE and all(
            f < 1 if abs(f - 1) > 8 * eps else norm <= most * (1 + _CLOSE)
            for f, norm in zip(factors, norms, strict=True)
        )
        if constant and (not fits or _spread([f for f, _ in scaled]) < _spread([m for _, m in scaled])):
            return None
        if not fits:
            raise NtkitError(
                f"The gradients of the run in {folder} were multiplied by factors that neither are one "
                f"number nor clip the norm of all gradients to one length, so that it is not known what they "
                f"would be without a sample. Clip by torch.nn.utils.clip_grad_norm_ over all parameters."
            )
        rounded = (float(f"{most:.{digits}g}") for digits in range(1, 7))
        return next((r for r in rounded if abs(r - most) <= 32 * eps * most), most)

    def clip(self, k: int, parameters: dict[str, nn.Parameter]) -> None:
        """Do to the gradients of a step what the rule says."""
        if self.most is not None:
            torch.nn.utils.clip_grad_norm_(parameters.values(), self.most)
        elif self.factors and self.factors[k] != 1:
            for p in parameters.values():
                if p.grad is not None:
                    p.grad.mul_(self.factors[k])

    def clipped(self, k: int, g: Tensor) -> Tensor:
        """Return the flat gradient ``[P]`` of a step of the run as its optimizer got it."""
        factor = self._factor(k, g)
        return g if factor == 1 else g * factor

    def pulled(self, k: int, g: Tensor, rows: Tensor) -> Tensor:
        """Return rows ``[r, P]`` times the derivative of the clipped gradient by the gradient ``g``."""
        factor = self._factor(k, g)
        if self.most is None or factor == 1:
            return rows if factor == 1 else rows * factor
        norm = float(g.norm())
        return factor * (rows - torch.outer(rows @ g, g / (norm * (norm + _TINY))))

    def _factor(self, k: int, g: Tensor) -> float:
        if self.most is not None:
            return min(1.0, self.most / (float(g.norm()) + _TINY))
        return self.factors[k] if self.factors else 1.0


def _spread(values: list[float]) -> float:
    return (max(values) - min(values)) / max(values)


def _factor(run: Run, k: int, gradient: Callable[[int], Tensor]) -> float | None:
    """Return the factor of the gradients of a step, None where there is no gradient."""
    scalars = run.recorded(k)
    if "kept" in scalars:
        return None
    tensors = run.tensors_of(k)
    changed = any(f"scale/{name}" in tensors for name in run.trained)
    if all(f"g/{name}" in tensors for name in run.trained):
        used = torch.cat([tensors[f"g/{name}"].flatten() for name in run.trained]).double()
        raw = gradient(k).to(used)
        found = {float(used @ raw / raw.square().sum())} if raw.any() else set()
        changed = any(float((used - f * raw).norm()) > _CLOSE * float(used.norm()) for f in found)
    elif any(f"g/{name}" in tensors for name in run.trained):
        found, changed = set(), True
    elif "coefficients" in scalars:
        found = {abs(c.get("scale", 1.0)) for c in scalars["coefficients"].values()}
    else:
        ungraded = scalars.get("ungraded", ())
        found = {scalars.get("factors", {}).get(n, 1.0) for n in run.trained if n not in ungraded}
    if changed or (found and max(found) - min(found) > _CLOSE * max(found)):
        raise NtkitError(
            f"The gradients of step {k} of {run.folder} were changed in another way than by one factor for "
            f"all (clipped by value, say, or each parameter by itself): it is not known what they would be "
            f"without a sample. Clip by torch.nn.utils.clip_grad_norm_ over all parameters."
        )
    return max(found) if found else None
