"""The report of an account: any run's predictions, explained by its training samples on one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
import torch
from torch import Tensor

from ntkit.errors import BadTypeError, BadValueError, nearest, whole
from ntkit.report.explorer import MOST, explorer
from ntkit.report.output_folder import write_text
from ntkit.report.page import TERMS, Page, Push, PushSide, Query, render
from ntkit.training.accounts.result import Account
from ntkit.training.counterfactuals.result import Counterfactual

Labels = Tensor | np.ndarray | Sequence[object] | None  # one for each sample
Pictures = Tensor | np.ndarray | Sequence[object] | tuple[Tensor, ...] | dict[str, Tensor] | None  # inputs
POINTS = 200  # of the way of a prediction through training


class PageOptions(TypedDict, total=False):
    """What `account_page` takes besides the account."""

    labels: Labels
    classes: Sequence[str] | None
    train: Pictures
    names: Sequence[str] | None
    queries: Pictures
    query_names: Sequence[str] | None
    truth: Labels
    verdicts: Sequence[str] | None
    picture: tuple[int, ...] | None
    shown: int
    unit: str | None
    title: str
    lead: str
    facts: Sequence[tuple[str, str]]
    footer: str
    counterfactual: Counterfactual | None
    feature_names: Sequence[str] | None
    listed: int


def explain(account: Account, path: str | os.PathLike[str], **options: Unpack[PageOptions]) -> Path:
    """Write the report of an account: one HTML page that loads nothing from anywhere.

    For each query: the identity with its residual, the training samples that pushed its prediction most
    towards and against the output that it predicts, by label, and when in training it moved. In a browser
    with scripts all contributions can be explored: any output or margin, all samples sorted, filtered and
    searched, parts of the training, two queries, the queries that a sample moved.

    Parameters
    ----------
    account
        Made by `ntkit.account` or `ntkit.watch`.
    path
        The file to write; an older one is replaced.
    **options
        What `account_page` takes: labels, names and pictures of the samples and the queries.

    Returns
    -------
    pathlib.Path
        The file.

    Examples
    --------
    >>> import tempfile, torch, ntkit
    >>> _ = torch.manual_seed(0)
    >>> x = torch.rand(12, 2, dtype=torch.float64)
    >>> y, model = (x[:, 0] > 0.5).long(), torch.nn.Linear(2, 2).double()
    >>> optimizer, loss = torch.optim.SGD(model.parameters(), 0.5), torch.nn.functional.cross_entropy
    >>> folder = tempfile.mkdtemp()
    >>> with ntkit.record(folder + "/run", model, optimizer, train=(x, y)) as run:
    ...     for _ in range(20):
    ...         run.batch(range(12))
    ...         optimizer.zero_grad()
    ...         loss(model(x), y).backward()
    ...         _ = optimizer.step()
    >>> a = ntkit.account(folder + "/run", model, loss, train=(x, y), queries=x[:2])
    >>> ntkit.report.explain(a, folder + "/report.html", labels=y, truth=y[:2]).name
    'report.html'
    """
    for name in set(options) - set(PageOptions.__annotations__):
        known = PageOptions.__annotations__
        raise BadValueError(f"explain takes no {name!r}; it takes {', '.join(known)}.{nearest(name, known)}")
    if not isinstance(account, Account):
        raise BadTypeError(
            f"The account is of type {type(account).__name__}; give one made by ntkit.account."
        )
    return write_text(path, render(account_page(account, **options)))


def account_page(
    account: Account,
    *,
    labels: Labels = None,
    classes: Sequence[str] | None = None,
    train: Pictures = None,
    names: Sequence[str] | None = None,
    queries: Pictures = None,
    query_names: Sequence[str] | None = None,
    truth: Labels = None,
    verdicts: Sequence[str] | None = None,
    picture: tuple[int, ...] | None = None,
    shown: int = 6,
    unit: str | None = None,
    title: str = "A trained network, explained by its training samples",
    lead: str = "",
    facts: Sequence[tuple[str, str]] = (),
    footer: str = "",
    counterfactual: Counterfactual | None = None,
    feature_names: Sequence[str] | None = None,
    listed: int = MOST,
) -> Page:
    """Return all that the report of an account says.

    Parameters
    ----------
    account
        Of q queries, o outputs, n samples.
    labels
        Of the n training samples: whole numbers from 0 for classes, or anything that is written out.
    classes
        The names of the outputs; their numbers if left out.
    train
        The inputs, of which pictures are drawn where they are ones: ``[n, h, w]``, ``[n, 1, h, w]``,
        ``[n, 3, h, w]``, or flat with ``picture=(h, w)``.
    names
        What the training samples are called.
    queries, query_names, truth
        The same for the q queries: inputs, names and labels.
    verdicts
        A word for each query; right or wrong, if left out and the truth is known.
    picture
        Height and width of flat inputs that are pictures.
    shown
        How many samples on each side.
    unit
        Of the outputs; logits where there are several.
    title, lead, facts, footer
        The page's heading, its first paragraph, a table of names and values below it, its last line.
    counterfactual
        What the same predictions depend on, of the same queries, shown beside the account.
    feature_names
        The names of the columns of inputs that are tables.
    listed
        How many samples can be explored, those of the largest contributions; the rest is summed. The page
        takes about 2 to 3 bytes for each query, output and sample.

    Raises
    ------
    NtkitError
        Labels, names or inputs that are not as many as the account has samples or queries.
    """
    q, o, n = account.contributions.shape
    for what, values, count in (
        ("labels", labels, n),
        ("train", train, n),
        ("names", names, n),
        ("truth", truth, q),
        ("queries", queries, q),
        ("query_names", query_names, q),
        ("verdicts", verdicts, q),
        ("classes", classes, o if account.chosen is None else max(map(max, account.chosen)) + 1),
    ):
        if values is not None and not hasattr(values, "__len__"):
            raise BadTypeError(f"{what}={values!r}; expected {count} entries, as the account has.")
        several = what == "classes" and account.chosen is not None  # names of all outputs of the network
        if values is not None and len(values) != count and not (several and len(values) > count):
            raise BadValueError(f"{what} has {len(values)} entries, expected {count}, as the account has.")
    whole("shown", shown, 0)
    if not isinstance(picture, tuple | list | None):
        raise BadTypeError(f"picture={picture!r}; expected a height and a width, (h, w).")
    _refuse_other(counterfactual, account)
    width = getattr(train, "shape", (0,))[-1]
    if feature_names is not None and len(feature_names) != width:
        raise BadValueError(
            f"feature_names has {len(feature_names)} entries, the inputs have {width} columns."
        )
    outputs = None if classes is None else list(map(str, classes))
    known = outputs or ([str(i) for i in range(o)] if o > 1 else None)
    samples = _Samples(_plain(labels), known, train, names, picture)
    asked = _Samples(_plain(truth), known, queries, query_names, picture)
    words = [None] * q if verdicts is None else verdicts
    told = [[account.output_name(i, j, outputs) for j in range(o)] for i in range(q)]
    explored = explorer(
        account,
        told if o > 1 or account.chosen is not None else [["prediction"]] * q,
        unit=unit or _unit(account),
        samples=[(samples.name(i, "sample"), samples.label(i)) for i in range(n)],
        queries=[(asked.name(i, "query"), asked.label(i)) for i in range(q)],
        pictures=(samples.picture, asked.picture),
        inputs=(train, queries),
        features=feature_names,
        counterfactual=counterfactual,
        odds=o > 1 and unit is None and account.target == "outputs",
        most=whole("listed", listed, 1),
    )
    return Page(
        title=title,
        lead=lead,
        facts=tuple(facts),
        queries=tuple(
            _query(account, i, outputs, samples, asked, words[i], shown, counterfactual) for i in range(q)
        ),
        residual=float(account.residual.abs().max()),
        relative_residual=account.relative_residual,
        tolerance=account.tol,
        steps=account.steps,
        unit=unit or _unit(account),
        footer=footer,
        explorer=explored,
    )


def _refuse_other(counterfactual: Counterfactual | None, account: Account) -> None:
    """Refuse a counterfactual of other queries or samples."""
    if counterfactual is None:
        return
    if not isinstance(counterfactual, Counterfactual):
        raise BadTypeError(
            f"counterfactual is a {type(counterfactual).__name__}; give what ntkit.counterfactual returns."
        )
    c, a = counterfactual, account
    same = c.effects.shape == a.contributions.shape and c.target == a.target and c.chosen == a.chosen
    if not same or not torch.allclose(c.prediction, a.prediction, rtol=1e-4, atol=1e-6):
        raise BadValueError(
            f"counterfactual is of {tuple(c.effects.shape)} (queries, outputs, samples) and target "
            f"{c.target!r}, the account of {tuple(a.contributions.shape)} and {a.target!r}, or their "
            f"predictions differ; make both of the same run, queries and target."
        )


def _unit(account: Account) -> str:
    if account.target == "loss":
        return "units of the loss"
    classified = account.prediction.shape[1] > 1 or account.chosen is not None
    return "logits" if classified else "units of the output"


@dataclass(frozen=True)
class _Samples:
    """What is known of some samples: labels, names, pictures."""

    labels: list[Any] | None
    classes: Sequence[str] | None
    inputs: Pictures
    names: Sequence[str] | None
    shape: tuple[int, ...] | None

    def name(self, i: int, kind: str) -> str:
        return f"{kind} {i}" if self.names is None else str(self.names[i])

    def label(self, i: int) -> str:
        if self.labels is None:
            return ""
        value = self.labels[i]
        if self.classes is not None and isinstance(value, int) and 0 <= value < len(self.classes):
            return self.classes[value]
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    def picture(self, i: int) -> np.ndarray | None:
        """Return the picture of a sample, None where its input is none."""
        return picture_of(self.inputs, i, self.shape)


def picture_of(inputs: object, i: int, shape: tuple[int, ...] | None) -> np.ndarray | None:
    """Return a picture ``[h, w]`` or ``[h, w, 3]`` in [0, 1], None where the input is none."""
    if not isinstance(inputs, (Tensor, np.ndarray)):
        return None
    x = torch.as_tensor(inputs[i]).detach().double().cpu()
    if shape is not None:
        try:
            x = x.reshape(shape)
        except (TypeError, RuntimeError) as error:
            raise BadValueError(
                f"picture={shape!r} is not the shape of inputs of {x.numel()} numbers; give (h, w)."
            ) from error
    if x.ndim == 3 and x.shape[0] in (1, 3):
        x = x.permute(1, 2, 0).squeeze(-1)
    if x.ndim != 2 and not (x.ndim == 3 and x.shape[-1] == 3):
        return None
    low, high = float(x.min()), float(x.max())
    within = 0 <= low and high <= 1
    return (x if within else (x - low) / max(high - low, 1e-12)).numpy()


def _plain(labels: Labels) -> list[Any] | None:
    if labels is None:
        return None
    values = labels.tolist() if isinstance(labels, (Tensor, np.ndarray)) else list(labels)
    return [v[0] if isinstance(v, list) and len(v) == 1 else v for v in values]


def _query(
    a: Account,
    i: int,
    classes: list[str] | None,
    samples: _Samples,
    asked: _Samples,
    verdict: str | None,
    shown: int,
    counterfactual: Counterfactual | None,
) -> Query:
    """Return what the page says of one query: the account of the output that is largest."""
    logits = a.prediction[i]
    output = int(logits.argmax())
    several = len(logits) > 1
    outputs = [a.output_name(i, j, classes) for j in range(len(logits))]
    about = several or a.chosen is not None
    odds = logits.softmax(0).tolist() if several and a.chosen is None else []
    pushes = a.contributions[i, output]
    columns = {name: getattr(a, name)[i, output] for name in TERMS if name != "contributions"}
    columns["contributions"] = pushes.sum()

    effects = None if counterfactual is None else counterfactual.effects[i, output].tolist()

    def side(sign: int) -> PushSide:
        (where,) = torch.nonzero(sign * pushes > 0, as_tuple=True)
        strongest = where[(-sign * pushes[where]).argsort(stable=True)][:shown].tolist()
        pushed = [
            Push(
                samples.name(k, "sample"),
                samples.label(k),
                float(pushes[k]),
                samples.picture(k),
                None if effects is None else effects[k],
                k,
            )
            for k in strongest
        ]
        return PushSide(tuple(pushed), total=float(pushes[where].sum()), count=len(where))

    running = torch.cat([a.initial[i, output, None], a.by_step[i, output]]).cumsum(0)
    seen = torch.linspace(0, len(running) - 1, min(POINTS, len(running))).round().long()
    truth = asked.label(i)
    if verdict is None:
        known = truth and (several or a.target == "predicted")
        verdict = ("right" if truth == outputs[output] else "wrong") if known else ""
    by_label: dict[str, float] = {}
    if samples.labels is not None and about:
        by_label = dict.fromkeys(outputs if a.chosen is None else samples.classes or (), 0.0)
        for k, value in enumerate(pushes.tolist()):
            by_label[samples.label(k)] = by_label.get(samples.label(k), 0.0) + value
    return Query(
        name=asked.name(i, "query"),
        verdict=verdict,
        output=outputs[output] if about else f"{float(logits[0]):.4g}",
        truth=truth,
        terms={name: float(columns[name]) for name in TERMS},
        towards=side(1),
        against=side(-1),
        probabilities=tuple(zip(outputs, odds, strict=False)),
        by_label=tuple(by_label.items()) if len(by_label) <= 20 else (),
        picture=asked.picture(i),
        over_time=tuple(running[seen].tolist()),
    )
