"""How well novelty tells queries from elsewhere, beside the usual measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata
from torch import nn

from ntkit.compute.plan import parse_memory
from ntkit.compute.threads import fitting_threads
from ntkit.diagnose.baselines import Baselines, outputs
from ntkit.diagnose.extrapolation import MEASURES, Known
from ntkit.diagnose.shown import Flags, Shown
from ntkit.diagnose.subject import RecordedRun, as_x, kernel_of, network_of
from ntkit.diagnose.targets import as_classes
from ntkit.diagnose.uncertainty import auroc, bootstrap
from ntkit.errors import BadTypeError, BadValueError, positive, whole
from ntkit.finite.conjugate import ConjugateKernel
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.inputs import Inputs, batch_size
from ntkit.kernel import Kernel
from ntkit.machine.kernels import KernelLike
from ntkit.network import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Detectors:
    """All scores of one network that are larger for newer queries: the usual ones, and those of kernels.

    Parameters
    ----------
    model
        The trained classifier.
    train
        Its training samples with their classes ``(x, y)``.
    kernels
        Kernels by name; the tangent and the conjugate kernel of the network, if left out.
    ensemble
        Other networks, trained alike from other seeds, for the score of all of them together.
    neighbors
        Which of the nearest features the distance is to.
    alpha, memory
        As for `novelty`.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import Detectors
    >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> scores = Detectors(model, (x, (x[:, 0] > 0).long())).scores(x[:5])
    >>> scores["energy"].shape
    (5,)
    """

    def __init__(
        self,
        model: nn.Module | RecordedRun,
        train: tuple[Inputs, Inputs] | None = None,
        *,
        kernels: Mapping[str, KernelLike] | None = None,
        ensemble: Sequence[nn.Module] = (),
        neighbors: int = 50,
        alpha: float = 1e-2,
        memory: int | str = "1GiB",
    ) -> None:
        if isinstance(model, RecordedRun) and train is None:
            train = model.x, model.y
        if not isinstance(train, (tuple, list)) or len(train) != 2:
            raise BadTypeError(f"train is a {type(train).__name__}; expected a pair (x, y) with the classes.")
        self.model = network_of(model)
        self.x = as_x(self.model, train[0], "train x")
        targets = as_classes(train[1], batch_size(self.x), "train y")
        if kernels is None:
            kernels = {"tangent": EmpiricalNTK(self.model), "conjugate": ConjugateKernel(self.model)}
        made: dict[str, Kernel] = {name: kernel_of(k, name) for name, k in kernels.items()}
        budget = parse_memory(memory)
        others = [network_of(m, "a network of the ensemble") for m in ensemble]
        self.usual = Baselines(self.model, self.x, targets, others, whole("neighbors", neighbors))
        self.known = {
            name: Known(k, self.x, targets, positive("alpha", alpha), budget) for name, k in made.items()
        }

    def scores(self, queries: Inputs) -> dict[str, Floats]:
        """Return all scores of queries, ``[q]`` each; those of kernels are called ``"name, measure"``."""
        q = as_x(self.model, queries, "queries")
        found = {name: values.numpy() for name, values in self.usual.scores(q).items()}
        for name, known in self.known.items():
            scores = known.scores(q)
            found |= {f"{name}, {measure}": getattr(scores, measure) for measure in MEASURES}
        return found

    @property
    def of_kernels(self) -> frozenset[str]:
        """The names of the scores that are of kernels."""
        return frozenset(f"{name}, {measure}" for name in self.known for measure in MEASURES)


@dataclass(frozen=True, repr=False)
class OodReport(Shown):
    """How well each score tells queries from elsewhere; made by `ood_report`.

    Attributes
    ----------
    methods, of_kernels
        The names of the scores, and which are of kernels ``[m]``.
    outside
        What the columns are, the names of the sets from elsewhere.
    auroc, low, high
        The chance that a query from elsewhere scores higher than one of the domain, and the ends of its
        interval over queries, ``[m, sets]``.
    fpr95
        The part of the domain's queries that score higher than the lowest 5 % from elsewhere, ``[m, sets]``.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import ood_report
    >>> draw = torch.Generator().manual_seed(0)
    >>> x = torch.randn(60, 2, generator=draw)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> report = ood_report(model, (x, (x[:, 0] > 0).long()), torch.randn(40, 2, generator=draw), x + 6)
    >>> name, auroc = report.best(kernels=False)
    >>> 0 <= auroc <= 1
    True
    """

    methods: tuple[str, ...]
    of_kernels: Flags
    outside: tuple[str, ...]
    auroc: Floats
    low: Floats
    high: Floats
    fpr95: Floats

    def best(self, column: int = 0, *, kernels: bool) -> tuple[str, float]:
        """Return the best score of kernels, or of single networks, and its AUROC."""
        rows = np.flatnonzero(self.of_kernels == kernels)
        rows = [i for i in rows.tolist() if self.methods[i] != "ensemble"]
        if not rows:
            raise BadValueError("There is no such score; give kernels= to the report.")
        top = max(rows, key=lambda i: self.auroc[i, column])
        return self.methods[top], float(self.auroc[top, column])

    @property
    def words(self) -> str:
        """What was found."""
        lines = []
        for i, name in enumerate(self.outside):
            (a, of_kernel), (b, usual) = (self.best(i, kernels=k) for k in (True, False))
            beside = "above" if of_kernel > usual else "not above"
            lines.append(f"{name}: best of the kernels {a} {of_kernel:.4f}, {beside} {b} {usual:.4f}")
        return "AUROC. " + "; ".join(lines) + "."

    def columns(self) -> Mapping[str, object]:
        """Return a row for each score and set."""
        m, s = self.auroc.shape
        return {
            "outside": np.tile(self.outside, m),
            "score": np.repeat(self.methods, s),
            "kernel": np.repeat(self.of_kernels, s),
            **{name: getattr(self, name).reshape(-1) for name in ("auroc", "low", "high", "fpr95")},
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the AUROC of each score with its interval."""
        from ntkit.display.diagnosis_plots import detection

        return detection(self, ax)


