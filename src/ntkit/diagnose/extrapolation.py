"""How new a query is to a kernel that knows some training samples, and how surely."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ntkit.compute.cholesky import Cholesky, cholesky
from ntkit.compute.plan import chunks, parse_memory
from ntkit.compute.threads import fitting_threads
from ntkit.diagnose.alignments import scalar
from ntkit.diagnose.shown import Places, Shown
from ntkit.diagnose.subject import RecordedRun, Subject, as_x, kernel_of
from ntkit.diagnose.targets import Targets, as_classes
from ntkit.errors import BadTypeError, BadValueError, positive, real, whole
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.inputs import Batch, Inputs, batch_size, check_alike, take
from ntkit.kernel import Kernel
from ntkit.network import Floats

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MEASURES = ("variance", "distance", "mahalanobis")


@dataclass(frozen=True, repr=False)
class Novelty(Shown):
    """How new queries are to a kernel; made by `novelty`. Larger is newer, in each measure.

    Attributes
    ----------
    variance
        (k(x, x) - k^T (K + alpha)^-1 k) / k(x, x): the part of the query that no training sample explains,
        0 to 1, ``[q]``.
    distance
        1 - the largest normalized similarity with a training sample, ``[q]``.
    mahalanobis
        The squared distance from the training samples' mean (of the nearest class, where classes are given)
        in units of their spread in the kernel's features, ``[q]``.
    nearest
        The place of the most similar training sample, ``[q]``.
    p_values
        For each measure, the chance that a sample like the held-out ones is as new, ``[q]``.
    held_out
        How many held-out samples that was measured on: no p-value is below 1 / (held_out + 1).
    known
        How many samples the kernel knows.

    Examples
    --------
    >>> import numpy as np
    >>> from ntkit.diagnose import novelty
    >>> rbf = lambda a, b: np.exp(-0.5 * (a - b.T) ** 2)
    >>> found = novelty(rbf, np.linspace(-1, 1, 30)[:, None], np.array([[0.05], [4.0]]))
    >>> found.distance.shape, bool(found.distance[0] < found.distance[1])
    ((2,), True)
    """

    variance: Floats
    distance: Floats
    mahalanobis: Floats
    nearest: Places
    p_values: Mapping[str, Floats]
    held_out: int
    known: int

    @property
    def words(self) -> str:
        """What was found."""
        p = self.p_values["variance"]
        return (
            f"{int((p <= 0.05).sum())} of {len(p)} queries are newer than 95 % of {self.held_out} held-out "
            f"samples ({round(0.05 * len(p))} are to be expected of queries like the data); "
            f"training samples leave {np.median(self.variance):.2g} of a query unexplained, median"
        )

    def columns(self) -> Mapping[str, object]:
        """Return a row for each query."""
        columns: dict[str, object] = {"nearest": self.nearest}
        for name in MEASURES:
            columns |= {name: getattr(self, name), f"p, {name}": self.p_values[name]}
        return columns

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how the p-values of the queries are distributed: evenly, where queries are like the data."""
        from ntkit.display.diagnosis_plots import p_values

        return p_values(self, ax)


