"""How a step of an optimizer carries derivatives backwards: from what it made to what it was given."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ntkit.errors import NtkitError, PathMismatchError
from ntkit.files import Json
from ntkit.training.folder.optimizer_state import read_settings
from ntkit.training.folder.run import Run
from ntkit.training.folder.step import Step
from ntkit.training.optimizers import Coefficients
from ntkit.training.optimizers.registry import known_optimizers
from ntkit.training.replay.retraining import Settings
from ntkit.training.replay.step_vectors import StepVectors

_LINEAR = ("torch.optim.sgd.SGD",)  # linear in gradients, with coefficients that are constants
_ROUGH = {
    "torch.optim.rprop.Rprop": "its step takes the signs of gradients, and is flat but for jumps",
    "torch.optim._muon.Muon": "torch has no differentiable form of its step",
    "torch.optim._adafactor.Adafactor": "torch has no differentiable form of its step",
}
_COUNTS = ("step", "mu_product", "mu", "eta")  # of a state, what is one number for all weights
_PLAIN: Json = {"foreach": False, "fused": False, "capturable": False}
_TINY = 1e-150
_ROUNDED = 1e-4  # of the largest gradient, below which it may be rounding
_CLOSE = 1e-3  # of the largest change of a step: what the step made again may be off


class PullBack(Protocol):
    """Takes rows of derivatives by what step k made to derivatives by what it was given."""

    states: int

    def __call__(self, k: int, step: Step, g: Tensor, rows: Tensor, behind: Tensor) -> tuple[Tensor, ...]:
        """Return rows by w ``[r, P]``, by g, and by the state before ``[r, S, P]``.

        ``g [P]`` is the gradient as the optimizer got it, ``rows [r, P]`` and ``behind [r, S, P]`` are by the
        weights and the state after the step, and may be overwritten.
        """
        ...


class LinearPullBack:
    """SGD: w' = w - a g' - b m' - d w, with m' = mu m + nu g' and g' = g + decay w."""

    states = 1

    def __call__(self, k: int, step: Step, g: Tensor, rows: Tensor, behind: Tensor) -> tuple[Tensor, ...]:
        """Return rows by w, g and m; those that are given are overwritten."""
        by_w, by_g, m = _linear(step.coefficients, rows, behind[:, 0])
        return by_w, by_g, m[:, None]


def _linear(c: Coefficients, rows: Tensor, m: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Carry rows by w' and m' through a linear step, in place, to rows by w, g and m."""
    _add(m, -c.b, rows)
    before, of_g = m * c.mu, _scaled(m, c.nu)
    _add(of_g, -c.a, rows)
    _add(rows, -c.d, rows)
    _add(rows, c.decay, of_g)
    sign = c.scale.sign() if isinstance(c.scale, Tensor) else (-1.0 if c.scale < 0 else 1.0)
    return rows, _scaled(of_g, sign), before


def _at(c: Coefficients, where: Tensor) -> Coefficients:
    """Return the coefficients of some of the weights."""
    values = {k: v[where] if isinstance(v, Tensor) and v.ndim else v for k, v in vars(c).items()}
    return Coefficients(**values)


def _add(to: Tensor, factor: float | Tensor, rows: Tensor) -> None:
    """Add a multiple of rows in place, one factor for all weights or one for each."""
    if isinstance(factor, Tensor):
        to.addcmul_(factor.to(to), rows)
    elif factor:
        to.add_(rows, alpha=factor)


def _scaled(rows: Tensor, factor: float | Tensor) -> Tensor:
    return rows if not isinstance(factor, Tensor) and factor == 1 else rows.mul_(factor)


@dataclass
class _Unit:
    """Weights that always step together: those of one group that had gradients at the same steps."""

    kind: type[torch.optim.Optimizer]
    number: int
    group: int
    where: Tensor
    state: dict[str, Tensor]
    plain: Json
    keys: list[str] = field(default_factory=list)

    @property
    def is_linear(self) -> bool:
        """Whether its steps are linear in gradients."""
        return f"{self.kind.__module__}.{self.kind.__qualname__}" in _LINEAR


