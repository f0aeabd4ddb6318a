"""The answers about a recorded run on one page: plain words first, figures after."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ntkit.diagnose.diagnosis import Diagnosis, diagnose
from ntkit.diagnose.subject import RecordedRun
from ntkit.display.svg import inline_svg
from ntkit.errors import BadTypeError, whole
from ntkit.inputs import Batch, batch_size
from ntkit.report.account_page import picture_of
from ntkit.report.output_folder import write_text
from ntkit.report.run_page import called, loss_named
from ntkit.report.templating import environment

if TYPE_CHECKING:
    from ntkit.diagnose.audit import LabelAudit


@dataclass(frozen=True)
class Neighbor:
    """A training sample beside another: its name, label and picture."""

    name: str
    label: str
    picture: np.ndarray | None


@dataclass(frozen=True)
class Suspect:
    """A sample whose label looks wrong."""

    name: str
    label: str
    suggested: str
    p_wrong: float
    votes: str
    picture: np.ndarray | None
    neighbors: tuple[Neighbor, ...]


@dataclass(frozen=True)
class NewQuery:
    """A query that is newest to the network, and the training sample nearest to it."""

    name: str
    p: float
    unexplained: float
    similarity: float
    picture: np.ndarray | None
    nearest: Neighbor


@dataclass(frozen=True)
class DiagnosisPage:
    """All that the page says."""

    title: str
    facts: tuple[tuple[str, str], ...]
    found: Diagnosis
    suspects: tuple[Suspect, ...]
    newest: tuple[NewQuery, ...]
    drawn: str


def diagnosis(
    found: Diagnosis,
    path: str | os.PathLike[str],
    *,
    picture: tuple[int, ...] | None = None,
    classes: Sequence[str] | None = None,
    shown: int = 12,
) -> Path:
    """Write the page of a diagnosis: one HTML file that loads nothing from anywhere.

    Parameters
    ----------
    found
        Made by `ntkit.diagnose.diagnose`.
    path
        The file to write; an older one is replaced.
    picture
        Height and width of flat inputs that are pictures, to be shown.
    classes
        The names of the classes, in the order of their numbers.
    shown
        How many suspects, and how many of the newest queries.

    Raises
    ------
    NtkitError
        Anything but a diagnosis; a place that cannot be written.

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
    >>> ntkit.report.diagnosis(found, folder + "/diagnosis.html").name
    'diagnosis.html'
    """
    if not isinstance(found, Diagnosis):
        raise BadTypeError(
            f"The diagnosis is of type {type(found).__name__}; give one made by ntkit.diagnose.diagnose."
        )
    return write_text(path, render_diagnosis(_page(found, picture, classes, whole("shown", shown, 0))))


def render_diagnosis(page: DiagnosisPage) -> str:
    """Return the page as one HTML document."""
    found = page.found
    parts = {
        "laziness": found.laziness,
        "alignment": found.alignment,
        "spectrum": found.spectrum,
        "novelty": found.novelty,
        "audit": found.audit,
    }
    figures = {name: inline_svg(part.plot(), name) for name, part in parts.items() if part is not None}
    template = environment().get_template("diagnosis.html.jinja")
    return template.render(page=page, found=found, figures=figures)


def diagnose_run(
    folder: str,
    model: str,
    data: str,
    out: str,
    *,
    loss: str = "cross_entropy",
    held_out: str | None = None,
    queries: str | None = None,
    samples: int = 2000,
    picture: tuple[int, int] | None = None,
    seed: int = 0,
) -> tuple[Diagnosis, Path]:
    """Diagnose a recorded run by the names of the functions that made it; return all answers and the file.

    Parameters
    ----------
    folder, model, data, out, loss
        As for `explain_run`.
    held_out
        ``module:function``, called without arguments: inputs and targets that were not trained on.
    queries
        ``module:function``, called without arguments: inputs.
    samples
        As for `ntkit.diagnose.diagnose`.
    picture
        As for `diagnosis`.
    seed
        As for `ntkit.diagnose.diagnose`.

    Raises
    ------
    NtkitError
        A name that leads nowhere, or a function that returns something else.
    """
    network = called(model, "--model")
    if not isinstance(network, nn.Module):
        raise BadTypeError(f"--model {model} returned {type(network).__name__}, expected a torch.nn.Module.")
    train, apart = _pair(data, "--data"), None if held_out is None else _pair(held_out, "--held-out")
    run = RecordedRun(folder, network, loss_named(loss), train=train)
    asked = None if queries is None else called(queries, "--queries")
    found = diagnose(run, held_out=apart, queries=asked, samples=samples, seed=seed)
    return found, diagnosis(found, out, picture=picture)


def _pair(name: str, option: str) -> tuple:
    found = called(name, option)
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise BadTypeError(f"{option} {name} returned {type(found).__name__}, expected a pair (x, y).")
    return found[0], found[1]


def _page(
    found: Diagnosis, picture: tuple[int, ...] | None, classes: Sequence[str] | None, shown: int
) -> DiagnosisPage:
    run, n = found.run, batch_size(found.run.x)
    size = sum(p.numel() for p in run.model.parameters())
    facts = (
        ("run", str(run.folder)),
        ("training samples", f"{n:,}"),
        ("steps", f"{run.steps:,}"),
        ("weights", f"{size:,}"),
    )
    drawn = "" if len(found.index) == n else f"{len(found.index):,} of the {n:,} training samples, drawn"
    names = _Names(run, picture, classes, None if found.audit is None else found.audit)
    return DiagnosisPage(
        "What this network is, and whom not to believe",
        facts,
        found,
        tuple(_suspects(found, names, shown)),
        tuple(_newest(found, names, shown)),
        drawn,
    )


class _Names:
    """What training samples are called and labelled, and their pictures."""

    def __init__(
        self,
        run: RecordedRun,
        picture: tuple[int, ...] | None,
        classes: Sequence[str] | None,
        audit: LabelAudit | None,
    ) -> None:
        self.run, self.picture, self.classes, self.audit = run, picture, classes, audit

    def label(self, place: int) -> str:
        if not isinstance(self.run.y, torch.Tensor) or self.run.y[place].numel() != 1:
            return ""
        value = self.run.y[place].reshape(()).item()
        return self.named(f"{value:.3g}" if isinstance(value, float) else str(value))

    def named(self, label: str) -> str:
        if self.classes is not None and label.isdigit() and int(label) < len(self.classes):
            return str(self.classes[int(label)])
        return label

    def of(self, place: int) -> Neighbor:
        return Neighbor(f"sample {place}", self.label(place), picture_of(self.run.x, place, self.picture))


def _suspects(found: Diagnosis, names: _Names, shown: int) -> list[Suspect]:
    audit = found.audit
    if audit is None:
        return []
    p = audit.model.wrong
    return [
        Suspect(
            f"sample {audit.index[row]}",
            names.named(audit.names[audit.labels[row]]),
            names.named(audit.names[audit.suggested[row]]),
            float(p[row]),
            audit.votes(row),
            picture_of(found.run.x, int(audit.index[row]), names.picture),
            tuple(names.of(int(audit.index[i])) for i in audit.neighbors[row][:5]),
        )
        for row in audit.order[:shown].tolist()
    ]


def _newest(found: Diagnosis, names: _Names, shown: int) -> list[NewQuery]:
    novelty, known = found.novelty, found.known
    if novelty is None or known is None:
        return []
    order = np.argsort(-novelty.variance, kind="stable")[:shown].tolist()
    queries: Batch | None = found.queries
    return [
        NewQuery(
            f"query {i}",
            float(novelty.p_values["variance"][i]),
            float(novelty.variance[i]),
            float(1 - novelty.distance[i]),
            picture_of(queries, i, names.picture),
            names.of(int(known[int(novelty.nearest[i])])),
        )
        for i in order
    ]