@fitting_threads()
def novelty(
    kernel: Subject,
    train: Inputs = None,
    queries: Inputs = None,
    *,
    labels: Inputs = None,
    held_out: float | Inputs = 0.2,
    alpha: float = 1e-2,
    sketch: int | None = None,
    memory: int | str = "1GiB",
    seed: int = 0,
) -> Novelty:
    """Return how far queries lie outside of what a kernel knows from the training samples.

        variance     (k(x, x) - k^T (K + a)^-1 k) / k(x, x),     a = alpha mean k(x_n, x_n)
        distance     1 - max_n k(x, x_n) / sqrt(k(x, x) k(x_n, x_n))
        mahalanobis  min_c (phi - mu_c)^T (S + b)^-1 (phi - mu_c),   b = alpha tr S,   k = <phi, phi>

    S is the covariance of the features within the classes (with one mean, without labels); it is exact for
    any kernel, by K alone. A query with k(x, x) = 0 is wholly new: 1 in the first two. The p-values compare
    with held-out samples (split conformal): (1 + the number of held-out ones that are as new) / (1 + their
    number), uniform for queries from the same distribution.

    Parameters
    ----------
    kernel : kernel, network or RecordedRun
        `EmpiricalNTK`, `ConjugateKernel`, the NNGP of a limit, ...; of a network or a run, the tangent
        kernel.
    train : batch of inputs
        The training samples; those of the run, if it is one.
    queries : batch of inputs
        What is asked about.
    labels : whole numbers, optional
        The classes of the training samples, for the Mahalanobis distance.
    held_out : float or batch of inputs
        Samples that the kernel does not get to know: given, or this part of `train`, drawn. A *trained*
        network has seen its training samples, and finds them less new than others: for uniform p-values,
        give samples that it was not trained on.
    alpha : float
        The ridge, in units of the mean of k(x, x) and of the features' spread.
    sketch : int, optional
        Take the tangent kernel of a large network from so many random projections of its features, for each
        output: an unbiased estimate, of relative error about 1 / sqrt(sketch).
    memory : int or str
        Bytes for the block of queries by samples; they are taken some at a time.
    seed : int
        Of the draw of held-out samples, and of the sketch.

    Raises
    ------
    NtkitError
        Inputs that are not alike, labels that are no classes, a kernel with several values per pair.

    References
    ----------
    Rasmussen, Williams, "Gaussian processes for machine learning" (2006), Eq. 2.26; Lee et al., "A simple
    unified framework for detecting out-of-distribution samples" (2018); Vovk, Gammerman, Shafer,
    "Algorithmic learning in a random world" (2005).

    Examples
    --------
    >>> import numpy as np
    >>> from ntkit.diagnose import novelty
    >>> rbf = lambda a, b: np.exp(-0.5 * (a - b.T) ** 2)
    >>> found = novelty(rbf, np.linspace(-1, 1, 30)[:, None], np.array([[0.05], [4.0]]))
    >>> bool(found.variance[0] < 0.01 < 0.9 < found.variance[1]), float(found.p_values["variance"][1]) < 0.2
    (True, True)
    """
    if isinstance(kernel, RecordedRun):
        train = kernel.x if train is None else train
    x, q = as_x(kernel, train, "train"), as_x(kernel, queries, "queries")
    check_alike(x, q)
    classes = None if labels is None else as_classes(labels, batch_size(x), "labels")
    x, calibration, classes = _split(kernel, x, held_out, classes, seed)
    made = kernel_of(kernel) if sketch is None else Sketched(kernel_of(kernel), sketch, seed)
    known = Known(made, x, classes, positive("alpha", alpha), parse_memory(memory))
    own, among = known.scores(calibration), known.scores(q)
    p = {name: p_value(getattr(own, name), getattr(among, name)) for name in MEASURES}
    return Novelty(
        among.variance,
        among.distance,
        among.mahalanobis,
        among.nearest,
        p,
        batch_size(calibration),
        batch_size(x),
    )


def p_value(held_out: Floats, scores: Floats) -> Floats:
    """Return (1 + how many held-out samples score at least as high) / (1 + their number).

    >>> p_value(np.array([1.0, 2.0, 3.0]), np.array([0.0, 2.5, 9.0]))
    array([1.  , 0.5 , 0.25])
    """
    below = np.searchsorted(np.sort(held_out), scores, side="left")
    return (1 + len(held_out) - below) / (1 + len(held_out))


@dataclass(frozen=True)
class Scores:
    """The three measures and the nearest sample of some queries, ``[q]`` each."""

    variance: Floats
    distance: Floats
    mahalanobis: Floats
    nearest: Places