class ElementwisePullBack:
    """Optimizers that divide by a memory of gradients, through torch's own step, made differentiable.

    All these steps are functions of each weight by itself, so that their Jacobians are diagonal. Their state
    before each step is made again in float64, from the recorded weights and the gradients; the step that
    follows must be the recorded one. Where a second moment is zero, so were all gradients, and so is the
    first moment: the step is m / eps there, and the derivative of the root is to be taken as zero.
    """

    def __init__(
        self, run: Run, gradient: Callable[[int], Tensor], budget: int, done: Callable[[int], None]
    ) -> None:
        self._run = run
        self._settings: list[list[list[Json]]] = []
        self._units = _units(run)
        self._plain: list[list[Json]] = []
        self._follow(gradient, budget, done)

    def _follow(self, gradient: Callable[[int], Tensor], budget: int, done: Callable[[int], None]) -> None:
        run, settings = self._run, Settings(self._run)
        self.states, rows = 1, None
        for k in range(run.steps):
            if run.recorded(k).get("kept") is None:
                settings.at(k)
            if run.recorded(k).get("fresh"):
                for u in self._units:
                    u.state, u.plain = {}, {}
            self._settings.append(settings.now)
            self._plain.append([copy.deepcopy(u.plain) for u in self._units])
            if rows is not None:
                rows[k] = self._states().reshape(-1)
            if run.recorded(k).get("kept") is None:
                self._step(k, gradient(k))
            if rows is None:
                self.states = max(1, *(len(u.keys) for u in self._units))
                rows = StepVectors(run.steps, self.states * len(run.weights(0)), budget)
                rows[0] = self._first_states()
            done(1)
        self._rows = rows

    def _step(self, k: int, g: Tensor) -> None:
        """Step as the run did, from its weights; the state moves on."""
        w, after = self._run.weights(k), self._run.weights(k + 1)
        stepping = self._stepping(k)
        self._before = [dict(u.state) for u in self._units] if k == 0 else []
        for number, u in enumerate(self._units):
            if number not in stepping or u.is_linear:
                continue
            p, optimizer = self._made(u, k, w[u.where].clone(), g[u.where], False)
            with torch.no_grad(), _wide():
                optimizer.step()
            state = optimizer.state[p]
            u.keys = [key for key, v in state.items() if isinstance(v, Tensor) and v.shape == p.shape]
            u.state = {key: state[key].detach().clone() for key in u.keys}
            u.plain = {key: _doubled(v) for key, v in state.items() if key not in u.keys}
            # where a gradient is only rounding, so is the step: Adam divides it by its own size
            counts = g[u.where].abs() > _ROUNDED * g.abs().max()
            off = float(((p - after[u.where]).abs() * counts).max())
            moved = float((after - w).abs().max())
            eps = torch.finfo(self._run.dtype).eps * float(w.abs().max())
            if not off <= _CLOSE * moved + 8 * eps:
                raise PathMismatchError(
                    f"Step {k} of {self._run.folder}, made again by {u.kind.__name__} in float64, is "
                    f"{off:.3g} "
                    f"away from the recorded one, of {moved:.3g}: the optimizer has a memory from before the "
                    f"recording, or is not the one that its settings say."
                )

    def __call__(self, k: int, step: Step, g: Tensor, rows: Tensor, behind: Tensor) -> tuple[Tensor, ...]:
        """Return rows by w, g and the state."""
        w, held = self._run.weights(k), self._state_at(k)
        by_w, by_g, by_state = rows.clone(), torch.zeros_like(rows), behind.clone()
        stepping = self._stepping(k)
        for number, u in enumerate(self._units):
            if number not in stepping:
                continue
            if u.is_linear:
                m = behind[:, 0, u.where]
                by_w[:, u.where], by_g[:, u.where], by_state[:, 0, u.where] = _linear(
                    _at(step.coefficients, u.where), rows[:, u.where], m
                )
                continue
            fresh = not self._plain[k][number]
            leaves = [w[u.where], g[u.where], *(held[i, u.where] for i in range(len(u.keys)))]
            leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
            with torch.enable_grad(), _wide(), _RootsAtZero():
                p, optimizer = self._made(u, k, leaves[0].clone(), leaves[1].clone(), True)
                if not fresh:
                    state = {key: leaf.clone() for key, leaf in zip(u.keys, leaves[2:], strict=True)}
                    optimizer.state[p] = {**copy.deepcopy(self._plain[k][number]), **state}
                optimizer.step()
                made = [p, *(optimizer.state[p][key] for key in u.keys)]
            of = [rows[:, u.where], *(behind[:, i, u.where] for i in range(len(u.keys)))]
            sums = [torch.zeros_like(of[0]) for _ in leaves]
            for value, row in zip(made, of, strict=True):
                if not value.requires_grad:
                    continue
                ones = torch.ones_like(value)
                slopes = torch.autograd.grad(value, leaves, ones, retain_graph=True, allow_unused=True)
                for total, slope in zip(sums, slopes, strict=True):
                    if slope is not None:
                        total.add_(row * slope)
            by_w[:, u.where], by_g[:, u.where] = sums[0], sums[1]
            for i, total in enumerate(sums[2:]):
                by_state[:, i, u.where] = total
        return by_w, by_g, by_state

    def _made(
        self, u: _Unit, k: int, p: Tensor, g: Tensor, differentiable: bool
    ) -> tuple[Tensor, torch.optim.Optimizer]:
        """Return the optimizer of a unit, before step k, over one flat vector with its gradient."""
        group = read_settings(self._settings[k][u.number][u.group])
        group |= {key: value for key, value in _PLAIN.items() if key in group}
        group["differentiable"] = differentiable
        if differentiable and float(group["lr"]) == 0:  # torch divides by it there
            group["lr"] = _TINY
        optimizer: torch.optim.Optimizer = object.__new__(u.kind)
        p.grad = g
        torch.optim.Optimizer.__init__(optimizer, [{"params": [p], **group}], dict(group))
        if not differentiable and (u.state or u.plain):
            optimizer.state[p] = {**copy.deepcopy(u.plain), **{key: v.clone() for key, v in u.state.items()}}
        return p, optimizer

    def _stepping(self, k: int) -> list[int]:
        ungraded = self._run.ungraded(k)
        firsts = [int(u.where[0]) for u in self._units]
        lost = {first for name, first in _places(self._run).items() if name in ungraded}
        return [i for i, first in enumerate(firsts) if first not in lost]

    def _states(self) -> Tensor:
        out = torch.zeros(
            self.states, len(self._run.weights(0)), dtype=torch.float64, device=self._run.device
        )
        for u in self._units:
            for i, key in enumerate(u.keys):
                if key in u.state:
                    out[i, u.where] = u.state[key]
        return out

    def _first_states(self) -> Tensor:
        now = [u.state for u in self._units]
        for u, before in zip(self._units, self._before, strict=True):
            u.state = {key: before.get(key, torch.zeros_like(u.state[key])) for key in u.keys}
        first = self._states().reshape(-1)
        for u, state in zip(self._units, now, strict=True):
            u.state = state
        return first

    def _state_at(self, k: int) -> Tensor:
        assert self._rows is not None
        return self._rows[k].to(self._run.device).view(self.states, -1)


