"""Scores of ntkit's estimators as they come beside scikit-learn's, on tables: ``make scores``.

Choices were made on the first half of the tables, by name; the second half is looked at once, at the end,
and so are 40 more tables of numbers (``--half second``, ``--half fresh``; both by default). What is done is
kept in a file for each table, and is not done again.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from scoring.data import Table, fresh, halves
from scoring.measures import Row, measure

LIGHT = (
    "ntkit", "ntkit, standardized", "SVC", "SVC, grid", "forest", "boosting",
    "ntkit process", "ntkit ridge", "process",
)  # fmt: skip
HEAVY = ("forest, grid", "boosting, grid", "process of classes", "SVR, grid")
Scores = dict[str, dict[str, Row]]  # table -> estimator -> measures


def run(chosen: list[Table], only: tuple[str, ...], kept: Path) -> Scores:
    """Return the measures of each table, those in the folder as they are."""
    kept.mkdir(parents=True, exist_ok=True)
    found: Scores = {}
    for table in chosen:
        file = kept / f"{'classes' if table.classes else 'numbers'}-{table.name}.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        known |= measure(table, [name for name in only if name not in known])
        file.write_text(json.dumps(known, indent=1))
        found[table.name] = {name: row for name, row in known.items() if name in only}
        scores = " ".join(f"{n} {next(iter(r.values())):.3f}" for n, r in found[table.name].items())
        print(f"{table.name}: {scores}", flush=True)
    return found


def values(found: Scores, estimator: str, key: str) -> np.ndarray:
    """Return a measure of an estimator on each table, NaN where it has none."""
    return np.array([row.get(estimator, {}).get(key, np.nan) for row in found.values()])


def means(found: Scores) -> str:
    """Return the means over tables as Markdown, and for each table the first measure."""
    names = list(dict.fromkeys(name for row in found.values() for name in row))
    keys = list(dict.fromkeys(key for row in found.values() for r in row.values() for key in r))
    lines = [f"| {len(found)} tables | {' | '.join(keys)} |", "|---" * (len(keys) + 1) + "|"]
    for name in names:
        each = [values(found, name, key) for key in keys]
        lines.append(f"| {name} | " + " | ".join(_cell(v) for v in each) + " |")
    lines += ["", f"| table | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for table, row in found.items():
        cells = [f"{row[n][keys[0]]:.3f}" if n in row else "" for n in names]
        lines.append(f"| {table} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(classes: Scores, numbers: Scores) -> list[str]:
    """Return which bars are missed."""
    ours, missed = values(classes, "ntkit", "accuracy"), []

    def bar(what: str, value: float, least: float) -> None:
        if not value >= least:
            missed.append(f"{what}: {value:+.4f}, wanted {least:+.4f}")

    if classes:
        svc, grid, forest, unscaled = (
            ours - values(classes, name, "accuracy")
            for name in ("SVC", "SVC, grid", "forest", "ntkit, standardized")
        )
        error = float(np.std(forest, ddof=1) / len(forest) ** 0.5)
        bar("accuracy above SVC", float(svc.mean()), 0.012)
        bar("accuracy above SVC with its grid", float(grid.mean()), -0.004)
        bar("accuracy above the forest's", float(forest.mean()), -error)
        bar("accuracy of unscaled inputs above standardized ones", float(unscaled.mean()), -0.01)
    if numbers:
        for name in ("ntkit process", "ntkit ridge"):
            coverage = values(numbers, name, "coverage")
            bar(f"coverage of {name}", float(coverage.mean()), 0.90)
            bar(f"coverage of {name}, from above", -float(coverage.mean()), -0.98)
            bar(f"least coverage of {name}", float(coverage.min()), 0.85)
        for key in ("R2", "log density"):
            apart = values(numbers, "ntkit process", key) - values(numbers, "process", key)
            bar(f"{key} above scikit-learn's process", float(apart.mean()), 0.0)
    return missed


def _cell(values: np.ndarray) -> str:
    return "" if np.isnan(values).all() else f"{np.nanmean(values):.4f}"


def main() -> None:
    """Print and write the tables; fail where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--half", choices=["first", "second", "fresh", "once"], default="once")
    parser.add_argument("--kind", choices=["classes", "numbers", "both"], default="both")
    parser.add_argument(
        "--all", action="store_true", help="the slow peers, too: grids of forests and boosting"
    )
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/scores.md"))
    chosen = parser.parse_args()
    only = LIGHT + HEAVY * chosen.all
    kept = chosen.out.parent / "scores"
    (first, second), (some, others) = halves(True), halves(False)
    of_classes = {"first": first, "second": second, "fresh": [], "once": second}[chosen.half]
    of_numbers = {"first": some, "second": others, "fresh": fresh(), "once": [*others, *fresh()]}[chosen.half]
    classes = run(of_classes, only, kept) if chosen.kind != "numbers" else {}
    numbers = run(of_numbers, only, kept) if chosen.kind != "classes" else {}
    text = "\n\n".join(means(found) for found in (classes, numbers) if found)
    chosen.out.write_text(text + "\n")
    print(text)
    if missed := verdict(classes, numbers):
        raise SystemExit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
