"""Which labels look wrong: by what a run did with each sample, and by what its neighbors say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

from ntkit.compute.plan import parse_memory
from ntkit.compute.progress import progress
from ntkit.compute.surroundings import undisturbed
from ntkit.compute.threads import fitting_threads
from ntkit.diagnose.alignments import scalar_gram
from ntkit.diagnose.noise_model import NoiseModel, robust
from ntkit.diagnose.sample_scores import Combined, SampleScores
from ntkit.diagnose.shown import Places, Shown
from ntkit.diagnose.subject import RecordedRun, Subject, as_x, drawn, kernel_of
from ntkit.diagnose.targets import Targets, as_classes
from ntkit.diagnose.uncertainty import Measured
from ntkit.errors import BadValueError, one_of, positive, whole
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.inputs import Batch, Inputs, batch_size, take
from ntkit.kernel import Kernel
from ntkit.network import Floats, network
from ntkit.training.accounts.account import account
from ntkit.training.counterfactuals.counterfactual import counterfactual

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Shares of the ranks in the combined score; those that are there are scaled to sum to one. The residual of
# all kernels together finds most; what was memorized hides from the others.
WEIGHTS = {
    "ridge": 0.95,
    "ridge before": 0.0,
    "loss": 0.02,
    "self_influence": 0.01,
    "counterfactual": 0.01,
    "account": 0.01,
}
_SHARPER = 2.0  # times the median distance of the features goes into the exponent
ROUNDS = 2  # of the ridge regression, the second without the suspects of the first
_ALPHAS = (0.5, 0.1)  # the second where the labels are much more likely so: many samples want a smaller ridge


@dataclass(frozen=True, repr=False)
class LabelAudit(Shown):
    """How wrong each label looks; made by `label_audit`. Larger is more suspect, in each score.

    Attributes
    ----------
    score
        The mean rank over all scores, weighted, from 0 to 1, ``[n]``.
    scores
        "ridge": the probability that the label is wrong by the leave-one-out predictions of kernel ridge
        regression ("ridge before": without what training made); "loss": the mean over the checkpoints;
        "self_influence": the mean squared gradient norm there; "counterfactual": by how much the held-out
        loss falls without the sample; "account": what it took off its own loss; ``[n]`` each.
    model
        The noise model behind the probabilities, of the kernel that knows least of the labels.
    labels, names
        The class of each sample as given ``[n]``, a place in ``names``.
    suggested
        The class that the neighbors suggest, ``[n]``.
    neighbors
        The rows of the most similar samples, the nearest first, ``[n, k]``.
    index
        The place of each row in the data, ``[n]``.

    Examples
    --------
    >>> import numpy as np
    >>> from ntkit.diagnose import label_audit
    >>> x = np.random.default_rng(0).normal(size=(60, 2)) + 6 * (np.arange(60) % 2)[:, None]
    >>> y = np.arange(60) % 2
    >>> y[7] = 0
    >>> found = label_audit(lambda a, b: np.exp(-0.1 * ((a[:, None] - b) ** 2).sum(2)), x, y)
    >>> int(found.order[0]), int(found.suggested[7])
    (7, 1)
    """

    score: Floats
    scores: Mapping[str, Floats]
    model: NoiseModel
    labels: Places
    names: tuple[str, ...]
    suggested: Places
    neighbors: Places
    index: Places

    @property
    def order(self) -> Places:
        """The rows of the samples, the most suspect first; ``index[order]`` are their places in the data."""
        return np.argsort(-self.score, kind="stable")

    @property
    def wrong(self) -> Measured:
        """How many of all labels are wrong, estimated without knowing which."""
        return self.model.count(np.arange(len(self.score)))

    def precision(self, k: int) -> Measured:
        """Return the share of wrong labels among the k most suspect, estimated without knowing them.

        By the noise model. The interval covers the draw of the samples and of the wrong labels.
        """
        top = self.order[: whole("k", k)]
        if k > len(self.score):
            raise BadValueError(f"k={k}; there are {len(self.score)} samples, give at most that.")
        return Measured(*(v / k for v in self.model.count(top)))

    @property
    def words(self) -> str:
        """What was found."""
        n, wrong = len(self.score), self.wrong
        if not self.model.informative:
            return f"What the kernel sees tells nothing of these {n} labels: which are wrong cannot be said."
        k = max(1, min(n, round(wrong.value)))
        precision = self.precision(k)
        return (
            f"About {wrong.value:.0f} of {n} labels look wrong ({wrong.low:.0f} to {wrong.high:.0f}). Of the "
            f"{k} most suspect, {precision.value:.0%} should really be wrong ({precision.low:.0%} to "
            f"{precision.high:.0%})."
        )

    def columns(self) -> Mapping[str, object]:
        """Return a row for each sample, the most suspect first; ``index`` is its place in the data."""
        order, name = self.order, np.array(self.names)
        return {
            "index": self.index[order],
            "label": name[self.labels[order]],
            "suggested": name[self.suggested[order]],
            "score": self.score[order],
            "p_wrong": self.model.wrong[order],
            **{key: values[order] for key, values in self.scores.items()},
            "neighbors": [self.votes(i) for i in order.tolist()],
        }

    def votes(self, row: int) -> str:
        """Return the labels of a sample's neighbors, counted: ``"8 x 3, 2 x 5"`` (8 are of class 3)."""
        found, counts = np.unique(self.labels[self.neighbors[row]], return_counts=True)
        ranked = sorted(zip(counts.tolist(), found.tolist(), strict=True), key=lambda pair: -pair[0])
        return ", ".join(f"{count} x {self.names[label]}" for count, label in ranked)

    def save_table(self, path: str | os.PathLike[str]) -> Path:
        """Write the table as a CSV file, whole or not at all, and return its path."""
        from ntkit.files import as_path, write_atomically

        target = as_path(path)
        write_atomically(target, self.table().to_csv(index=False).encode())
        return target

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the expected share of wrong labels among the most suspect, against their number."""
        from ntkit.display.diagnosis_plots import precision_at_the_top

        return precision_at_the_top(self, ax)


@fitting_threads()
def label_audit(
    subject: Subject,
    x: Inputs = None,
    y: Inputs = None,
    *,
    held_out: tuple[Inputs, Inputs] | None = None,
    checkpoints: int = 10,
    exact: bool = False,
    alpha: float | None = None,
    neighbors: int = 10,
    directions: int | None = 4,
    samples: int | None = None,
    memory: int | str = "1GiB",
    seed: int = 0,
) -> LabelAudit:
    """Return which labels look wrong.

    Of a kernel it is the leave-one-out residual of ridge regression on

        g(x, x') = exp(-2 (1 - c(x, x')) / m),    c(x, x') = k(x, x') / sqrt(k(x, x) k(x', x')),

    a Gaussian kernel of the normalized features whose width is set by m, the median of 1 - c. The residual is
    turned into the probability that the label is wrong (`NoiseModel`), in two rounds: the second gives
    samples the weight 1 - P(wrong). Of a network the kernel is the mean of that of its tangent kernel and of
    that of the inputs themselves, c = <x, x'> / |x| |x'|, where they are one tensor of real numbers: labels
    that training memorized hide in what it made. Of a run it is g(after) / 4 + g(before) / 4 + g(inputs) / 2,
    with the tangent kernels after and before training, and what happened to each sample at checkpoints: its
    loss, and its squared gradient norm |J^T c|^2, c the derivative of its loss by the outputs, both averaged
    over them.

    Parameters
    ----------
    subject : kernel, network or RecordedRun
        What is asked.
    x, y : batch of inputs, whole numbers
        The samples and their classes; those of the run, if it is one.
    held_out : (inputs, targets), optional
        Samples with labels that can be trusted: a run is then also asked, by one row of `counterfactual`,
        without which samples their summed loss would be smaller.
    checkpoints : int
        Of the run, without the start.
    exact : bool
        Also account for the loss of each training sample (`ntkit.account`): much dearer.
    alpha : float, optional
        The ridge; the kernel is 1 on the diagonal. None: 0.5, or 0.1 where the labels are more likely so by
        ten nats (by the predictions of the kernel that knows least of them).
    neighbors : int
        How many neighbors' labels are told.
    directions : int, optional
        Of a run with more outputs: its kernels are those of so many orthonormal combinations of the outputs,
        drawn, and not of all; None: of all. Four find what all find, at that part of the cost.
    samples : int, optional
        Audit so many samples, drawn, and not all: n x n values of the kernel are held, n^3
        operations done.
    memory : int or str
        Of the counterfactual and the account.
    seed : int
        Of the draws.

    Raises
    ------
    NtkitError
        Targets that are no classes, other samples than the run's, a kernel with several values per pair.

    References
    ----------
    Wahba (1990), section 4.2 (leave-one-out); Pruthi et al. (2020), section 4 (self-influence); Northcutt,
    Jiang, Chuang, "Confident learning" (2021), for the question.

    Examples
    --------
    >>> import numpy as np
    >>> from ntkit.diagnose import label_audit
    >>> x = np.random.default_rng(0).normal(size=(60, 2)) + 6 * (np.arange(60) % 2)[:, None]
    >>> y = np.arange(60) % 2
    >>> y[7] = 0
    >>> found = label_audit(lambda a, b: np.exp(-0.1 * ((a[:, None] - b) ** 2).sum(2)), x, y)
    >>> int(found.order[0]), found.votes(7)
    (7, '10 x 1')
    """
    run = subject if isinstance(subject, RecordedRun) else None
    if run is not None and (x is not None or y is not None):
        raise BadValueError("x and y are those of the run; leave them out, or give a kernel.")
    batch = as_x(subject, x) if run is None else run.x
    targets = as_classes(y if run is None else run.y, batch_size(batch))
    index = torch.arange(batch_size(batch)) if samples is None else drawn(batch, samples, seed)
    batch, targets = take(batch, index), targets.some(index)
    n = len(index)
    if n < 10:
        raise BadValueError(f"There are {n} samples; an audit needs at least 10.")
    whole("checkpoints", checkpoints)
    one_of("exact", exact, (True, False))
    parse_memory(memory)
    k = min(whole("neighbors", neighbors), n - 1)
    if run is None and (held_out is not None or exact):
        raise BadValueError(
            "held_out= and exact= ask a recorded run; give ntkit.diagnose.RecordedRun(folder, ...)."
        )
    kernels: dict[str, Kernel] = {"ridge": kernel_of(subject)}
    if run is not None:
        kernels = {
            name: EmpiricalNTK(
                Combined(run.network(step), run.select, take(batch, slice(1)), directions, seed)
            )
            for name, step in (("ridge before", 0), ("ridge", None))
        }
    models: dict[str, NoiseModel] = {}
    alphas = [*_ALPHAS] if alpha is None else [positive("alpha", alpha)]
    with progress("regressing", ROUNDS * (len(kernels) + len(alphas) - 1)) as done:
        cosine = torch.empty(0)
        inputs = _of_inputs(batch) if isinstance(subject, RecordedRun | nn.Module) else None
        together = torch.zeros(n, n, dtype=torch.float64)
        for count, (name, made) in enumerate(kernels.items(), 1):
            cosine = _cosine(scalar_gram(made, batch))
            together += _sharpened(cosine)
            gram = together / count if inputs is None else (together / count + inputs) / 2
            models[name], *alphas = robust(gram, targets.columns, _of(targets), alphas, ROUNDS, done)
    scores = {name: model.wrong for name, model in reversed(models.items())}
    if run is not None:
        scores |= _over_time(run, index, checkpoints)
        effects = _effects(run, held_out, exact, memory)
        scores |= {name: values[index.numpy()] for name, values in effects.items()}
    others = models["ridge"].predictions.scatter(1, _of(targets)[:, None], -torch.inf)
    suggested = torch.where(
        torch.as_tensor(models["ridge"].wrong) > 0.5, others.argmax(1), models["ridge"].predictions.argmax(1)
    )
    nearest = cosine.fill_diagonal_(-2).topk(k, dim=1).indices
    return LabelAudit(
        combined(scores),
        scores,
        next(iter(models.values())),
        _of(targets).numpy(),
        targets.names,
        suggested.numpy(),
        nearest.numpy(),
        index.numpy(),
    )


def combined(scores: Mapping[str, Floats]) -> Floats:
    """Return the mean rank, weighted by `WEIGHTS`, from 0 to 1.

    >>> combined({"ridge": np.array([0.1, 0.9, 0.5]), "loss": np.array([1.0, 3.0, 2.0])}).round(9)
    array([0. , 1. , 0.5])
    """
    total = sum(WEIGHTS[name] for name in scores)
    n = len(next(iter(scores.values())))
    ranks = sum(
        (WEIGHTS[name] / total * (rankdata(values) - 1) for name, values in scores.items()), np.zeros(n)
    )
    return ranks / (n - 1)


def _of(targets: Targets) -> Tensor:
    assert targets.classes is not None
    return targets.classes


def _cosine(k: Tensor) -> Tensor:
    size = k.diagonal().clone()
    if not float(size.min()) > 0:
        bad = (size <= 0).nonzero().flatten().tolist()
        raise BadValueError(
            f"k(x, x) is zero for sample(s) {bad[:10]}, which are like nothing; leave them out."
        )
    return k / (size[:, None] * size).sqrt()


def _of_inputs(x: Batch) -> Tensor | None:
    """Return the Gaussian kernel of rows of equal norm, of inputs that are one tensor of real numbers."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    rows = nn.functional.normalize(x.detach().flatten(1), dim=1)
    return _sharpened((rows @ rows.T).cpu().double().fill_diagonal_(1.0))


