"""The spectrum of a kernel on data, and how fast it learns the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ntkit.compute import eigen
from ntkit.compute.matrix import MatrixFree
from ntkit.compute.threads import fitting_threads
from ntkit.diagnose.alignments import scalar_gram
from ntkit.diagnose.shown import Shown
from ntkit.diagnose.subject import RecordedRun, Subject, as_x, drawn, kernel_of
from ntkit.diagnose.targets import Targets, as_targets
from ntkit.diagnose.uncertainty import Measured, jackknife
from ntkit.errors import BadValueError, positive, whole
from ntkit.inputs import Batch, Inputs, batch_size, take
from ntkit.kernel import Kernel
from ntkit.network import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ALL = 5000  # samples up to which all eigenvalues are computed
_REFIT = 1000  # samples on which the interval of the exponent is found
_FIRST = 10  # the first rank of the fit: the largest eigenvalues are of another kind (the mean)
_LEAST = 8  # ranks that a fit takes


@dataclass(frozen=True, repr=False)
class KernelSpectrum(Shown):
    """Eigenvalues of a kernel matrix, and the targets along its eigenvectors; made by `spectrum`.

    Attributes
    ----------
    eigenvalues
        Of K, largest first, ``[k]``: all n, or the leading ones.
    size, trace
        n, and the sum of all eigenvalues.
    decay
        The exponent a of eigenvalue_i ~ i^-a over ``ranks``, with its interval; NaN where too few are left.
    ranks
        The first and the last rank of the fit.
    target
        The share of the centered targets' square along each eigenvector, ``[k]``; None without targets.
    floor
        The rounding of the matrix, below which no eigenvalue means anything.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import spectrum
    >>> s = spectrum(lambda a, b: a @ b.T, torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()))
    >>> s.eigenvalues.round(9)
    array([9., 4., 1.])
    """

    eigenvalues: Floats
    size: int
    trace: float
    decay: Measured
    ranks: tuple[int, int]
    target: Floats | None
    floor: float

    @property
    def complete(self) -> bool:
        """Whether all eigenvalues are there."""
        return len(self.eigenvalues) == self.size

    @property
    def condition(self) -> float:
        """The condition number: largest over smallest eigenvalue; infinite where that is rounding.

        Of leading eigenvalues only, a lower bound.
        """
        last = float(self.eigenvalues[-1])
        return float(self.eigenvalues[0]) / last if last > self.floor else float("inf")

    @property
    def effective_dimension(self) -> Measured:
        """The participation ratio (sum eigenvalues)^2 / sum eigenvalues^2.

        Exact, or between the bounds that the trace leaves where only leading eigenvalues are known.
        """
        known = float(np.square(self.eigenvalues).sum())
        rest = max(0.0, self.trace - float(self.eigenvalues.sum()))
        left = self.size - len(self.eigenvalues)
        if left == 0 or rest == 0:
            value = self.trace**2 / known
            return Measured(value, value, value)
        low = self.trace**2 / (known + rest * float(self.eigenvalues[-1]))
        high = self.trace**2 / (known + rest**2 / left)
        return Measured((low * high) ** 0.5, low, high)

    def dimension(self, alpha: float) -> float:
        """Return the effective dimension at a ridge, sum eigenvalue / (eigenvalue + alpha).

        What only leading eigenvalues leave out counts as equal ones, which is the most that it can be.
        """
        positive("alpha", alpha)
        values = np.clip(self.eigenvalues, 0, None)
        left = self.size - len(values)
        each = max(0.0, self.trace - float(values.sum())) / left if left else 0.0
        return float((values / (values + alpha)).sum() + left * each / (each + alpha))

    @property
    def times(self) -> Floats:
        """The learning time n / eigenvalue of each direction: what is left of it falls as exp(-t / time).

        Time is steps x learning rate of gradient descent on (1/2n) sum (f - y)^2 (`ntkit.GradientFlow`);
        infinite where the eigenvalue is rounding.
        """
        safe = np.where(self.eigenvalues > self.floor, self.eigenvalues, np.nan)
        return np.where(np.isnan(safe), np.inf, self.size / safe)

    def share(self, k: int) -> float:
        """Return the share of the targets in the space of the k leading eigenvectors."""
        if self.target is None:
            raise BadValueError("The spectrum was made without targets; give y to spectrum().")
        if whole("k", k) > len(self.eigenvalues):
            raise BadValueError(f"k={k}; there are {len(self.eigenvalues)} eigenvalues, give at most that.")
        return float(self.target[:k].sum())

    @property
    def learned_by(self) -> float:
        """The time by which gradient flow has learned 90 % of the targets' square; NaN if it never does."""
        if self.target is None:
            raise BadValueError("The spectrum was made without targets; give y to spectrum().")
        rates = 1 / self.times
        low, high = 0.0, float(np.nanmax(self.times[np.isfinite(self.times)])) * 10
        missing = max(0.0, 1 - float(self.target.sum()))

        def left(t: float) -> float:
            return missing + float((self.target * np.exp(-2 * t * rates)).sum())

        if left(high) > 0.1:
            return float("nan")
        for _ in range(80):
            middle = (low + high) / 2
            low, high = (middle, high) if left(middle) > 0.1 else (low, middle)
        return high

    @property
    def words(self) -> str:
        """What was found."""
        dimension = self.effective_dimension.value
        text = (
            f"Of {self.size} samples the kernel sees about {dimension:.3g} directions; its eigenvalues fall "
            f"as rank^-a with a = {self.decay}, the condition number is "
            f"{'at least ' if not self.complete else ''}"
            f"{f'{self.condition:.2g}' if np.isfinite(self.condition) else 'beyond rounding'}"
        )
        if self.target is not None:
            k = min(len(self.eigenvalues), 10)
            text += f". The {k} leading directions hold {self.share(k):.0%} of the targets"
            time = self.learned_by
            if np.isnan(time):
                text += ", more than 10 % of them lie where eigenvalues are rounding"
            else:
                text += f", 90 % of them are learned by time {time:.3g} (steps x rate)"
        return text + "."

    def columns(self) -> Mapping[str, object]:
        """Return a row for each eigenvalue."""
        columns: dict[str, object] = {
            "rank": np.arange(1, len(self.eigenvalues) + 1),
            "eigenvalue": self.eigenvalues,
            "time": self.times,
        }
        if self.target is not None:
            columns |= {"target": self.target, "target, summed": self.target.cumsum()}
        return columns

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the eigenvalues against their rank with the fit, and the targets' share."""
        from ntkit.display.diagnosis_plots import eigenvalues

        return eigenvalues(self, ax)