class Known:
    """A kernel that knows some samples: their matrix, factored, for all measures."""

    def __init__(self, kernel: Kernel, x: Batch, classes: Targets | None, alpha: float, budget: int) -> None:
        self.kernel, self.x, self.n = kernel, x, batch_size(x)
        self.rows = max(1, budget // (8 * 4 * self.n))
        k = scalar(kernel(x))
        self.size = k.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        self.factor = cholesky(k, alpha * float(self.size.mean()))
        one = k.new_ones(self.n, 1) if classes is None else classes.columns
        self.membership = one / one.sum(0)  # columns are the means of the classes
        self.assigned = one
        inner = self._within(self._within(k).T)
        spread = float(inner.trace()) / self.n
        if not spread > 0:
            raise BadValueError("All training samples of a class are the same to this kernel; give others.")
        self.ridge = alpha * spread
        self.spread: Cholesky = cholesky(inner, self.n * self.ridge)
        self.of_means = k @ self.membership  # [n, c]
        self.between = self.membership.T @ self.of_means
        self.solved_means = self.spread.half(self._within(self.of_means))

    def _within(self, columns: Tensor) -> Tensor:
        """Return columns ``[n, r]`` less their means over the classes of the rows."""
        return columns - self.assigned @ (self.membership.T @ columns)

    def scores(self, q: Batch) -> Scores:
        """Return the measures of queries, some at a time."""
        parts = list(self._parts(q))
        return Scores(*(torch.cat(column).numpy() for column in zip(*parts, strict=True)))

    def _parts(self, q: Batch) -> Iterator[tuple[Tensor, ...]]:
        for s in chunks(batch_size(q), self.rows):
            some = take(q, s)
            block = scalar(self.kernel(self.x, some))
            own = self.kernel.diag(some).detach().double().cpu()
            nothing = own <= 0
            size = own.masked_fill(nothing, 1.0)
            left = ((own - self.factor.half(block).square().sum(0)) / size).masked_fill(nothing, 1.0)
            cosine, nearest = (block / (self.size[:, None] * size).sqrt()).max(0)
            yield left.clamp(0, 1), (1 - cosine).clamp_min(0), self._mahalanobis(block, own), nearest

    def _mahalanobis(self, block: Tensor, own: Tensor) -> Tensor:
        """Return min_c d^T (S + b)^-1 d for d = phi - mu_c, by (|d|^2 - d^T Phi^T (..)^-1 Phi d) / b."""
        solved = self.spread.half(self._within(block))
        norms = own[:, None] - 2 * (block.T @ self.membership) + self.between.diagonal()
        cross = solved.T @ self.solved_means
        inner = solved.square().sum(0)[:, None] - 2 * cross + self.solved_means.square().sum(0)
        return ((norms - inner) / self.ridge).clamp_min(0).min(1).values


def _split(
    subject: Subject, x: Batch, held_out: float | Inputs, classes: Targets | None, seed: int
) -> tuple[Batch, Batch, Targets | None]:
    """Return the samples that the kernel knows, those held out, and the classes of the known."""
    if not isinstance(held_out, (int, float)):
        given = as_x(subject, held_out, "held_out")
        check_alike(x, given)
        return x, given, classes
    part = real("held_out", held_out, "a part between 0 and 1, or samples", lambda v: 0 < v < 1)
    n = batch_size(x)
    if n < 3:
        raise BadValueError(f"There are {n} training samples; some must be held out: give more.")
    keep = stays(n, part, seed)
    away = torch.ones(n, dtype=torch.bool)
    away[keep] = False
    calibration = take(x, away.nonzero()[:, 0])
    return take(x, keep), calibration, None if classes is None else classes.some(keep)


def stays(n: int, held_out: float, seed: int) -> Tensor:
    """Return the places of the samples that are not held out, drawn from a seed, in their order."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(whole("seed", seed, None)))
    return order[min(max(1, round(held_out * n)), n - 2) :].sort().values


class Sketched(Kernel):
    """An unbiased estimate of a tangent kernel (mean over outputs): the Gram matrix of J S.

        k(x, x') ~ (1/o) sum_o (J(x) S)_o . (J(x') S)_o,    S [P, m],  E[S S^T] = I

    No block costs more than features ``[n, o m]`` and one product, however many weights there are.

    >>> import torch, ntkit
    >>> k, x = ntkit.EmpiricalNTK(torch.nn.Linear(3, 2)), torch.randn(4, 3)
    >>> Sketched(k, 64)(x).shape
    torch.Size([4, 4])
    """

    def __init__(self, kernel: Kernel, size: int, seed: int = 0) -> None:
        if not isinstance(kernel, EmpiricalNTK):
            raise BadTypeError(
                f"sketch= is for the tangent kernels of networks, not for {type(kernel).__name__}; "
                f"leave it out."
            )
        self.kernel, self.size, self.seed = kernel, whole("sketch", size), seed

    def features(self, x: Inputs) -> Float[Tensor, "n f"]:
        """Return J S / sqrt(o) of all outputs, ``[n, o m]``."""
        sketch = self.kernel.features(x, self.size, seed=self.seed)
        return sketch.flatten(1) / sketch.shape[1] ** 0.5

    def __call__(self, x1: Inputs, x2: Inputs | None = None) -> Float[Tensor, "n1 n2 *v"]:
        """Return the block ``[n1, n2]``."""
        first = self.features(x1)
        return first @ (first if x2 is None else self.features(x2)).T

    def diag(self, x: Inputs) -> Float[Tensor, " n *v"]:
        """Return the kernel of each sample with itself, ``[n]``."""
        return self.features(x).square().sum(1)
