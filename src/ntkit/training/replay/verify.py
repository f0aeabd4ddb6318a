"""Each recorded step against the one that data, loss and model give: the check, and the rounding."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import NtkitError, PathMismatchError
from ntkit.training.folder.step import Step
from ntkit.training.replay.step_vectors import StepVectors
from ntkit.training.replay.steps import Replay

# up to which step rounding is measured at each, and how often later, unless a step is off by more
_ROUNDING = {torch.float64: (2, 64), torch.float32: (2, 16)}
_MOST, _TOGETHER = 64, 2**20  # steps whose gradients are made in one go, and numbers in these
_MARGIN = 16.0  # how many times the estimated rounding a step may be off


def compare_steps(
    replay: Replay, budget: int, done: Callable[[int], None], check: StepCheck | None = None
) -> StepVectors:
    """Model every step and return the differences; refuse a run of other data, loss or model.

    The gradient is also made in the dtype of the training: the recorded step must be that one up to
    rounding. How large rounding is, is measured: by what separates the two dtypes, or, where the model is
    made in the dtype of the run, by what relative changes of the weights by one unit in the last place do.
    """
    run = replay.run
    differences = StepVectors(run.steps, replay.net.total, budget, replay.dtype)
    check = check or StepCheck(replay)
    first, weights = 0, [run.weights(0)]  # large ones: no more of them at a time than it takes
    while first < run.steps:
        steps = [run.step(first)]
        size = (1 + len(steps[0].batch)) * max(1, replay.net.total)
        most = min(_MOST, run.steps - first, _TOGETHER // size)
        while len(steps) < most and replay.alike(steps[0], step := run.step(first + len(steps))):
            steps.append(step)
        weights += [run.weights(first + t + 1) for t in range(len(steps))]
        gradients, natives = None, None
        if len(steps) > 1:
            rows = torch.stack(weights[:-1])
            gradients = replay.gradients(rows, first, steps)
            if not check.alike(steps):
                natives = replay.gradients(rows, first, steps, native=True)
        for t in range(len(steps)):
            known, native = (None if g is None else g[t] for g in (gradients, natives))
            differences[first + t] = check.step(first + t, weights[t], weights[t + 1], known, native)
            done(1)
        first, weights = first + len(steps), weights[-1:]
    return differences


class StepCheck:
    """The recursion of the optimizer with its error bound alongside."""

    def __init__(self, replay: Replay, earlier: StepCheck | None = None) -> None:
        self.replay, self.run, self.net = replay, replay.run, replay.net
        self.eps = torch.finfo(self.run.dtype).eps
        start = self.run.momentum()
        empty = torch.zeros(self.net.total, dtype=torch.float64, device=self.run.device)
        self.m = empty if start is None else start
        self.m_native = self.m
        self.m_error = self.eps * self.m.abs()
        self.noise = 0.0
        self.finite: Tensor | None = None  # weights that were found to be
        self.slow: Tensor | None = None  # where Lookahead was last, its start until then
        if earlier is not None:  # the momentum as it is in exact arithmetic, not as its buffer has it
            self.m, self.m_error, self.noise = earlier.m.clone(), earlier.m_error.clone(), earlier.noise
            self.m_native = self.m if earlier.m_native is earlier.m else earlier.m_native.clone()
        self.random = torch.Generator(self.run.device).manual_seed(0)

    def alike(self, steps: list[Step]) -> bool:
        """Whether gradients are made in the dtype of the training anyway."""
        plain = all(f.autocast is None for step in steps for f in step.forwards)
        return self.replay.native is self.replay.net and plain

    def step(
        self, k: int, w: Tensor, after: Tensor, gradient: Tensor | None = None, native: Tensor | None = None
    ) -> Tensor:
        """Return recorded minus modelled step k; its gradient may be known, also in the dtype of the run."""
        step = self.run.step(k)
        if gradient is None or step.kept is not None:
            self._refuse_infinite(k, w, after)
        if step.kept is not None:
            return self._synchronized(k, step.kept, w, after)
        c = step.coefficients
        g = self.replay.gradient(w, k, step) if gradient is None else gradient
        plain, (g_native, noise) = g, self._rounded(w, g, k, step, native)
        self.noise = max(noise or 0.0, 0.98 * self.noise)
        alike = g_native is g and self.m_native is self.m
        if not (alike and _is_one(c.scale) and _is_zero(c.decay)):
            g = _combined(c.scale, g, c.decay, w)
        g_native = g if alike else _combined(c.scale, g_native, c.decay, w)
        largest = _largest(g)
        if not isfinite(largest):
            self._refuse_infinite(k, w, after)
            raise NtkitError(f"The gradient of step {k} holds NaN or infinite values; check inputs and loss.")
        if not alike and self.m_native is self.m:
            self.m_native = self.m.clone()
        _carry(c.mu, self.m, c.nu, g)
        if not alike:
            _carry(c.mu, self.m_native, c.nu, g_native)
        change = after - w
        missing = _descent(step, g_native, self.m_native, w).add_(change)
        off = missing.abs()
        g_error = _size(c.scale) * self.noise + self.eps * largest
        if not _is_zero(c.decay):
            g_error = g_error + self.eps * (c.decay * w).abs()
        self.m_error.mul_(_size(c.mu)).add_(_size(c.nu) * g_error)
        moved = self.m_native.abs()
        self.m_error.add_(moved, alpha=self.eps)

        def allowed() -> Tensor:
            bound = (_MARGIN * _size(c.b)) * self.m_error
            if not _is_zero(c.a):
                bound.add_((_MARGIN * _size(c.a)) * g_error)
            bound = step.multiplied(bound, sizes=True).add_(moved, alpha=_MARGIN * self.eps)
            return bound if _is_zero(c.rounding) else bound.add_(c.rounding)

        torch.abs(w, out=moved)
        if not _within(off, allowed()):  # which is less than what follows, and most often enough
            self._refuse_infinite(k, w, after)
            moved.add_(after.abs()).add_(change.abs_())
            if noise is None and not _within(off, allowed()):
                more, self.noise = -self.noise, max(self.noise, self._nudged(w, plain, k, step))
                more = _size(c.scale) * (more + self.noise)
                g_error = g_error + more
                self.m_error.add_(_size(c.nu) * more)
            self._refuse(k, off, allowed())
        return missing if alike else _descent(step, g, self.m, w).add_(after - w)

    def _refuse_infinite(self, k: int, w: Tensor, after: Tensor) -> None:
        for name, value in (("before", w), ("after", after)):
            if value is not self.finite and not _is_finite(value):
                raise NtkitError(
                    f"The recorded weights {name} step {k} hold NaN or infinite values: the training "
                    f"diverged. Record again with a smaller learning rate, or for {k} steps."
                )
        self.finite = after

    def _synchronized(self, k: int, kept: float, w: Tensor, after: Tensor) -> Tensor:
        slow, self.slow = self.run.weights(0) if self.slow is None else self.slow, after
        off = after - w - (kept - 1) * (w - slow)
        self._refuse(k, off.abs(), _MARGIN * self.eps * (w.abs() + after.abs() + slow.abs()))
        return off

    def _rounded(
        self, w: Tensor, g: Tensor, k: int, step: Step, native: Tensor | None
    ) -> tuple[Tensor, float | None]:
        """Return the gradient in the precision of the training, and its rounding if that is measured here."""
        if self.alike([step]):
            each, often = _ROUNDING[self.replay.dtype]
            if k >= each and k % often:  # it changes slowly, and costs as much as the gradient itself
                return g, None
            return g, self._nudged(w, g, k, step)
        if native is None or any(f.autocast is not None for f in step.forwards):
            native = self.replay.gradient(w, k, step, native=True)
        return native, float((native - g).abs().max())

    def _nudged(self, w: Tensor, g: Tensor, k: int, step: Step) -> float:
        """Return what moving each weight by a unit in its last place changes in a gradient."""
        up = torch.randint(0, 2, w.shape, dtype=w.dtype, device=w.device, generator=self.random)
        moved = self.replay.gradient(w * (1 + self.eps * (2 * up - 1)), k, step)
        return float((moved - g).abs().max())

    def _refuse(self, k: int, off: Tensor, allowed: Tensor) -> None:
        wrong = ~(off <= allowed)
        if not wrong.any():
            return
        worst = int((off / allowed.clamp_min(1e-300)).argmax())
        hint = ""
        if self.replay.augment is None and any(f.announced is not None for f in self.run.step(k).forwards):
            hint = " Random numbers were drawn between run.batch and the network: if they changed the batch, "
            hint += "give augment=, what changed it."
        bounds = np.cumsum(self.net.sizes)
        name = list(self.net.shapes)[int(np.searchsorted(bounds, worst, side="right"))]
        raise PathMismatchError(
            f"Step {k} of {self.run.folder} is not the step that this model, loss and data give: in {name!r} "
            f"the recorded change of the weights is {float(off[worst]):.3g} away from the modelled one, "
            f"where rounding explains at most {float(allowed[worst]):.3g} ({int(wrong.sum())} of {len(off)} "
            f"weights are off). Check that `train` holds the inputs and labels of the run in the same order, "
            f"that `loss` is the one that backward() was called on (mean or sum, its weights), that the "
            f"model is built alike, that nothing else touched the gradients (noise, augmentation), and that "
            f"the description of {self.run.manifest['optimizer']} is right.{hint}"
        )


def _descent(step: Step, g: Tensor, m: Tensor, w: Tensor) -> Tensor:
    """Return a new tensor: what the step takes from the weights."""
    c = step.coefficients
    change = step.multiplied(_combined(c.a, g, c.b, m))
    return change if _is_zero(c.d) else change.add_(c.d * w)


def _carry(mu: float | Tensor, m: Tensor, nu: float | Tensor, g: Tensor) -> None:
    """Let m be mu m + nu g, of a factor that is 0 nothing."""
    if _is_zero(mu):
        torch.mul(g, nu, out=m)
    else:
        m.mul_(mu)
        if isinstance(nu, Tensor):
            m.add_(nu * g)
        elif nu:
            m.add_(g, alpha=nu)


def _combined(a: float | Tensor, u: Tensor, b: float | Tensor, v: Tensor) -> Tensor:
    """Return a u + b v, of a factor that is 0 nothing."""
    if _is_zero(b):
        return a * u
    if _is_zero(a):
        return b * v
    return (a * u).add_(b * v) if isinstance(b, Tensor) else (a * u).add_(v, alpha=b)


def _is_zero(factor: float | Tensor) -> bool:
    return not isinstance(factor, Tensor) and factor == 0


def _is_one(factor: float | Tensor) -> bool:
    return not isinstance(factor, Tensor) and factor == 1


def _is_finite(v: Tensor) -> bool:
    """Whether all are; their sum says so faster, unless it overflows."""
    return bool(torch.isfinite(v.sum()) or torch.isfinite(v).all())


def _largest(v: Tensor) -> float:
    """Return the largest abs(element), NaN if there is one."""
    if not v.numel():
        return 0.0
    low, high = torch.aminmax(v)
    return float(torch.maximum(-low, high))


def _within(off: Tensor, allowed: Tensor) -> bool:
    """Whether all are; what is allowed is written over."""
    return not off.numel() or float(torch.aminmax(allowed.sub_(off))[0]) >= 0  # NaN is not


def _size(coefficient: float | Tensor) -> Any:
    return abs(coefficient)
