"""All questions asked of one recorded run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from ntkit.diagnose.alignments import Alignment, alignment
from ntkit.diagnose.audit import LabelAudit, label_audit
from ntkit.diagnose.extrapolation import Novelty, novelty, stays
from ntkit.diagnose.lazy_training import Laziness, laziness
from ntkit.diagnose.shown import Shown
from ntkit.diagnose.spectra import KernelSpectrum, spectrum
from ntkit.diagnose.subject import RecordedRun, a_run, as_x, drawn
from ntkit.diagnose.targets import as_targets
from ntkit.errors import BadTypeError, whole
from ntkit.inputs import Batch, Inputs, batch_size, take

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, repr=False)
class Diagnosis(Shown):
    """The four answers about a run; made by `diagnose`, written to a page by `ntkit.report.diagnosis`.

    Attributes
    ----------
    laziness, alignment, spectrum, novelty, audit
        The answers; ``novelty`` is None without queries, ``audit`` where targets are numbers.
    run
        The run that was asked.
    index
        The places of the training samples that spectrum, novelty and audit looked at, ``[n]``.
    queries
        What novelty was asked about, None without.
    known
        The places of the training samples that novelty's kernel knows: ``nearest`` counts in these.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> from ntkit.diagnose import RecordedRun, diagnose
    >>> x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    >>> y, model = (x[:, 0] > 0).long(), torch.nn.Linear(3, 2).double()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.5), tempfile.mkdtemp()
    >>> with ntkit.record(folder + "/run", model, optimizer, train=(x, y)) as run:
    ...     for step in range(10):
    ...         run.batch(range(40))
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.cross_entropy(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> found = diagnose(RecordedRun(folder + "/run", model, "cross_entropy", train=(x, y)))
    >>> list(found.columns())
    ['question', 'answer']
    """

    laziness: Laziness
    alignment: Alignment
    spectrum: KernelSpectrum
    novelty: Novelty | None
    audit: LabelAudit | None
    run: RecordedRun
    index: Tensor
    queries: Batch | None
    known: Tensor | None

    @property
    def words(self) -> str:
        """The answers, one after the other."""
        parts = (self.laziness, self.alignment, self.spectrum, self.novelty, self.audit)
        return " ".join(part.words for part in parts if part is not None)

    def columns(self) -> Mapping[str, object]:
        """Return the answers in words."""
        answers = {
            "laziness": self.laziness,
            "alignment": self.alignment,
            "spectrum": self.spectrum,
            "novelty": self.novelty,
            "labels": self.audit,
        }
        there = {name: answer.words for name, answer in answers.items() if answer is not None}
        return {"question": list(there), "answer": list(there.values())}

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how the run moved away from its start."""
        return self.laziness.plot(ax)


def diagnose(
    run: RecordedRun,
    *,
    held_out: tuple[Inputs, Inputs] | None = None,
    queries: Inputs = None,
    samples: int = 2000,
    checkpoints: int = 10,
    seed: int = 0,
) -> Diagnosis:
    """Ask a run all questions: is it lazy, what does it see, do queries extrapolate, which labels are wrong.

    Parameters
    ----------
    run : RecordedRun
        The run, its network and data.
    held_out : (inputs, targets), optional
        Samples that it was not trained on. Novelty compares queries with them, or asks about them where there
        are no queries; the label audit asks which training samples raise their loss.
    queries : batch of inputs, optional
        What novelty is asked about.
    samples : int
        At most so many training samples are drawn for spectrum, novelty and audit, which hold n x n values.
    checkpoints : int
        Times at which the run is looked at.
    seed : int
        Of all draws.

    Raises
    ------
    NtkitError
        What the single questions refuse.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> from ntkit.diagnose import RecordedRun, diagnose
    >>> _ = torch.manual_seed(0)
    >>> x = torch.randn(40, 3, dtype=torch.float64)
    >>> y, model = (x[:, 0] > 0).long(), torch.nn.Linear(3, 2).double()
    >>> optimizer, folder = torch.optim.SGD(model.parameters(), lr=0.5), tempfile.mkdtemp() + "/run"
    >>> with ntkit.record(folder, model, optimizer, train=(x, y)) as run:
    ...     for step in range(10):
    ...         run.batch(range(40))
    ...         optimizer.zero_grad()
    ...         torch.nn.functional.cross_entropy(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> found = diagnose(RecordedRun(folder, model, "cross_entropy", train=(x, y)), queries=x[:5] + 4)
    >>> found.laziness.verdict, found.audit.score.shape
    ('lazy', (40,))
    """
    a_run(run)
    index = drawn(run.x, whole("samples", samples, 10), seed)
    x = take(run.x, index)
    if held_out is not None and (not isinstance(held_out, (tuple, list)) or len(held_out) != 2):
        raise BadTypeError(f"held_out is a {type(held_out).__name__}; expected a pair (inputs, targets).")
    targets = as_targets(run.y, batch_size(run.x))
    audit = None
    if targets.classes is not None:
        audit = label_audit(run, held_out=held_out, checkpoints=checkpoints, samples=samples, seed=seed)
    asked = queries if queries is not None else None if held_out is None else held_out[0]
    found = known = None
    if asked is not None:
        apart = held_out[0] if queries is not None and held_out is not None else 0.2
        classes = None if targets.classes is None else targets.classes[index]
        found = novelty(run, x, asked, labels=classes, held_out=apart, seed=seed)
        known = index[stays(len(index), apart, seed)] if isinstance(apart, float) else index
    return Diagnosis(
        laziness(run, checkpoints=checkpoints, seed=seed),
        alignment(run, seed=seed),
        spectrum(run, x, take(run.y, index), seed=seed),
        found,
        audit,
        run,
        index,
        None if asked is None else as_x(run, asked, "queries"),
        known,
    )
