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
_DIGITS = 6


@dataclass(frozen=True)
class Clipping:
    """Factors of gradients by step, and of which rule they are.

    Either all steps have one factor, or gradients longer than ``most`` were scaled to that length, as
    ``clip_grad_norm_`` does: s = min(1, most / (norm + 1e-6)).
    """

    factors: list[float] = field(default_factory=list)
    most: float | None = None

    @classmethod
    def read(cls, factors: list[float], norms: list[float], folder: object) -> Clipping:
        """Find the rule of a run from the factor and the norm of the gradient at each step."""
        sizes = factors
        clipped = [s * (norm + _TINY) for s, norm in zip(sizes, norms, strict=True) if s < 1 - _CLOSE]
        most = sorted(clipped)[len(clipped) // 2] if clipped else 0.0
        fits = (
            clipped != []
            and all(abs(m - most) <= _CLOSE * most for m in clipped)
            and all(
                abs(s - 1) <= _CLOSE and norm <= most * (1 + _CLOSE)
                for s, norm in zip(sizes, norms, strict=True)
                if s >= 1 - _CLOSE
            )
        )
        if not fits:
            raise NtkitError(
                f"The gradients of the run in {folder} were multiplied by factors that neither are one "
                f"number nor clip the norm of all gradients to one length, so that it is not known what they "
                f"would be without a sample. Clip by torch.nn.utils.clip_grad_norm_ over all parameters."
            )
        rounded = float(f"{most:.{_DIGITS}g}")
        plain = float(f"{most:.3g}")
        return cls(factors, plain if abs(plain - most) <= _CLOSE * most else rounded)

    @classmethod
    def of(cls, run: Run, gradient: Callable[[int], Tensor]) -> Clipping:
        """Read the rule off a run; ``gradient(k)`` is that of the loss at step k, ``[P]``."""
        factors = [_factor(run, k, gradient) for k in range(run.steps)]
        made = [f for f in factors if f is not None]
        alike = not made or max(made) - min(made) <= _CLOSE * max(made)
        every = [1.0 if f is None else f for f in factors]
        if alike:
            return cls(every)
        steps = [k for k, f in enumerate(factors) if f is not None]
        return cls(every, cls.read(made, [float(gradient(k).norm()) for k in steps], run.folder).most)

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
        return g * self._factor(k, g)

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
