"""How well a kernel fits targets: its centered alignment with them, per class, before and after training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ntkit.compute.threads import fitting_threads
from ntkit.diagnose.shown import Shown
from ntkit.diagnose.subject import RecordedRun, Subject, as_x, drawn, kernel_of
from ntkit.diagnose.targets import Targets, as_targets
from ntkit.diagnose.uncertainty import Measured, jackknife
from ntkit.errors import BadValueError
from ntkit.inputs import Batch, Inputs, batch_size, take
from ntkit.kernel import Kernel
from ntkit.network import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Alignment(Shown):
    """Centered kernel-target alignments; made by `alignment`.

    Attributes
    ----------
    when
        What the rows are: ``("",)``, or ``("before", "after")`` of a run.
    names
        What the columns are: "all", then each class (or output).
    values, low, high
        The alignments, and the ends of their intervals, ``[when, names]``.
    chance
        What labels in random order give on average with the same kernel, ``[when, names]``.
    samples
        How many samples were looked at.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import alignment
    >>> y = torch.tensor([0, 1] * 4)
    >>> x = torch.nn.functional.one_hot(y).double()
    >>> found = alignment(lambda a, b: a @ b.T, x, y)
    >>> found.names, found.values.round(6)
    (('all', '0', '1'), array([[1., 1., 1.]]))
    """

    when: tuple[str, ...]
    names: tuple[str, ...]
    values: Floats
    low: Floats
    high: Floats
    chance: Floats
    samples: int

    @property
    def overall(self) -> Measured:
        """The alignment with all targets (after training, for a run)."""
        return Measured(float(self.values[-1, 0]), float(self.low[-1, 0]), float(self.high[-1, 0]))

    @property
    def words(self) -> str:
        """What was found."""
        text = (
            f"The kernel's alignment with the targets is {self.overall}; by chance {self.chance[-1, 0]:.3g}"
        )
        if len(self.when) > 1:
            text += f". Before training it was {self.values[0, 0]:.3g}"
        if len(self.names) > 2:
            worst = int(np.argmin(self.values[-1, 1:])) + 1
            text += f". The class it fits least is {self.names[worst]}, {self.values[-1, worst]:.3g}"
        return text + "."

    def columns(self) -> Mapping[str, object]:
        """Return a row for each class at each time."""
        t, c = self.values.shape
        columns: dict[str, object] = {"when": np.repeat(self.when, c)} if t > 1 else {}
        columns["target"] = np.tile(self.names, t)
        for name in ("values", "low", "high", "chance"):
            columns[name.removesuffix("s")] = getattr(self, name).reshape(-1)
        return columns

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the alignments with their intervals, and what chance gives."""
        from ntkit.display.diagnosis_plots import alignments

        return alignments(self, ax)


@fitting_threads()
def alignment(
    kernel: Subject, x: Inputs = None, y: Inputs = None, *, samples: int = 1000, seed: int = 0
) -> Alignment:
    """Return how well the similarities of a kernel are those of the targets.

        A = <H K H, H Y Y^T H> / (|H K H| |H Y Y^T H|),    H = I - 1 1^T / n,

    1 where the kernel sees nothing but the targets, with Y the classes one-hot, or the targets themselves;
    per class, Y is whether a sample is of it. Labels in random order give on average (exactly)
    tr(H K H) tr(H Y Y^T H) / ((n - 1) |H K H| |H Y Y^T H|).

    Parameters
    ----------
    kernel : kernel, network or RecordedRun
        Of a network, its tangent kernel; of a run, those before and after training.
    x, y : batch of inputs, targets
        Whole numbers are classes, real ones targets ``[n]`` or ``[n, o]``. Left out for a run: its own data.
    samples : int
        At most so many are drawn; n x n values are computed.
    seed : int
        Of the draw.

    Raises
    ------
    NtkitError
        Targets that do not fit the inputs, or that are all equal; a kernel with several values per pair.

    References
    ----------
    Cortes, Mohri, Rostamizadeh, "Algorithms for learning kernels based on centered alignment" (2012), Def. 4.

    Examples
    --------
    >>> import torch, ntkit
    >>> from ntkit.diagnose import alignment
    >>> y = torch.tensor([0, 1] * 4)
    >>> x = torch.nn.functional.one_hot(y).double()
    >>> k = ntkit.EmpiricalNTK(torch.nn.Linear(2, 1, bias=False).double())
    >>> round(alignment(k, x, y).overall.value, 9)
    1.0
    """
    kernels, whole, given = _kernels(kernel, x, y)
    index = drawn(whole, samples, seed)
    batch, targets = take(whole, index), given.some(index)
    found = [_of(made(batch), targets, seed) for made in kernels.values()]
    values, low, high, chance = (np.stack(parts) for parts in zip(*found, strict=True))
    return Alignment(tuple(kernels), ("all", *targets.names), values, low, high, chance, batch_size(batch))


def centered(k: Tensor) -> Tensor:
    """Return H K H."""
    rows = k.mean(0, keepdim=True)
    return k - rows - k.mean(1, keepdim=True) + rows.mean()


def scalar_gram(kernel: Kernel, x: Batch) -> Tensor:
    """Return k(x, x) in float64, checked to have one finite value for two samples."""
    return scalar(kernel(x))


def scalar(block: Tensor) -> Tensor:
    """Return a block in float64, checked to have one finite value for two samples."""
    if block.ndim != 2:
        raise BadValueError(
            f"The kernel has values of shape {tuple(block.shape[2:])} for two samples, expected one: take "
            f"outputs='mean' or 'trace'."
        )
    block = block.detach().double().cpu()
    if not block.isfinite().all():
        raise BadValueError("The kernel has values that are not finite; scale the inputs, or take float64.")
    return block


def _kernels(subject: Subject, x: Inputs, y: Inputs) -> tuple[dict[str, Kernel], Batch, Targets]:
    given = x, y
    if isinstance(subject, RecordedRun):
        given = (subject.x if x is None else x, subject.y if y is None else y)
        made: dict[str, Kernel] = {"before": subject.kernel(0), "after": subject.kernel()}
    else:
        made = {"": kernel_of(subject)}
    checked = as_x(subject, given[0])
    return made, checked, as_targets(given[1], batch_size(checked))


def _of(block: Tensor, targets: Targets, seed: int) -> tuple[np.ndarray, ...]:
    k, ys = scalar(block), targets.columns
    sides = [ys, *([ys[:, i : i + 1] for i in range(ys.shape[1])] if targets.names else [])]

    def aligned(kept: Tensor) -> np.ndarray:
        return _alignments(k[kept][:, kept], [side[kept] for side in sides])[0]

    return *jackknife(aligned, len(k), seed), _alignments(k, sides)[1]


def _alignments(k: Tensor, sides: list[Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """Return the alignments with each side, and what is to be expected by chance."""
    inner = centered(k)
    size, trace = inner.norm(), inner.trace()
    rows = []
    for y in sides:
        y = y - y.mean(0)
        both = (inner @ y * y).sum()
        scale = size * (y.T @ y).norm()
        chance = trace * y.square().sum() / (len(k) - 1)
        pair = torch.stack([both, chance]) / scale if float(scale) > 0 else k.new_full((2,), torch.nan)
        rows.append(pair)
    values, chance = torch.stack(rows, 1).numpy()
    return values, chance