@fitting_threads()
def ood_report(
    model: nn.Module | RecordedRun | Detectors,
    train: tuple[Inputs, Inputs] | None = None,
    inside: Inputs = None,
    outside: Inputs | Mapping[str, Inputs] = None,
    *,
    kernels: Mapping[str, KernelLike] | None = None,
    ensemble: Sequence[nn.Module] = (),
    neighbors: int = 50,
    alpha: float = 1e-2,
    memory: int | str = "1GiB",
) -> OodReport:
    """Return how well novelty tells queries from elsewhere, beside the usual scores of the same network.

    Parameters
    ----------
    model : network, RecordedRun or Detectors
        A trained classifier, or the scores that were made of one.
    train : (inputs, classes)
        What it was trained on; the run's own, if it is one.
    inside, outside : batch of inputs
        Held-out queries of the domain, and queries from elsewhere: several sets by their names, or one.
    kernels, ensemble, neighbors, alpha, memory
        As for `Detectors`.

    Raises
    ------
    NtkitError
        Queries that the network does not take, classes that are none, a network with one output.

    References
    ----------
    Hendrycks, Gimpel (2017) for AUROC and FPR95 as measures of detection.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import ood_report
    >>> draw = torch.Generator().manual_seed(0)
    >>> x = torch.randn(60, 2, generator=draw)
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    >>> report = ood_report(model, (x, (x[:, 0] > 0).long()), torch.randn(40, 2, generator=draw), x + 6)
    >>> report.best(kernels=True)[1] > 0.95
    True
    """
    if isinstance(model, Detectors):
        made = model
    else:
        options = {"neighbors": neighbors, "alpha": alpha, "memory": memory}
        made = Detectors(model, train, kernels=kernels, ensemble=ensemble, **options)
    sets = outside if isinstance(outside, Mapping) and not _one_batch(made, outside) else {"outside": outside}
    own = made.scores(inside)
    rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in own}
    for given in sets.values():
        for name, there in made.scores(given).items():
            rows[name].append(_detected(own[name], there))
    values = np.array(list(rows.values())).transpose(2, 0, 1)
    kinds = np.array([name in made.of_kernels for name in rows])
    return OodReport(tuple(rows), kinds, tuple(map(str, sets)), *values)


def _one_batch(made: Detectors, outside: Mapping[str, Inputs]) -> bool:
    """Return whether a mapping is one batch of a network with named inputs."""
    return isinstance(made.x, dict) and set(made.x) == set(outside)


def _detected(inside: Floats, outside: Floats) -> tuple[float, float, float, float]:
    threshold = np.quantile(outside, 0.05, method="lower")
    value, low, high = auroc(inside, outside)
    return value, low, high, float((inside >= threshold).mean())


