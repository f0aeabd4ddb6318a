"""The account as an attribution method, beside others and networks trained again: ``make bench-attribution``.

One run on digits of which 10 % have a wrong label. Who finds these labels (AUROC), who predicts what leaving
out one sample does (Spearman over removals), and half of them (linear datamodelling score).
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import torch
from attributions.measures import auroc, mean_spearman, spearman
from attributions.methods import Scores, all_scores
from attributions.retrained import halves, of_halves, of_seeds, removals
from attributions.setting import Data, Setting, draw, key, train

QUICK = Setting("mlp", "digits", samples=300, queries=30, batch=30, epochs=10, rate=0.1)
FULL = {"mlp": Setting("mlp"), "cnn": Setting("cnn"), "mlp-decay": Setting("mlp", decay=True)}
SEEDS = range(1, 11)  # the other seeds; the first of them also retrains without samples


def chosen_removals(scores: list[Scores], count: int, n: int) -> list[int]:
    """Return which samples to remove: half at random, half the largest of each method in turn.

    Random samples alone hardly move anything; the largest ones alone would ask easy questions only.
    """
    order = np.random.default_rng(3).permutation(n).tolist()
    chosen = order[: count // 2]
    ranked = [np.argsort(-np.abs(s.on_queries).sum(0)).tolist() for s in scores if s.on_queries is not None]
    while len(chosen) < count:
        for best in ranked:
            chosen.append(next(i for i in best if i not in chosen))
    return chosen[:count]


def measure(
    setting: Setting,
    out: Path,
    count: int,
    subsets: int,
    tol: float,
    other_seed: bool = True,
    logits: bool = True,
) -> list[str]:
    """Return the table of one network, as lines of Markdown."""
    data = draw(setting)
    folder = out / key(setting, data)
    folder.mkdir(parents=True, exist_ok=True)
    scores = all_scores(setting, data, folder, tol, logits)
    chosen = chosen_removals(scores, count, len(data.x))
    begin = time.perf_counter()
    without = removals(setting, data, chosen, folder)
    kept = halves(len(data.x), subsets)
    left = of_halves(setting, data, subsets, folder)
    seeds = of_seeds(setting, data, SEEDS, folder)
    print(f"{setting.network}: networks trained again in {time.perf_counter() - begin:.0f} s", flush=True)

    lines = [_title(setting, data), "", f"| {' | '.join(_COLUMNS)} |", "|---" * len(_COLUMNS) + "|"]
    wrong, account = data.wrong.numpy(), scores[0].on_queries
    for s in scores:
        row = [s.name, *[""] * 6, f"{s.seconds:.1f}"]
        if s.own is not None:
            row[1] = str(auroc(s.own, wrong))
        if s.on_queries is not None:
            removed, half = -s.on_queries[:, chosen], s.on_queries @ kept.numpy().T
            row[2] = str(auroc(s.on_queries.sum(0), wrong))
            row[3:6] = _correlations(removed, without, half, left)
            row[6] = f"{spearman(s.on_queries, account).mean():.2f}"
        lines.append(f"| {' | '.join(row)} |")
    if other_seed:
        removed = removals(setting, data, chosen, folder, seed=1)
        half = of_halves(setting, data, subsets, folder, seed=1)
        row = ["trained again from another seed", "", "", *_correlations(removed, without, half, left)]
        lines.append(f"| {' | '.join(row)} | | |")
    residual = max(s.residual for s in scores if s.residual is not None)
    return [
        *lines,
        "",
        f"Accounts: residual / movement at most {residual:.1g}. {_spread(without, left, seeds)}",
    ]


_COLUMNS = (
    "method",
    "wrong labels, own score: AUROC",
    "wrong labels, harm to queries: AUROC",
    "one left out, each query",
    "one left out, mean loss",
    "half left out, each query (LDS)",
    "agrees with the account",
    "seconds",
)


def _correlations(removed: np.ndarray, without: np.ndarray, half: np.ndarray, left: np.ndarray) -> list[str]:
    means = [side.mean(0, keepdims=True) for side in (removed, without)]
    return [str(mean_spearman(*pair)) for pair in ((removed, without), means, (half, left))]


def _title(setting: Setting, data: Data) -> str:
    model = train(setting, data)
    with torch.no_grad():
        right, fitted = (
            float((model(x).argmax(1) == y).double().mean())
            for x, y in ((data.query_x, data.query_y), (data.x, data.y))
        )
    size = sum(p.numel() for p in model.parameters())
    falling = " falling to 0" if setting.decay else ""
    name = setting.network.upper() + (", falling rate" if setting.decay else "")
    return (
        f"### {name}, {setting.data}, {len(data.x)} samples\n\n"
        f"{size:,} weights, tanh, SGD with rate {setting.rate:g}{falling} and momentum "
        f"{setting.momentum:g}, batches of {setting.batch}, {setting.epochs} epochs, float64. "
        f"{int(data.wrong.sum())} labels flipped; in the end {fitted:.1%} of the labels are fitted and "
        f"{right:.0%} of the {len(data.query_y)} held-out queries right."
    )


def _spread(without: np.ndarray, left: np.ndarray, seeds: np.ndarray) -> str:
    """Return how far retraining moves a query's loss: the effects to be predicted, and their noise floor."""
    random = without.shape[1] // 2
    over = {
        "random removals": without[:, :random],
        "removals of samples that the methods rank highest": without[:, random:],
        "half-subsets": left,
        "seeds": seeds,
    }
    sizes = ", ".join(f"{np.median(e.std(1)):.2g} over {e.shape[1]} {name}" for name, e in over.items())
    return f"Standard deviation of a query's loss, median over queries: {sizes}."


def main() -> None:
    """Measure the chosen networks; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="*", default=list(FULL), choices=list(FULL))
    parser.add_argument("--removals", type=int, default=200)
    parser.add_argument("--subsets", type=int, default=100)
    parser.add_argument("--tol", type=float, default=1e-4, help="tolerance of the accounts")
    parser.add_argument("--no-logits", action="store_true", help="leave out the account of all ten logits")
    parser.add_argument("--one-seed", action="store_true", help="do not retrain from another seed")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="scikit-learn's digits, under a minute")
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/attribution"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    settings = [QUICK] if chosen.quick else [FULL[name] for name in chosen.networks]
    count, subsets = (40, 50) if chosen.quick else (chosen.removals, chosen.subsets)
    text = [f"Machine: {platform.machine()}, {chosen.threads} thread(s), torch {torch.__version__}."]
    for setting in settings:
        more = (not chosen.one_seed, not chosen.no_logits)
        lines = measure(setting, chosen.out, count, subsets, chosen.tol, *more)
        text += ["", *lines]
        print("\n".join(lines), flush=True)
    chosen.out.mkdir(parents=True, exist_ok=True)
    name = "quick" if chosen.quick else "attribution"
    (chosen.out / f"{name}.md").write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
