"""Who finds flipped labels: the audit, its parts, the mean loss, and confident learning by cleanlab."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diagnoses.sets import Labelled, flipped, labelled, trained
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from ntkit.diagnose import LabelAudit, RecordedRun, label_audit
from ntkit.errors import NtkitError

SHARES = (0.05, 0.1, 0.2)
KINDS = ("uniform", "by class")
FOLDS = 5


def measure(
    name: str, seeds: range, shares: tuple[float, ...] = SHARES, kinds: tuple[str, ...] = KINDS
) -> Iterator[dict]:
    """Yield a row for each share, kind and seed."""
    for share in shares:
        for kind in kinds:
            for seed in seeds:
                yield _one(labelled(seed)[name](), share, kind, seed) | {"set": name}


def _one(data: Labelled, share: float, kind: str, seed: int) -> dict:
    y, wrong = flipped(data.y, share, kind, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        seconds = {"training": _timed(lambda: trained(data.network, data.x, y, seed, rate=data.rate))[1]}
        model = trained(data.network, data.x, y, seed, rate=data.rate, folder=folder)
        run = RecordedRun(folder, model, "cross_entropy", train=(data.x, y))
        audit, seconds["audit without held-out"] = _timed(lambda: label_audit(run))
        refused = ""
        try:
            audit, seconds["audit"] = _timed(lambda: label_audit(run, held_out=data.held_out))
        except NtkitError as error:  # the counterfactual refuses some runs of ReLU networks
            refused = str(error)
    scores = {"audit": audit.score, **audit.scores}
    found, seconds["cleanlab"] = _timed(lambda: confident(data, y, seed))
    scores |= found
    with torch.no_grad():
        right = float((model(data.held_out[0]).argmax(1) == data.held_out[1]).double().mean())
    k = int(wrong.sum())
    return {
        "title": data.name,
        "share": share,
        "kind": kind,
        "seed": seed,
        "wrong": k,
        "accuracy": right,
        "seconds": seconds,
        "auroc": {name: float(roc_auc_score(wrong, s)) for name, s in scores.items()},
        "precision": {
            name: float(wrong[np.argsort(-s, kind="stable")[:k]].mean()) for name, s in scores.items()
        },
        "estimate": _estimate(audit, wrong, k),
        "refused": refused,
    }


def costs(names: tuple[str, ...] = ("mnist-mlp", "mnist-cnn"), rounds: int = 3) -> list[dict]:
    """Return the seconds of a training and of an audit, in turn: the least of some rounds of each."""
    rows = []
    for name in names:
        data = labelled(0)[name]()
        y, _ = flipped(data.y, 0.1, "uniform", 0)
        seconds: dict[str, list[float]] = {"training": [], "audit": [], "audit without held-out": []}
        with tempfile.TemporaryDirectory() as folder:
            model = trained(data.network, data.x, y, 0, rate=data.rate, folder=Path(folder) / "run")
            run = RecordedRun(Path(folder) / "run", model, "cross_entropy", train=(data.x, y))
            for _ in range(rounds):
                for what, work in (
                    ("training", lambda d=data, y=y: trained(d.network, d.x, y, 0, rate=d.rate)),
                    ("audit without held-out", lambda run=run: label_audit(run)),
                    ("audit", lambda run=run, d=data: label_audit(run, held_out=d.held_out)),
                ):
                    seconds[what].append(_timed(work)[1])
        rows.append({"title": data.name, "seconds": {what: min(all_) for what, all_ in seconds.items()}})
    return rows


def _precision(score: np.ndarray, wrong: np.ndarray, k: int) -> float:
    return float(wrong[np.argsort(-score, kind="stable")[:k]].mean())


def _estimate(audit: LabelAudit, wrong: np.ndarray, k: int) -> dict:
    """Return what the audit expects, and what is true: all wrong labels, and those among the first k."""
    rows = {"all": (audit.wrong, float(wrong.sum()))}
    for name, count in (("half", max(1, k // 2)), ("top", k), ("twice", min(len(wrong), 2 * k))):
        rows[name] = (audit.precision(count), float(wrong[audit.order[:count]].mean()))
    return {name: [*map(float, measured), truth] for name, (measured, truth) in rows.items()}


def confident(data: Labelled, y: torch.Tensor, seed: int) -> dict[str, np.ndarray]:
    """Return cleanlab's scores from cross-validated probabilities of the same network, trained five times."""
    from cleanlab.rank import get_label_quality_scores

    labels = y.numpy()
    p = np.zeros((len(y), int(y.max()) + 1))
    for fold, (seen, left) in enumerate(
        StratifiedKFold(FOLDS, shuffle=True, random_state=seed).split(labels, labels)
    ):
        model = trained(data.network, data.x[seen], y[seen], seed + fold, rate=data.rate)
        with torch.no_grad():
            p[left] = model(data.x[left]).double().softmax(1).numpy()
    scores = {}
    for method in ("self_confidence", "normalized_margin"):
        for adjust in (False, True):
            name = f"cleanlab, {method.replace('_', ' ')}{', adjusted' if adjust else ''}"
            scores[name] = -get_label_quality_scores(labels, p, method=method, adjust_pred_probs=adjust)
    return scores


def _timed(function: Callable) -> tuple:
    begin = time.perf_counter()
    found = function()
    return found, time.perf_counter() - begin