@dataclass(frozen=True, repr=False)
class ShiftReport(Shown):
    """Whether a score rises with the error as the data shifts by degrees; made by `shift_report`.

    Attributes
    ----------
    methods, of_kernels
        As of `OodReport`.
    shifts
        What the columns are.
    correlation, low, high
        Spearman's correlation of the score with whether the prediction is wrong, over the queries of all
        degrees, and its interval, ``[m, shifts]``.
    error
        The part of wrong predictions at each degree of each shift, ``[shifts][degrees]``.
    mean
        The mean rank of the score at each degree, 0 to 1, ``[shifts][m, degrees]``.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import Detectors, shift_report
    >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    >>> y, model = (x[:, 0] > 0).long(), torch.nn.Linear(2, 2)
    >>> found = shift_report(Detectors(model, (x, y)), {"moved": [x + d for d in (0.0, 1.0, 2.0)]}, y)
    >>> "moved" in str(found.table())
    True
    """

    methods: tuple[str, ...]
    of_kernels: Flags
    shifts: tuple[str, ...]
    correlation: Floats
    low: Floats
    high: Floats
    error: tuple[Floats, ...]
    mean: tuple[Floats, ...]

    @property
    def words(self) -> str:
        """What was found."""
        lines = []
        for i, name in enumerate(self.shifts):
            top = int(np.argmax(self.correlation[:, i]))
            lines.append(f"{name}: {self.methods[top]} ({self.correlation[top, i]:.2f})")
        return "The score that goes most with the error. " + "; ".join(lines) + "."

    def columns(self) -> Mapping[str, object]:
        """Return a row for each score and shift."""
        m, s = self.correlation.shape
        return {
            "shift": np.tile(self.shifts, m),
            "score": np.repeat(self.methods, s),
            "kernel": np.repeat(self.of_kernels, s),
            **{name: getattr(self, name).reshape(-1) for name in ("correlation", "low", "high")},
        }

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the error, and the mean rank of each score, over the degrees of the first shift."""
        from ntkit.display.diagnosis_plots import shifted

        return shifted(self, ax)


@fitting_threads()
def shift_report(
    detectors: Detectors, shifts: Mapping[str, Sequence[Inputs]], y: Inputs, *, seed: int = 0
) -> ShiftReport:
    """Return how each score goes with the error of the network, as queries shift by degrees.

    Parameters
    ----------
    detectors : Detectors
        The scores of a network.
    shifts : mapping of sequences of inputs
        For each kind of shift the same queries at each degree, such as digits turned by 0, 15, 30, ...
        degrees.
    y : whole numbers
        The classes of the queries, the number of the output that is right.
    seed : int
        Of the bootstrap.

    Raises
    ------
    NtkitError
        Anything but `Detectors`, or queries and classes that do not match.

    Examples
    --------
    >>> import torch
    >>> from ntkit.diagnose import Detectors, shift_report
    >>> x = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
    >>> y, model = (x[:, 0] > 0).long(), torch.nn.Linear(2, 2)
    >>> shifts = {"moved": [x + d for d in (0.0, 1.0, 2.0)], "scaled": [x * s for s in (1.0, 2.0, 3.0)]}
    >>> len(shift_report(Detectors(model, (x, y)), shifts, y).words) > 0
    True
    """
    if not isinstance(detectors, Detectors):
        raise BadTypeError(
            f"detectors is a {type(detectors).__name__}; give ntkit.diagnose.Detectors(model, (x, y))."
        )
    rows: list[np.ndarray] = []
    errors, means, names = [], [], list[str]()
    for degrees in shifts.values():
        scores: list[dict[str, Floats]] = []
        wrong: list[np.ndarray] = []
        for given in degrees:
            q = as_x(detectors.model, given, "shifts")
            truth = torch.as_tensor(np.asarray(y))
            if len(truth) != batch_size(q):
                raise BadValueError(f"y has {len(truth)} classes for {batch_size(q)} queries; give one each.")
            wrong.append((outputs(detectors.model, q).argmax(1) != truth).numpy())
            scores.append(detectors.scores(q))
        names = list(scores[0])
        joined = np.stack([np.concatenate([s[name] for s in scores]) for name in names])
        all_wrong = np.concatenate(wrong).astype(float)
        ranks = joined.argsort(1).argsort(1) / max(1, joined.shape[1] - 1)
        rows.append(np.array([_correlated(row, all_wrong, seed) for row in joined]))
        errors.append(np.array([w.mean() for w in wrong]))
        means.append(ranks.reshape(len(names), len(wrong), -1).mean(2))
    value, low, high = np.stack(rows, 1).transpose(2, 0, 1)
    kinds = np.array([name in detectors.of_kernels for name in names])
    return ShiftReport(
        tuple(names), kinds, tuple(map(str, shifts)), value, low, high, tuple(errors), tuple(means)
    )


def _correlated(score: Floats, wrong: Floats, seed: int) -> tuple[float, float, float]:
    def drawn(index: np.ndarray) -> float:
        return _spearman(score[index], wrong[index])

    return _spearman(score, wrong), *bootstrap(drawn, len(wrong), seed, draws=100)


def _spearman(a: Floats, b: Floats) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
