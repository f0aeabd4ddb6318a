"""Counterfactuals beside training again: rank correlation by how many are left out, and what they cost.

2,000 digits of MNIST, 10 % of them with a wrong label, batches of 100, SGD with momentum 0.9, ten passes,
float64; the loss of each of 30 held-out digits. One sample: the 20 of the largest mean effect and 20 drawn
ones; else 30 drawn sets. The account of the same run, TracIn, influence functions of the last layer, TRAK
and EK-FAC (`traker`, `kronfluence`) are ranked on the same sets. With `--seeds 0 1 2 3 4` the setting is
repeated with other wrong labels, weights, orders of the batches and sets, and the rank correlations of the
counterfactual alone are shown, mean (min to max).
"""

from __future__ import annotations

import argparse
import copy
import platform
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from attributions.methods import last_layer, tracin
from attributions.peers import METHODS
from attributions.setting import Data
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

import ntkit
from ntkit.data.mnist import mnist
from ntkit.training.folder.run import Run

SAMPLES, QUERIES, BATCH, PASSES, RATE = 2000, 30, 100, 10, 0.1
SIZES = ((1, 20), (20, 30), (200, 30), (1000, 30))
ISSUE = {  # rank correlations that a prototype reached on this setting, and what a trained model may cost
    ("mlp", "constant"): {1: 0.89, 20: 0.89, 200: 0.69, 1000: 0.41},
    ("mlp", "falling"): {1: 0.96, 20: 0.98, 200: 0.93, 1000: 0.76},
    ("cnn", "falling"): {1: 0.9},
}
BARS = {1: 4.0, QUERIES: 20.0}
WITHIN = 0.03


def mlp() -> nn.Module:
    """Return 784-32-10 with tanh."""
    return nn.Sequential(nn.Linear(784, 32), nn.Tanh(), nn.Linear(32, 10))


def cnn() -> nn.Module:
    """Return two convolutions with batch norm and GELU, averaged over the picture."""
    first = nn.Unflatten(1, (1, 28, 28)), nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.GELU()
    second = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.GELU()
    return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "cnn": cnn}