def _sharpened(cosine: Tensor) -> Tensor:
    """Return the Gaussian kernel of normalized features: tangent kernels alone are too smooth for digits."""
    middle = float((1 - cosine).median())
    return cosine if middle <= 0 else torch.exp((cosine - 1) * (_SHARPER / middle))


def _over_time(run: RecordedRun, index: Tensor, checkpoints: int) -> dict[str, Floats]:
    """Return losses and squared gradient norms, averaged over checkpoints behind the start."""
    steps = run.checkpoints(checkpoints + 1)[1:]
    x, y = take(run.x, index), take(run.y, index)
    losses, norms = [], []
    with run.opened() as opened, undisturbed(network(run.model)), progress("looking", len(steps)) as done:
        seen = SampleScores(run.network_of(opened, steps[0]), run.batch_loss, run.select)
        for step in steps:
            run.load(opened, step, seen.model)
            loss, norm = seen.at(x, y)
            losses.append(loss)
            norms.append(norm)
            done(1)
    return {
        "loss": torch.stack(losses).mean(0).numpy(),
        "self_influence": torch.stack(norms).mean(0).numpy(),
    }


def _effects(
    run: RecordedRun, held_out: tuple[Inputs, Inputs] | None, exact: bool, memory: int | str
) -> dict[str, Floats]:
    """Return what the run's counterfactual and account say."""
    asked = {"train": (run.x, run.y), "augment": run.augment, "memory": memory, "target": "loss"}
    asked["select"] = run.select
    found = {}
    if held_out is not None:
        if not isinstance(held_out, (tuple, list)) or len(held_out) != 2:
            raise BadValueError(
                f"held_out is a {type(held_out).__name__}; expected a pair (inputs, targets)."
            )
        row = counterfactual(
            run.folder, run.model, run.loss, queries=held_out[0], labels=held_out[1], total=True, **asked
        )
        found["counterfactual"] = -row.effects[0, 0].numpy()
    if exact:
        own = account(run.folder, run.model, run.loss, queries=run.x, labels=run.y, tol=1e-4, **asked)
        found["account"] = -own.self_influence()[:, 0].numpy()
    return found
