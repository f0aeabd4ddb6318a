"""Tables and sentences of the page, made of what was measured."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from ntkit.files import write_atomically

BAR_AUROC, BAR_PRECISION = 0.997, 0.92  # of the audit: MNIST 2,000, a tenth flipped
BAR_SECONDS, BAR_TRAININGS = 60, 12
LEAST = 3  # pairs of four on which a kernel must be at least the best of the usual scores


def tables(results: dict) -> dict[str, str]:
    """Return the parts of the page by name."""
    found = {key: value["result"] for key, value in results.items()}
    pairs = [found[key] for key in found if key.startswith("pair_")]
    labels = [row for key in found if key.startswith("labels_") for row in found[key]]
    parts = {}
    if pairs:
        parts["pairs"] = _pairs(pairs)
        parts["uniform"] = _uniform(pairs)
    if "shifts" in found:
        parts["shifts"] = _shifts(found["shifts"])
    if labels:
        parts["labels"] = _labels(labels)
        parts["estimates"] = _estimates(labels)
    if "audit_costs" in found:
        parts["audit costs"] = _audit_costs(found["audit_costs"])
    if "costs" in found:
        parts["costs"] = _costs(found["costs"])
    machines = sorted({value["machine"] for value in results.values()})
    if machines:
        parts["machine"] = (
            f"Machine: {'; '.join(machines)}; other work ran beside, but for the costs of audits."
        )
    return parts


def into_page(page: Path, parts: dict[str, str]) -> None:
    """Write the parts between the marks ``<!-- name -->`` and ``<!-- end -->`` of a page."""
    text = page.read_text(encoding="utf-8")
    for name, part in parts.items():
        mark = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- end -->)", re.S)
        if not mark.search(text):
            raise SystemExit(f"{page} has no mark <!-- {name} -->")
        text = mark.sub(lambda m, part=part: f"{m[1]}{part}\n{m[2]}", text)
    write_atomically(page, text.encode())


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _pairs(pairs: list[dict]) -> str:
    methods = pairs[0]["methods"]
    rows = []
    for i, name in enumerate(methods):
        cells = [f"{p['auroc'][i]:.3f} ({100 * p['fpr95'][i]:.0f} %)" for p in pairs]
        rows.append([name, *cells])
    head = ["score", *(f"{p['title']}, n = {p['train']:,}" for p in pairs)]
    lines, wins = [], 0
    for p in pairs:
        best = {}
        for kernel in (True, False):
            rows_ = [i for i, k in enumerate(p["of_kernels"]) if k == kernel and methods[i] != "ensemble"]
            top = max(rows_, key=lambda i: p["auroc"][i])
            best[kernel] = methods[top], p["auroc"][top]
        wins += best[True][1] >= best[False][1]
        (a, x), (b, y) = best[True], best[False]
        lines.append(f"{p['title']}: {a} {x:.3f}, {b} {y:.3f}")
    least = {name: min(p["auroc"][i] for p in pairs) for i, name in enumerate(methods)}
    steady = max(least, key=least.__getitem__)
    verdict = "reached" if wins >= LEAST else "**missed**"
    missing = "" if len(pairs) == 4 else f" ({len(pairs)} of four pairs measured)"
    return (
        f"{_table(head, rows)}\n\nThe score whose AUROC is highest where it is least: {steady}, "
        f"{least[steady]:.3f}. Best kernel and best usual score of a single network: {'; '.join(lines)}. "
        f"The kernel is at least as good on {wins} of {len(pairs)} pairs{missing} "
        f"(bar: {LEAST} of 4, {verdict})."
    )


def _uniform(pairs: list[dict]) -> str:
    p = np.array([test["p"] for pair in pairs for test in pair["uniform"]])
    low = int((p < 0.05).sum())
    return (
        f"Of {len(p)} Kolmogorov-Smirnov tests of the p-values of held-out queries (kernels, measures, "
        f"networks and pairs; those of the NNGP do not depend on the network), below 0.05: {low}, where "
        f"{0.05 * len(p):.0f} are to be expected of uniform ones; the smallest is {p.min():.3g}."
    )


def _shifts(s: dict) -> str:
    rows = [
        [name, *(f"{c:.2f}" for c in row)] for name, row in zip(s["methods"], s["correlation"], strict=True)
    ]
    errors = [f"{100 * e[0]:.0f} to {100 * e[-1]:.0f} %" for e in s["error"]]
    rows.insert(0, ["*error, first to last degree*", *errors])
    best = []
    for i, name in enumerate(s["shifts"]):
        top = int(np.argmax([row[i] for row in s["correlation"]]))
        best.append(f"{s['methods'][top]} ({name.partition(' (')[0]})")
    return f"{_table(['score', *s['shifts']], rows)}\n\nHighest: {', '.join(best)}."


def _grouped(rows: list[dict]) -> dict[tuple, list[dict]]:
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault((row["title"], row["kind"], row["share"]), []).append(row)
    return dict(sorted(found.items()))


def _mean(rows: list[dict], figure: str, score: str) -> float:
    return float(np.mean([row[figure][score] for row in rows if score in row[figure]]))


def _best_of(rows: list[dict], figure: str, start: str) -> tuple[str, float]:
    names = [name for name in rows[0][figure] if name.startswith(start)]
    return max(((name, _mean(rows, figure, name)) for name in names), key=lambda pair: pair[1])


def _labels(labels: list[dict]) -> str:
    columns = ["audit", "ridge", "ridge before", "loss", "self_influence", "counterfactual"]
    rows, verdicts, ahead = [], [], [0, 0]
    for (title, kind, share), group in _grouped(labels).items():
        cells = []
        for name in columns:
            there = any(name in row["auroc"] for row in group)
            both = (_mean(group, "auroc", name), _mean(group, "precision", name)) if there else None
            cells.append("" if both is None else f"{both[0]:.4f}, {both[1]:.3f}")
        usual = _best_of(group, "auroc", "cleanlab"), _best_of(group, "precision", "cleanlab")
        cells.append(f"{usual[0][1]:.4f}, {usual[1][1]:.3f}")
        rows.append([f"{title}, {100 * share:.0f} % {kind}", *cells])
        audited = _mean(group, "auroc", "audit")
        ahead[0] += audited >= _mean(group, "auroc", "loss")
        ahead[1] += audited >= usual[0][1]
        if title.startswith("MNIST") and kind == "uniform" and share == 0.1:
            auroc, precision = (_mean(group, figure, "audit") for figure in ("auroc", "precision"))
            above = auroc > max(usual[0][1], _mean(group, "auroc", "loss"))
            above &= precision > max(usual[1][1], _mean(group, "precision", "loss"))
            holds = auroc >= BAR_AUROC and precision >= BAR_PRECISION
            verdicts.append(
                f"{title}: AUROC {auroc:.4f}, precision {precision:.3f} (bar: {BAR_AUROC}, {BAR_PRECISION}, "
                f"{'reached' if holds else '**missed**'}), "
                f"{'above' if above else '**not above**'} cleanlab and the mean loss"
            )
    head = [
        "labels",
        "audit",
        "ridge",
        "ridge before",
        "mean loss",
        "self-influence",
        "counterfactual",
        "cleanlab",
    ]
    refused = sum(bool(row.get("refused")) for row in labels)
    note = (
        f" {refused} of {len(labels)} audits went without the counterfactual, which was refused."
        if refused
        else ""
    )
    seeds = len({row["seed"] for row in labels})
    return (
        f"{_table(head, rows)}\n\nMean of {seeds} draws; cleanlab: the better of four of its scores, for "
        f"each figure.{note} By AUROC the audit is at least as good as the mean loss on {ahead[0]} of "
        f"{len(rows)} rows, as cleanlab on {ahead[1]}. {'. '.join(verdicts)}."
    )


def _estimates(labels: list[dict]) -> str:
    rows = []
    for kind in sorted({row["kind"] for row in labels}):
        group = [row["estimate"] for row in labels if row["kind"] == kind]
        for name, text in (
            ("all", "how many are wrong"),
            ("half", "precision, first half of them"),
            ("top", "precision at their number"),
            ("twice", "precision at twice that"),
        ):
            held = [e[name][1] <= e[name][3] <= e[name][2] for e in group]
            bias = float(np.mean([e[name][0] - e[name][3] for e in group]))
            rows.append([text, kind, f"{sum(held)} of {len(held)}", f"{bias:+.3g}"])
    return _table(["estimate", "flips", "intervals that hold the truth", "mean error"], rows)


def _audit_costs(rows: list[dict]) -> str:
    lines = []
    for row in rows:
        train = row["seconds"]["training"]
        cells = [row["title"], f"{train:.2f}"]
        for what in ("audit without held-out", "audit"):
            times = row["seconds"][what] / train
            state = "within" if times <= BAR_TRAININGS else "**above**"
            cells.append(f"{row['seconds'][what]:.1f} s, {times:.1f} ({state})")
        lines.append(cells)
    head = ["run", "training, s", f"audit, in trainings (bar {BAR_TRAININGS})", "with held-out samples"]
    return _table(head, lines)


def _costs(costs: list[dict]) -> str:
    lines = [
        f"{row['kernel']} {row['seconds']:.0f} s ({'under' if row['seconds'] < BAR_SECONDS else '**over**'} "
        f"{BAR_SECONDS} s)"
        for row in costs
    ]
    first = costs[0]
    return (
        f"Novelty of {first['queries']:,} queries for {first['n']:,} training samples, all three measures "
        f"(MLP 784-100-10): {', '.join(lines)}."
    )
