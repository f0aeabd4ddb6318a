"""Scores of ntkit's estimators with default settings beside scikit-learn's: ``make scores``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import KFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import ntkit

SEEDS = range(3)
TABLES = {
    "breast cancer": (load_breast_cancer, True),
    "wine": (load_wine, True),
    "iris": (load_iris, True),
    "digits": (load_digits, True),
    "diabetes": (load_diabetes, False),
}
OURS = {True: ntkit.KernelClassifier(), False: ntkit.KernelRidge(alpha="loo")}
THEIRS = {True: SVC(), False: KernelRidge(kernel="rbf")}


def score(estimator: object, name: str) -> float:
    """Return the mean score of shuffled 5-fold cross-validation over three seeds, inputs standardized."""
    load, _ = TABLES[name]
    x, y = load(return_X_y=True)
    pipeline = make_pipeline(StandardScaler(), estimator)
    folds = [KFold(5, shuffle=True, random_state=seed) for seed in SEEDS]
    return float(np.mean([cross_val_score(pipeline, x, y, cv=cv, error_score="raise") for cv in folds]))


def scores(names: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Return ours and theirs of each data set: accuracy, or R^2 for diabetes."""
    chosen = names or list(TABLES)
    return {name: tuple(score(side[TABLES[name][1]], name) for side in (OURS, THEIRS)) for name in chosen}


def verdict(found: dict[str, tuple[float, float]]) -> list[str]:
    """Return what falls short of the bar: within 0.02 on each, above on average."""
    missed = [f"{name}: {a - b:+.4f}" for name, (a, b) in found.items() if a < b - 0.02]
    means = np.mean(list(found.values()), 0)
    return missed + ([] if means[0] >= means[1] else [f"mean: {means[0] - means[1]:+.4f}"])


def table(found: dict[str, tuple[float, float]]) -> str:
    """Return the scores as Markdown."""
    rows = ["| data | ntkit | scikit-learn | difference |", "|---|---|---|---|"]
    means = tuple(np.mean(list(found.values()), 0))
    for name, (a, b) in {**found, "mean": means}.items():
        rows.append(f"| {name} | {a:.4f} | {b:.4f} | {a - b:+.4f} |")
    return "\n".join(rows)


def main() -> None:
    """Print and write the table; fail where the bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/scores.md"))
    chosen = parser.parse_args()
    found = scores()
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(table(found) + "\n")
    print(table(found))
    if missed := verdict(found):
        raise SystemExit(f"missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