def pull_back(
    run: Run, gradient: Callable[[int], Tensor], budget: int, done: Callable[[int], None]
) -> PullBack:
    """Return how the steps of a run carry derivatives; ``gradient(k)`` is what the optimizer got, ``[P]``."""
    kinds = {about["class"] for about in run.manifest["optimizers"]}
    if kinds <= set(_LINEAR):
        return LinearPullBack()
    for kind in sorted(kinds):
        known = known_optimizers().get(kind)
        name = kind.rsplit(".", 1)[-1]
        why = _ROUGH.get(kind)
        if why is None and (known is None or "differentiable" not in inspect.signature(known).parameters):
            why = "ntkit knows no differentiable form of its step"
        if why is not None:
            raise NtkitError(
                f"No derivatives go through the steps of {name}: {why}. What would have happened without a "
                f"set "
                f"of samples is told by ntkit.retrain; accounts are made as ever."
            )
    return ElementwisePullBack(run, gradient, budget, done)


@contextmanager
def _wide() -> Iterator[None]:
    """Let an optimizer count its steps in float64: powers of a count in float32 are rounded to 1e-7."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _doubled(value: object) -> object:
    return value.double().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


class _RootsAtZero(TorchFunctionMode):
    """Square roots whose derivative at zero is zero."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func in (torch.sqrt, Tensor.sqrt):  # functions called in here are not seen by this mode
            x = args[0]
            return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)
        if func is Tensor.sqrt_:
            x = args[0]
            return x.copy_(torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0))
        return func(*args, **(kwargs or {}))


def _places(run: Run) -> dict[str, int]:
    places, begin = {}, 0
    for name, shape in run.trained.items():
        places[name] = begin
        begin += shape.numel()
    return places


def _units(run: Run) -> list[_Unit]:
    """Divide the weights of a run by optimizer, group, and steps without a gradient."""
    places, lost = _places(run), {name: [] for name in run.trained}
    for k in range(run.steps):
        for name in run.ungraded(k):
            lost[name].append(k)
    units = []
    for number, about in enumerate(run.manifest["optimizers"]):
        kind = known_optimizers()[about["class"]]
        place = 0
        for group, names in enumerate(about["groups"]):
            sets: dict[tuple[object, ...], list[tuple[str, int]]] = {}
            for name in names:
                plain = _begun(run, number, place, tensors=False)
                key = tuple(lost[name]), tuple(sorted((k, str(v)) for k, v in plain.items()))
                sets.setdefault(key, []).append((name, place))
                place += 1
            for some in sets.values():
                where = torch.cat(
                    [torch.arange(places[n], places[n] + run.trained[n].numel()) for n, _ in some]
                ).to(run.device)
                held = [_begun(run, number, at, tensors=True) for _, at in some]
                state = {key: torch.cat([h[key].flatten().double() for h in held]) for key in held[0]}
                plain = {k: _doubled(v) for k, v in _begun(run, number, some[0][1], tensors=False).items()}
                units.append(_Unit(kind, number, group, where, state, plain, list(state)))
    return units


def _begun(run: Run, number: int, place: int, tensors: bool) -> Json:
    """Return the state that a parameter had when the recording began: its tensors, or all else."""
    prefix = f"state/{number}/{place}/"
    both = {**run.start, **run.begun.get("state", {})}
    held = {key.removeprefix(prefix): v for key, v in both.items() if key.startswith(prefix)}
    shaped = {key for key, v in held.items() if isinstance(v, Tensor) and key not in _COUNTS}
    return {key: v for key, v in held.items() if (key in shaped) == tensors}