@fitting_threads()
def spectrum(
    kernel: Subject, x: Inputs = None, y: Inputs = None, *, leading: int = 200, seed: int = 0
) -> KernelSpectrum:
    """Return the spectrum of K(X, X) and the targets along its eigenvectors, in float64.

    All eigenvalues up to 5,000 samples; beyond, the leading ones by Lanczos, from products only. The decay
    exponent is fitted by least squares to log eigenvalue against log rank, from rank 10 to a fifth of n
    (or where rounding begins); its interval leaves out groups of the samples (of 1,000 drawn ones at most).

    Parameters
    ----------
    kernel : kernel, network or RecordedRun
        Of a network, its tangent kernel; of a run, that at its end.
    x, y : batch of inputs, targets
        As for `alignment`; without y there is nothing about targets.
    leading : int
        How many eigenvalues of more than 5,000 samples.
    seed : int
        Of Lanczos, and of the groups.

    Raises
    ------
    NtkitError
        A kernel with several values per pair, or that is not positive semi-definite.

    References
    ----------
    Jacot et al. (2018), section 5; Canatar, Bordelon, Pehlevan, "Spectral bias and task-model alignment"
    (2021).

    Examples
    --------
    >>> import torch, ntkit
    >>> from ntkit.diagnose import spectrum
    >>> k = ntkit.EmpiricalNTK(torch.nn.Linear(3, 1, bias=False).double())
    >>> s = spectrum(k, torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()))
    >>> s.eigenvalues.round(9), round(s.condition, 9)
    (array([9., 4., 1.]), 9.0)
    """
    if isinstance(kernel, RecordedRun):
        x, y = (kernel.x if x is None else x), (kernel.y if y is None else y)
    batch, made = as_x(kernel, x), kernel_of(kernel)
    n = batch_size(batch)
    targets = None if y is None else as_targets(y, n)
    if n <= ALL:
        gram = scalar_gram(made, batch)
        trace, whole_ = float(gram.trace()), eigen.spectrum(gram, _precision(made, batch))
        values, vectors, floor = whole_.values.flip(0), whole_.vectors.flip(1), whole_.floor
    else:
        if not isinstance(batch, Tensor):
            raise BadValueError(f"{n} samples of several tensors; Lanczos takes one tensor, up to {ALL} any.")
        matrix = MatrixFree(made, batch)
        values, vectors = eigen.leading(matrix, min(whole("leading", leading), n - 1), seed)
        values, trace = values.clamp_min(0), float(matrix.diag().sum())
        floor = n * torch.finfo(_precision(made, batch)).eps * float(values[0])
    share = None if targets is None else _shares(vectors.double().cpu(), targets)
    found = values.double().cpu().numpy()
    ranks = _ranks(found, n, floor)
    decay = _decay(made, batch, found, ranks, seed)
    return KernelSpectrum(found, n, trace, decay, ranks, share, floor)


def _precision(kernel: Kernel, x: Batch) -> torch.dtype:
    return kernel.diag(take(x, slice(0, 1))).dtype


def _shares(vectors: Tensor, targets: Targets) -> Floats:
    y = targets.columns - targets.columns.mean(0)
    return ((vectors.T @ y).square().sum(1) / y.square().sum()).numpy()


def _ranks(values: Floats, n: int, floor: float) -> tuple[int, int]:
    last = min(len(values), max(n // 5, _FIRST + _LEAST))
    last = int((values[:last] > floor).sum())
    return min(_FIRST, last), last


def exponent(values: Floats, ranks: tuple[int, int]) -> float:
    """Return the least-squares slope of -log eigenvalue against log rank; NaN of too few."""
    first, last = ranks
    if last - first + 1 < _LEAST:
        return float("nan")
    i = np.log(np.arange(first, last + 1))
    return -float(np.polyfit(i, np.log(values[first - 1 : last]), 1)[0])


def _decay(kernel: Kernel, x: Batch, values: Floats, ranks: tuple[int, int], seed: int) -> Measured:
    value = exponent(values, ranks)
    if np.isnan(value) or batch_size(x) < 4:
        return Measured(value, value, value)
    gram = scalar_gram(kernel, take(x, drawn(x, _REFIT, seed)))
    floor = len(gram) * torch.finfo(torch.float64).eps * float(values[0])

    def fitted(kept: Tensor) -> np.ndarray:
        found = torch.linalg.eigvalsh(gram[kept][:, kept]).flip(0).numpy()
        first, last = _ranks(found, len(found), floor)
        return np.array(exponent(found, (first, min(last, ranks[1]))))

    centre, low, high = jackknife(fitted, len(gram), seed, groups=10)
    return Measured(value, value + float(low - centre), value + float(high - centre))