def data(samples: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training digits with wrong labels among them, and held-out ones."""
    digits = mnist(samples, held_out=QUERIES, dtype=torch.float64)
    draw = torch.Generator().manual_seed(seed)
    wrong = torch.randperm(samples, generator=draw)[: samples // 10]
    y = digits.train_y.clone()
    y[wrong] = (y[wrong] + torch.randint(1, 10, (len(wrong),), generator=draw)) % 10
    return digits.train_x.flatten(1), y, digits.held_out_x.flatten(1), digits.held_out_y


def train(
    net: nn.Module, x: Tensor, y: Tensor, falling: bool, folder: str | None = None, seed: int = 0
) -> float:
    """Train, recorded or not, and return the seconds."""
    optimizer = torch.optim.SGD(net.parameters(), RATE, momentum=0.9)
    draw = torch.Generator().manual_seed(1 + seed)
    steps = PASSES * (len(x) // BATCH)
    order = [i for _ in range(PASSES) for i in torch.randperm(len(x), generator=draw).split(BATCH)]
    net.train()

    def loop(run: ntkit.training.recording.recording.Recording | None) -> None:
        for k, index in enumerate(order):
            if falling:
                optimizer.param_groups[0]["lr"] = RATE * (1 - k / steps)
            if run is not None:
                run.batch(index)
            optimizer.zero_grad()
            F.cross_entropy(net(x[index]), y[index]).backward()
            optimizer.step()

    begin = time.perf_counter()
    if folder is None:
        loop(None)
    else:
        with ntkit.record(folder, net, optimizer, train=(x, y)) as run:
            loop(run)
    return time.perf_counter() - begin


def others(folder: str, net: nn.Module, falling: bool, ask: dict) -> dict[str, tuple[Tensor, float]]:
    """Return what other methods say that leaving out samples changes, ``[q, n]`` up to a factor; seconds."""
    (x, y), queries, labels = ask["train"], ask["queries"], ask["labels"]
    begin = time.perf_counter()
    account = ntkit.account(folder, net, "cross_entropy", **ask, tol=1e-2)
    found = {"account": (-account.contributions[:, 0], time.perf_counter() - begin)}
    models, rates = [], []
    with Run(folder) as run:
        each = run.steps // PASSES
        for k in range(each, run.steps + 1, each):
            models.append(copy.deepcopy(net).eval())
            vector_to_parameters(run.weights(k).to(x.dtype), models[-1].parameters())
            buffers = run.buffers(k)
            for key, value in models[-1].named_buffers():
                value.copy_(buffers[key])
            rates.append(RATE * (1 - (k - each / 2) / run.steps) if falling else RATE)
    data = Data(x, y, torch.zeros(len(x), dtype=torch.bool), queries, labels)
    with torch.no_grad():
        for scores in (*tracin(data, models, rates, with_own=False), *last_layer(data, models[-1])):
            if scores.on_queries is not None:
                found[scores.name] = -torch.from_numpy(scores.on_queries), scores.seconds
    for peer, method in METHODS.items():
        begin = time.perf_counter()
        single = copy.deepcopy(models[-1]).float()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scored = method(single, x.float(), y, queries.float(), labels)
        found[peer] = scored.double(), time.perf_counter() - begin
    return found


def built(name: str, seed: int = 0) -> nn.Module:
    """Return a network with its first weights."""
    torch.manual_seed(seed)
    return NETWORKS[name]().double()


def measure(name: str, falling: bool, samples: int, rounds: int) -> list[str]:
    """Return the table of one network and schedule as lines of Markdown."""
    x, y, queries, labels = data(samples)
    kind = "falling" if falling else "constant"
    bars = ISSUE.get((name, kind), {})
    ask = {"train": (x, y), "queries": queries, "target": "loss", "labels": labels}
    with tempfile.TemporaryDirectory() as parent:
        net, folder = built(name), f"{parent}/run"
        train(net, x, y, falling, folder)
        seconds: dict[str, list[float]] = {"training": [], "1 row": [], f"{QUERIES} rows": []}
        for _ in range(rounds):
            seconds["training"].append(train(built(name), x, y, falling))
            for total in (True, False):
                begin = time.perf_counter()
                found = ntkit.counterfactual(folder, net, "cross_entropy", **ask, total=total)
                seconds["1 row" if total else f"{QUERIES} rows"].append(time.perf_counter() - begin)
        peers = others(folder, net, falling, ask)
        text = [
            f"### {name}, {kind} rate\n",
            "| left out | rank correlation | linear | relative error | asked |",
            "|---|---|---|---|---|",
        ]
        ranks: dict[str, list[float]] = {"counterfactual": [], **{peer: [] for peer in peers}}
        for size, sets in SIZES:
            if samples <= 2 * size - 1 and size > 1:
                continue
            check = found.check(sets=sets, size=size)
            ranks["counterfactual"].append(check.rank_correlation)
            for peer, (scores, _) in peers.items():
                left = torch.stack([scores[:, s].sum(-1, keepdim=True) for s in check.sets]).double()
                ranks[peer].append(type(check)(check.sets, left, check.real).rank_correlation)
            bar = bars.get(size)
            told = "" if bar is None else f"{bar:g}: {_told(check.rank_correlation >= bar - WITHIN)}"
            text.append(
                f"| {size} | {check.rank_correlation:.3f} | {check.linear_correlation:.3f} "
                f"| {check.relative_error:.2f} | {told} |"
            )
        base = median(seconds["training"])
        sizes = [size for size, _ in SIZES][: len(ranks["counterfactual"])]
        head = " | ".join(f"{size} left out" for size in sizes)
        text += [f"\n| rank correlation of | {head} | seconds |", "|---" * (len(sizes) + 2) + "|"]
        took = {"counterfactual": median(seconds[f"{QUERIES} rows"]), **{p: s for p, (_, s) in peers.items()}}
        text += [
            f"| {who} | {' | '.join(f'{r:.3f}' for r in row)} | {took[who]:.1f} |"
            for who, row in ranks.items()
        ]
        if 200 in sizes:
            at = sizes.index(200)
            best = max(row[at] for who, row in ranks.items() if who != "counterfactual")
            told = _told(ranks["counterfactual"][at] > best)
            text.append(f"\nAt 10 % above every other method ({best:.3f} the best of them): {told}.")
        text += ["\n| what | seconds, median (min to max) | times training | |", "|---|---|---|---|"]
        for what, took in seconds.items():
            bar = None if name != "mlp" else {f"{n} row{'s' * (n > 1)}": b for n, b in BARS.items()}.get(what)
            ratio = median(took) / base
            told = "" if bar is None else f"bar {bar:g}: {_told(ratio <= bar)}"
            text.append(
                f"| {what} | {median(took):.2f} ({min(took):.2f} to {max(took):.2f}) | {ratio:.1f} | {told} |"
            )
        text.append(
            f"\nRelative change of the derivative over one sample (smoothness): {found.smoothness():.2g}.\n"
        )
    return text


def repeated(name: str, falling: bool, samples: int, seeds: list[int], sets: int) -> list[str]:
    """Return a table of rank correlations over seeds as lines of Markdown; each seed draws everything."""
    kind = "falling" if falling else "constant"
    bars, sizes = ISSUE.get((name, kind), {}), [s for s, _ in SIZES if s == 1 or samples > 2 * s - 1]
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for seed in seeds:
        x, y, queries, labels = data(samples, seed)
        with tempfile.TemporaryDirectory() as parent:
            net, folder = built(name, seed), f"{parent}/run"
            train(net, x, y, falling, folder, seed)
            ask = {"train": (x, y), "queries": queries, "target": "loss", "labels": labels}
            effects = ntkit.counterfactual(folder, net, "cross_entropy", **ask)
            for size, count in SIZES[: len(sizes)]:
                count = count if size == 1 else sets
                found[size].append(effects.check(sets=count, size=size, seed=seed).rank_correlation)
        print(
            f"{name}, {kind}, seed {seed}: " + ", ".join(f"{v[-1]:.3f}" for v in found.values()), flush=True
        )
    text = [
        f"### {name}, {kind} rate, seeds {', '.join(map(str, seeds))}, {sets} sets each\n",
        "| left out | rank correlation, mean (min to max) | asked |",
        "|---|---|---|",
    ]
    for size, row in found.items():
        mean, bar = sum(row) / len(row), bars.get(size)
        told = "" if bar is None else f"{bar:g}: {_told(mean >= bar - WITHIN)}"
        text.append(f"| {size} | {mean:.3f} ({min(row):.3f} to {max(row):.3f}) | {told} |")
    return [*text, ""]


def _told(reached: bool) -> str:
    return "reached" if reached else "**missed**"


def main() -> None:
    """Measure the settings; print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    settings = [f"{n}-{k}" for n, k in ISSUE]
    parser.add_argument("--settings", nargs="*", default=settings, choices=settings)
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="*", default=[], help="repeat instead, with these")
    parser.add_argument("--sets", type=int, default=SIZES[-1][1], help="of each size, with --seeds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/counterfactuals.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    text = [
        f"Machine: {platform.machine()}, {chosen.threads} thread(s), torch {torch.__version__}, float64, "
        f"{chosen.rounds} interleaved rounds.\n"
    ]
    print(text[0], flush=True)
    for setting in chosen.settings:
        name, kind = setting.split("-")
        falling = kind == "falling"
        if chosen.seeds:
            lines = repeated(name, falling, chosen.samples, chosen.seeds, chosen.sets)
        else:
            lines = measure(name, falling, chosen.samples, chosen.rounds)
        print("\n".join(lines), flush=True)
        text += lines
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
