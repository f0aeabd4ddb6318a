"""Wrong arguments of the questions of ntkit.diagnose."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import nn
from wrong_places import Call
from wrong_setting import LOSS, D, X, classes, data, net, recorded, spoil
from wrong_values import Bad, values

import ntkit.report
from ntkit import diagnose

OTHERS = [Bad("other columns", lambda: np.zeros((2, 5)), r"\[5\]|\(5,\)|5"), *values("rows")]
ROWS = [
    Bad("NaN in row 7", lambda: spoil(X(), 7), r"NaN.*\[7\]"),
    Bad("a number", lambda: 3.0, "single number"),
    *values("rows"),
]
TARGETS = [
    *values(None, "abc"),
    Bad("too few", lambda: classes()[:5], "has 5 targets for 12"),
    Bad("all equal", lambda: np.zeros(12, int), "equal"),
    Bad("two columns", lambda: np.zeros((12, 2), int), r"\(12, 2\)"),
]
CLASSES = [*TARGETS[:3], Bad("real numbers", lambda: X()[:, 0], "real numbers")]
SUBJECTS = [*values(None, 3), Bad("a class", lambda: nn.Linear, "Linear")]
RUNS = [*values("run"), Bad("a network", net, "Sequential")]
COUNTS = values(0, "3")


@cache
def run() -> diagnose.RecordedRun:
    return diagnose.RecordedRun(recorded(), net(), LOSS, train=data())


def a_run(**changed) -> diagnose.RecordedRun:
    given = {"folder": recorded(), "model": net(), "loss": LOSS, "train": data(), **changed}
    return diagnose.RecordedRun(**given)


def novelty(**changed) -> diagnose.Novelty:
    return diagnose.novelty(**{"kernel": net(), "train": X(), "queries": X()[:3], **changed})


def audit(**changed) -> diagnose.LabelAudit:
    return diagnose.label_audit(**{"subject": net(), "x": X(), "y": classes(), **changed})


def report(**changed) -> diagnose.OodReport:
    given = {"model": net(), "train": (X(), classes()), "inside": X(), "outside": X() + 3}
    return diagnose.ood_report(**{**given, **changed})


QUESTIONS: dict[str, tuple[str | list[Bad], Call]] = {
    "RecordedRun folder": (values("/nowhere/run", 3.5, None), lambda v: a_run(folder=v)),
    "RecordedRun model": (values(None, 3), lambda v: a_run(model=v)),
    "RecordedRun loss": (values(None, 3, "mean_squared"), lambda v: a_run(loss=v)),
    "RecordedRun train": (values(3, None), lambda v: a_run(train=v)),
    "RecordedRun.network": (values(4, -1, 1.5), lambda v: run().network(v)),
    "laziness": (RUNS, lambda v: diagnose.laziness(v)),
    "laziness samples": (COUNTS, lambda v: diagnose.laziness(run(), samples=v)),
    "drift checkpoints": (values(1, 0, "3"), lambda v: diagnose.drift(run(), checkpoints=v)),
    "drift seed": (values(1.5), lambda v: diagnose.drift(run(), seed=v)),
    "alignment": (SUBJECTS, lambda v: diagnose.alignment(v, X(), classes())),
    "alignment x": (ROWS, lambda v: diagnose.alignment(net(), v, classes())),
    "alignment y": (TARGETS, lambda v: diagnose.alignment(net(), X(), v)),
    "spectrum": (SUBJECTS, lambda v: diagnose.spectrum(v, X())),
    "spectrum x": (ROWS, lambda v: diagnose.spectrum(net(), v)),
    "spectrum y": (TARGETS[1:], lambda v: diagnose.spectrum(net(), X(), v)),
    "spectrum.share": (values(0, 99, 1.5), lambda v: diagnose.spectrum(net(), X(), classes()).share(v)),
    "novelty": (SUBJECTS, lambda v: novelty(kernel=v)),
    "novelty train": (ROWS, lambda v: novelty(train=v)),
    "novelty queries": (OTHERS, lambda v: novelty(queries=v)),
    "novelty labels": (CLASSES[1:], lambda v: novelty(labels=v)),
    "novelty held_out": ([*values(0.0, 1.0, -0.5), *OTHERS], lambda v: novelty(held_out=v)),
    "novelty alpha": (values(0.0, float("nan")), lambda v: novelty(alpha=v)),
    "novelty sketch": (values(0, 1.5, "9"), lambda v: novelty(sketch=v)),
    "novelty memory": (values("a lot"), lambda v: novelty(memory=v)),
    "ood_report model": (SUBJECTS, lambda v: report(model=v)),
    "ood_report train": (
        [*values(None, 3), Bad("classes", lambda: (X(), X()[:, 0]), "real")],
        lambda v: report(train=v),
    ),
    "ood_report inside": (OTHERS, lambda v: report(inside=v)),
    "ood_report outside": (OTHERS, lambda v: report(outside=v)),
    "ood_report ensemble": (values([3]), lambda v: report(ensemble=v)),
    "ood_report neighbors": (COUNTS, lambda v: report(neighbors=v)),
    "shift_report": (RUNS, lambda v: diagnose.shift_report(v, {"none": [X()]}, classes())),
    "label_audit": (SUBJECTS, lambda v: audit(subject=v)),
    "label_audit x": (ROWS, lambda v: audit(x=v)),
    "label_audit y": (CLASSES, lambda v: audit(y=v)),
    "label_audit alpha": (values(0.0), lambda v: audit(alpha=v)),
    "label_audit neighbors": (COUNTS, lambda v: audit(neighbors=v)),
    "label_audit exact": (
        [Bad("True", lambda: True, "recorded run"), *values("yes")],
        lambda v: audit(exact=v),
    ),
    "label_audit run": ([Bad("numbers", run, "real numbers")], lambda v: diagnose.label_audit(v)),
    "LabelAudit.precision": (values(0, 13, 1.5), lambda v: audit().precision(v)),
    "compare a": (SUBJECTS, lambda v: diagnose.compare(v, net(), X())),
    "compare b": (SUBJECTS, lambda v: diagnose.compare(net(), v, X())),
    "compare x": (ROWS, lambda v: diagnose.compare(net(), net(), v)),
    "diagnose": (RUNS, lambda v: diagnose.diagnose(v)),
    "diagnose held_out": (
        [*values(3), Bad("inputs alone", lambda: torch.zeros(8, 3, dtype=D), "Tensor")],
        lambda v: diagnose.diagnose(run(), held_out=v),
    ),
    "report.diagnosis": (values(None, 3, "page"), lambda v: ntkit.report.diagnosis(v, "/nowhere/page.html")),
}
