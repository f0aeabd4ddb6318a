"""Averages of the weights, kept beside a training run or put back into it: how they move, where they were."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ntkit.errors import BadTypeError, BadValueError, NtkitError
from ntkit.files import as_bytes


class AverageWatch:
    """Measures tau in v += tau (w - v), for the weights w of a model and their average v.

    It takes ``torch.optim.swa_utils.AveragedModel``, and any module with the parameters of the model. Until
    the first update an AveragedModel averages nothing, and v is taken to follow w (tau = 1).
    """

    def __init__(self, average: nn.Module, model: nn.Module, trained: Mapping[str, Tensor]) -> None:
        inner = getattr(average, "module", average)
        if not isinstance(average, nn.Module) or not isinstance(inner, nn.Module):
            raise BadTypeError(
                f"`average` is a {type(average).__name__}, expected a module of averaged weights, such as "
                f"torch.optim.swa_utils.AveragedModel(model)."
            )
        inner = getattr(inner, "_orig_mod", inner)
        averaged, wanted = dict(inner.named_parameters()), dict(model.named_parameters())
        names = {**wanted, **averaged}
        differ = [n for n in names if getattr(averaged.get(n), "shape", 0) != _shape(wanted.get(n))]
        if differ:
            raise BadValueError(
                f"`average` has other parameters than the model ({', '.join(differ[:3])}); give the average "
                f"of this model's weights."
            )
        if any(averaged[n].data_ptr() == p.data_ptr() for n, p in wanted.items() if p.numel()):
            raise BadValueError("`average` shares its weights with the model; give a copy, or leave it out.")
        self._count = getattr(average, "n_averaged", None)
        self._weights = trained
        self._average = {name: averaged[name] for name in trained}
        self._still = {name: (p, wanted[name]) for name, p in averaged.items() if name not in trained}
        self._last = flat(self._average)
        self._refused: NtkitError | None = None

    @property
    def active(self) -> bool:
        """Whether there is an average already."""
        return self._count is None or bool(self._count > 0)

    def tensors(self) -> dict[str, Tensor]:
        """Return the average as it is, for the log."""
        return {f"v/{name}": p.detach().cpu().clone().contiguous() for name, p in self._average.items()}

    def moved(self) -> float:
        """Return tau since this was called before, with the weights as they are now."""
        if self._refused is not None:
            raise self._refused
        before, now = self._last, flat(self._average)
        self._last = now
        weights = flat(self._weights)
        if not self.active or torch.equal(now, weights):
            return 1.0
        tau = part_of_the_way(before, now, weights, self._average)
        if tau is None:
            self._refused = NtkitError(
                "`average` moved otherwise than by a part of the way to the weights (one number for all); "
                "such a change is not an average that ntkit can account for. Record without `average`."
            )
            raise self._refused
        return tau

    def check_still(self) -> None:
        """Refuse an average whose frozen parameters are not those of the model."""
        for name, (p, wanted) in self._still.items():
            if not torch.equal(as_bytes(p), as_bytes(wanted)):
                raise NtkitError(f"{name!r}, a frozen parameter, differs between `average` and the model.")


class LookaheadWatch:
    """Measures alpha in w = s + alpha (w' - s), where the loop replaces w' by w at each k-th step.

    s are the weights as they were when that was done before, or when the recording began (Zhang, Lucas,
    Hinton, Ba, "Lookahead optimizer: k steps forward, 1 step back", Algorithm 1).
    """

    def __init__(self, every: int, trained: Mapping[str, Tensor]) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise BadValueError(f"lookahead is {every!r}, expected a number of steps, at least 1.")
        self.every, self._trained = every, trained
        self._slow = self._fast = flat(trained)
        self._steps = 0

    def stepped(self) -> None:
        """Note the weights that the optimizer just made."""
        self._steps += 1
        self._fast = flat(self._trained) if self.due else self._fast

    @property
    def due(self) -> bool:
        """Whether the loop moves the weights now."""
        return self._steps > 0 and self._steps % self.every == 0

    def moved(self) -> float:
        """Return alpha; from now on s are the weights as they are."""
        slow, self._slow = self._slow, flat(self._trained)
        self._steps = 0
        alpha = part_of_the_way(slow, self._slow, self._fast, self._trained)
        if torch.equal(self._slow, self._fast):
            return 1.0
        if alpha is None:
            raise NtkitError(
                f"After {self.every} steps the weights were moved, but not to a part (one number for all) of "
                f"the way that they had come since the last time, or since the recording began. Begin to "
                f"record where the slow weights are those of the model; lookahead= is the k of the loop."
            )
        return alpha


def part_of_the_way(start: Tensor, now: Tensor, end: Tensor, like: Mapping[str, Tensor]) -> float | None:
    """Return tau of now = start + tau (end - start), None if no number fits in the dtypes of ``like``."""
    change, way = now - start, end - start
    if not change.any():
        return 0.0
    tau = float(change @ way / (way @ way)) if way.any() else 0.0
    eps = max(torch.finfo(p.dtype).eps for p in like.values())
    fits = ((change - tau * way).abs() <= 16 * eps * (start.abs() + end.abs())).all()
    return tau if fits else None


def flat(tensors: Mapping[str, Tensor]) -> Tensor:
    """Return copies as one vector, in float64, on the CPU."""
    return torch.cat([p.detach().cpu().double().reshape(-1) for p in tensors.values()])


def _shape(p: Tensor | None) -> object:
    return 0 if p is None else p.shape
