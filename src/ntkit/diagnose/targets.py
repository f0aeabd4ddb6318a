"""Targets as columns: classes one-hot, or numbers as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError
from ntkit.inputs import as_batch


@dataclass(frozen=True)
class Targets:
    """Targets ``columns [n, c]`` in float64; ``classes [n]`` and their ``names``, where there are classes."""

    columns: Tensor
    classes: Tensor | None
    names: tuple[str, ...]

    def some(self, index: Tensor) -> Targets:
        """Return those of some samples."""
        classes = None if self.classes is None else self.classes[index]
        return replace(self, columns=self.columns[index], classes=classes)


def as_targets(y: object, n: int, what: str = "y") -> Targets:
    """Return targets of n samples: whole numbers and truth values are classes, real ones numbers.

    >>> import torch
    >>> as_targets([0, 2, 0], 3).columns.tolist()
    [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    """
    if y is None:
        raise BadTypeError(f"{what} is None; expected {n} targets, one for each sample.")
    t = as_batch(y, [torch.float64, torch.float32, torch.float16, torch.bfloat16], _device(y), what)
    if not isinstance(t, Tensor) or t.is_complex():
        raise BadTypeError(f"{what} holds {type(y).__name__}; expected one tensor of targets, [n] or [n, o].")
    if len(t) != n:
        raise BadValueError(f"{what} has {len(t)} targets for {n} samples; give one for each.")
    t = t.cpu()
    if t.is_floating_point():
        columns = t.double().reshape(n, -1)
        names = tuple(map(str, range(columns.shape[1]))) if columns.shape[1] > 1 else ()
        return _varied(Targets(columns, None, names), what)
    if t.numel() != n:
        raise BadValueError(
            f"{what} has shape {tuple(t.shape)}; expected classes, one whole number for each sample."
        )
    known, classes = t.reshape(n).unique(return_inverse=True)
    columns = torch.nn.functional.one_hot(classes, len(known)).double()
    return _varied(Targets(columns, classes, tuple(str(v) for v in known.tolist())), what)


def as_classes(y: object, n: int, what: str = "y") -> Targets:
    """Return targets that are classes; refuse others."""
    found = as_targets(y, n, what)
    if found.classes is None:
        raise BadTypeError(f"{what} holds real numbers; expected classes, a whole number for each sample.")
    return found


def _device(y: object) -> torch.device:
    return y.device if isinstance(y, Tensor) else torch.device("cpu")


def _varied(targets: Targets, what: str) -> Targets:
    if float((targets.columns - targets.columns[0]).abs().max()) == 0:
        raise BadValueError(f"All targets in {what} are equal; there is nothing to tell: give several.")
    return targets
