"""The estimators that are compared: with their defaults, and with the usual small grid of three folds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.gaussian_process import GaussianProcessClassifier, GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR

import ntkit

SVM = {"C": [0.1, 1, 10, 100], "gamma": [0.1, 1, 10]}  # gamma over that of "scale"
FOREST = {"max_features": [0.3, "sqrt", 1.0], "min_samples_leaf": [1, 4]}
BOOSTING = {"learning_rate": [0.03, 0.1], "max_leaf_nodes": [7, 31]}


def classifiers(x: pd.DataFrame) -> dict[str, Any]:
    """Return classifiers by name, for a table with these columns."""
    gammas = _gammas(x)
    return {
        "ntkit": ntkit.KernelClassifier(),
        "ntkit, standardized": _after(x, ntkit.KernelClassifier()),
        "SVC": _after(x, SVC()),
        "SVC, grid": _after(x, _grid(SVC(), {"C": SVM["C"], "gamma": gammas})),
        "forest": _after(x, RandomForestClassifier(random_state=0)),
        "forest, grid": _after(x, _grid(RandomForestClassifier(random_state=0), FOREST)),
        "boosting": _after(x, HistGradientBoostingClassifier(random_state=0)),
        "boosting, grid": _after(x, _grid(HistGradientBoostingClassifier(random_state=0), BOOSTING)),
        "process of classes": _after(x, GaussianProcessClassifier(ConstantKernel() * RBF(), random_state=0)),
    }


def regressors(x: pd.DataFrame) -> dict[str, Any]:
    """Return regressors by name, for a table with these columns."""
    smooth = ConstantKernel() * RBF(x.shape[1] ** 0.5) + WhiteKernel()
    process = GaussianProcessRegressor(smooth, normalize_y=True, n_restarts_optimizer=2, random_state=0)
    return {
        "ntkit process": ntkit.GaussianProcess(),
        "ntkit ridge": ntkit.KernelRidge(),
        "process": _after(x, process),
        "SVR, grid": _after(x, _scaled_target(_grid(SVR(), {"C": SVM["C"], "gamma": _gammas(x)}))),
        "forest": _after(x, RandomForestRegressor(random_state=0)),
        "boosting": _after(x, HistGradientBoostingRegressor(random_state=0)),
    }


def encoder(x: pd.DataFrame) -> ColumnTransformer:
    """Return what the others need: columns standardized, categories one-hot, missing numbers the median."""
    numbers = [c for c in x if x[c].dtype.kind in "iuf"]
    texts = [c for c in x if c not in numbers]
    impute = make_pipeline(SimpleImputer(strategy="median", add_indicator=True), StandardScaler())
    one_hot = make_pipeline(
        SimpleImputer(strategy="constant", fill_value="missing", missing_values=None),
        OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    )
    return ColumnTransformer([("numbers", impute, numbers), ("texts", one_hot, texts)])


def _scaled_target(estimator: Any) -> Any:
    from sklearn.compose import TransformedTargetRegressor

    return TransformedTargetRegressor(estimator, transformer=StandardScaler())


def _gammas(x: pd.DataFrame) -> list[float]:
    return [g / max(1, x.shape[1]) for g in SVM["gamma"]]


def _grid(estimator: Any, values: dict[str, list[Any]]) -> GridSearchCV:
    return GridSearchCV(estimator, values, cv=3)


def _after(x: pd.DataFrame, estimator: Any) -> Pipeline:
    return Pipeline([("encode", encoder(x)), ("estimate", estimator)])


def texts_as_objects(x: pd.DataFrame) -> pd.DataFrame:
    """Return a frame whose texts are objects, None where one is missing, as scikit-learn's imputer reads."""
    out = x.copy()
    for c in out:
        if out[c].dtype.kind not in "iuf":
            texts = [None if gone else str(v) for v, gone in zip(out[c], out[c].isna(), strict=True)]
            out[c] = pd.Series(texts, index=out.index, dtype=object)
    return out


def deviations(estimator: Any, x: pd.DataFrame) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean and deviation of new targets, None for an estimator that has none."""
    if isinstance(estimator, ntkit.GaussianProcess):
        return estimator.predict(x, return_std=True, noise=True)
    if isinstance(estimator, Pipeline) and isinstance(estimator[-1], GaussianProcessRegressor):
        return estimator[-1].predict(estimator[0].transform(x), return_std=True)
    return None
