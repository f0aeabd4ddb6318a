"""What is measured of an estimator on a table: means over four folds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from sklearn.base import clone
from sklearn.metrics import log_loss
from sklearn.model_selection import KFold, StratifiedKFold

import ntkit
from scoring.data import Table
from scoring.models import classifiers, deviations, regressors, texts_as_objects

FOLDS, COVERAGE = 4, 0.95
Row = dict[str, float]


def measure(table: Table, only: Iterable[str]) -> dict[str, Row]:
    """Return measures by the estimator's name: accuracy and log loss, or R2, coverage and log density."""
    x, y = table.read()
    x = texts_as_objects(x)
    models = classifiers(x) if table.classes else regressors(x)
    one: Callable[..., Row] = _classified if table.classes else _regressed
    folds = (StratifiedKFold if table.classes else KFold)(FOLDS, shuffle=True, random_state=0)
    splits = list(folds.split(x, y))
    return {
        name: _mean(one(models[name], x, y, *split) for split in splits) for name in models if name in only
    }


def _mean(rows: Iterable[Row]) -> Row:
    found = list(rows)
    return {key: float(np.mean([row[key] for row in found])) for key in found[0]}


def _fitted(model: Any, x: pd.DataFrame, y: np.ndarray) -> tuple[Any, float]:
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of convergence, and of rare classes in the folds of a grid
        return clone(model).fit(x, y), time.perf_counter() - start


def _classified(model: Any, x: pd.DataFrame, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> Row:
    fit, seconds = _fitted(model, x.iloc[train], y[train])
    row = {"accuracy": float(np.mean(fit.predict(x.iloc[test]) == y[test])), "seconds": seconds}
    if hasattr(fit, "predict_proba"):
        p = np.full((len(test), int(y.max()) + 1), 1e-15)
        p[:, fit.classes_] = fit.predict_proba(x.iloc[test]).clip(1e-15)
        row["log loss"] = float(log_loss(y[test], p / p.sum(1, keepdims=True), labels=np.arange(p.shape[1])))
    return row


def _regressed(model: Any, x: pd.DataFrame, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> Row:
    fit, seconds = _fitted(model, x.iloc[train], y[train])
    q, truth = x.iloc[test], y[test]
    mean = fit.predict(q)
    spread = float(((truth - y[train].mean()) ** 2).mean()) or 1.0
    row = {"R2": 1 - float(((truth - mean) ** 2).mean()) / spread, "seconds": seconds}
    law = deviations(fit, q)
    if law is not None:
        mean, std = law
        reach = norm.ppf((1 + COVERAGE) / 2) * std
        row["coverage"] = float(np.mean(np.abs(truth - mean) <= reach))
        row["log density"] = float(norm.logpdf(truth, mean, std).mean() + np.log(y[train].std()))
    elif isinstance(fit, ntkit.KernelRidge):
        low, high = fit.predict_interval(q, COVERAGE)
        row["coverage"] = float(np.mean((low <= truth) & (truth <= high)))
    return row
