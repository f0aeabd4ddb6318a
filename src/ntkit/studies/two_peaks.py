"""Whether the middle lies between two peaks: a network that found the algorithm, and its features.

All sequences of length p with two peaks, the label being whether p / 2 lies between them; a network p-10-10-1
with GELU, full-batch gradient descent on about half of them (Courtois, Morel, Arias, Section 6.3, Figures 11
and 12). Accuracy is counted on all sequences. Of the sequences that were not learned from, the nearest that
were tell the label, by the normalized tangent kernel and by distance; the groups that a t-SNE of the tangent
features shows are found by k-means, and counted.

Beyond the paper: three and four peaks, by its plain descent, by descent in small batches and by Adam, and the
exact account of a run of Adam, for which the paper has no theorem.
"""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.data.parity import two_peaks
from ntkit.display.axes import BLUE, INK, ORANGE
from ntkit.errors import BadValueError
from ntkit.studies import more_peaks
from ntkit.studies.figures import Figures, panels
from ntkit.studies.more_peaks import Task
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import loss_of, loss_option, mlp, optimizer_of, optimizer_option, seeded, step

QUICK = {
    "p": 32,
    "samples": 250,
    "steps": 4000,
    "seeds": 1,
    "peaks": (3,),
    "more_samples": 2000,
    "more_steps": 1500,
    "more_batch": 64,
    "more_seeds": 1,
    "queries": 2,
}
NEIGHBORS = (1, 5, 15)


class Config(StudyConfig):
    """The paper's numbers; of more peaks, the paper has no numbers."""

    optimizer: str = optimizer_option("SGD")
    loss: str = loss_option("mse_loss")
    p: int = option(64, "Length of the sequences; even.", low=4, high=256)
    samples: int = option(1024, "Sequences to learn from.", low=16)
    steps: int = option(10_000, "Steps of gradient descent.", low=1, high=10**6)
    rate: float = option(0.1, "Learning rate.", low=1e-6, high=1.0)
    width: int = option(10, "Units in each of the two hidden layers.", low=1, high=1000)
    seeds: int = option(3, "Networks that are trained.", low=1, high=100)
    peaks: tuple[int, ...] = option((3, 4), "Peaks of the longer tasks.", low=3, high=10)
    more_samples: int = option(10_000, "Sequences to learn these from, by Adam.", low=16, high=10**6)
    more_width: int = option(32, "Units in each hidden layer there.", low=1, high=1000)
    more_steps: int = option(4000, "Steps of Adam.", low=1, high=10**6)
    more_batch: int = option(256, "Sequences in a step of Adam.", low=1, high=10**6)
    more_seeds: int = option(3, "Networks of Adam for each number of peaks.", low=1, high=100)
    queries: int = option(8, "Predictions of Adam's network that are accounted for.", low=1, high=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.p % 2:
            raise BadValueError(f"p is {self.p}; expected an even length, which has a middle p / 2.")
        there = comb(self.p, 2)
        if self.samples > there - 15:
            raise BadValueError(
                f"samples is {self.samples}; there are {there} sequences of length {self.p} with two peaks, "
                "and some must be left to try. Learn from fewer, or take longer sequences."
            )


def run(config: Config) -> Result:
    """Train, count, look at neighbors and at a map of the features; then go on to more peaks."""
    x, y = (t.to(config.device) for t in two_peaks(config.p))
    models = [_trained(config, x, y, config.seed + s) for s in range(config.seeds)]
    accuracies = [more_peaks.right(model, x, y) for model in models]
    chosen = int(np.argmax(accuracies))
    kernel = ntkit.EmpiricalNTK(models[chosen])
    cosine = kernel.normalized()(x)
    seen = _seen(config, len(x), config.seed + chosen).to(x.device)
    features = array(kernel.features(x)[:, 0])
    chart = TSNE(random_state=config.seed, perplexity=min(30.0, len(x) / 4)).fit_transform(features)
    clusters = KMeans(3, n_init=10, random_state=config.seed)  # pyright: ignore[reportArgumentType]
    groups = clusters.fit_predict(chart)
    numbers = {
        "accuracies": accuracies,
        "by kernel": [_votes(cosine, y, seen, k) for k in NEIGHBORS],
        "by distance": [_votes(-torch.cdist(x, x), y, seen, k) for k in NEIGHBORS],
        "share one peak": [_share_one(x, near) for near in (cosine, -torch.cdist(x, x))],
        "groups": _groups(x, y, groups),
        "more": _more(config),
    }
    with progress("accounting for Adam (runs)", 1) as done:
        task = _task(config, config.peaks[0], "Adam")
        account = part("account", lambda: more_peaks.accounted(task, config.queries))
        done(1)
    numbers["account"] = {k: v for k, v in account.items() if not isinstance(v, np.ndarray)}
    arrays = {"chart": chart, "label": y.reshape(-1), "first": x.argmax(1), "group": groups}
    arrays |= {f"account: {k}": v for k, v in account.items() if isinstance(v, np.ndarray)}
    return Result(config, _claims(config, len(x), numbers), arrays, numbers)


def _claims(config: Config, total: int, numbers: dict) -> list[Claim]:
    right, bar = numbers["accuracies"], 0.95 if config.changed else 0.999
    near, far = (0.9, 0.7) if config.changed else (0.99, 0.6)
    claims = [
        Claim(f"accuracy on all {total}, worst of {config.seeds}", min(right), "100 %", low=bar),
        Claim(f"accuracy on all {total}, best of {config.seeds}", max(right), "100 %"),
    ]
    for k, value in zip(NEIGHBORS, numbers["by kernel"], strict=True):
        claims.append(Claim(f"label of the {k} nearest by kernel, right on the unseen", value, low=near))
    for k, value in zip(NEIGHBORS, numbers["by distance"], strict=True):
        claims.append(Claim(f"label of the {k} nearest by distance, right on the unseen", value, high=far))
    for how, value in zip(("kernel", "distance"), numbers["share one peak"], strict=True):
        said = "all" if how == "kernel" else ""
        claims.append(Claim(f"nearest by {how}: share exactly one peak with the sequence", value, said))
    groups = numbers["groups"]
    for name, said in (("left", "ψ1 < ψ2 ≤ p/2"), ("right", "p/2 ≤ ψ1 < ψ2"), ("middle", "ψ1 ≤ p/2 ≤ ψ2")):
        found = groups[name]
        claims.append(
            Claim(f"t-SNE, {name} group: sequences with {said}, of {found['size']}", found["as said"], "all")
        )
        if name != "middle":
            claims += [
                Claim(
                    f"t-SNE, {name} group: label 1 with ψ{i} = p/2, of {found['label 1']}",
                    found[f"psi {i}"],
                    "all" if i == 1 else "",
                )
                for i in (1, 2)
            ]
    for how, peaks, found in numbers["more"]:
        seen, others = np.array(found).T
        said = {"plain descent": "fails", "Adam": "fixed"}.get(how, "")
        low = near if how == "Adam" and peaks == 3 else None
        high = 0.9 if how == "plain descent" else None
        name = f"{peaks} peaks, {how}"
        several = f", median of {len(found)}" if how == "Adam" else ""
        unseen = f"{name}: accuracy on the unseen{several}"
        claims.append(Claim(unseen, float(np.median(others)), said, low=low, high=high))
        claims.append(Claim(f"{name}: accuracy on the seen{several}", float(np.median(seen))))
        if how == "Adam":
            solved = int((others >= 0.99).sum())
            claims.append(Claim(f"{name}: networks with 99 % on the unseen, of {len(found)}", solved))
    account = numbers["account"]
    claims.append(Claim("account of Adam's run: residual / movement", account["residual"], high=1e-8))
    claims.append(Claim("ten strongest contributions: peaks shared with the query, mean", account["common"]))
    claims.append(Claim("peaks shared with the query by chance, mean", account["by chance"]))
    return claims


def _seen(config: Config, total: int, seed: int) -> Tensor:
    """Return the indices that a network learned from: those drawn behind its weights."""
    with seeded(seed):
        mlp(config.p, config.width, config.width, 1, activation=nn.GELU)
        return torch.randperm(total)[: config.samples]


def _votes(near: Tensor, y: Tensor, seen: Tensor, k: int) -> float:
    """Return how often the majority of the k nearest that were seen has the label of an unseen sequence."""
    unseen = torch.ones(len(y), dtype=torch.bool, device=y.device)
    unseen[seen] = False
    index = near[unseen][:, seen].topk(k, dim=1).indices
    votes = y[seen, 0][index].mean(1)
    return float(((votes > 0.5) == (y[unseen, 0] > 0.5)).double().mean())


def _share_one(x: Tensor, near: Tensor) -> float:
    """Return how often the nearest other sequence shares exactly one peak."""
    nearest = near.clone().fill_diagonal_(-torch.inf).argmax(1)
    return float(((x * x[nearest]).sum(1) == 1).double().mean())


def _groups(x: Tensor, y: Tensor, groups: np.ndarray) -> dict[str, dict[str, float]]:
    """Return, for each of three groups, how many it has and how many are as the paper says.

    The middle one is that with the largest share of label 1, the left one of the others that with the earlier
    peaks.
    """
    label, half = array(y).reshape(-1), x.shape[1] // 2
    places = array(x).argsort(axis=1, kind="stable")[:, -2:] + 1
    psi = np.sort(places, axis=1)
    said = {
        "left": psi[:, 1] <= half,
        "right": psi[:, 0] >= half,
        "middle": (psi[:, 0] <= half) & (psi[:, 1] >= half),
    }
    middle = max(range(3), key=lambda g: label[groups == g].mean())
    left, right = sorted({0, 1, 2} - {middle}, key=lambda g: psi[groups == g].mean())
    found = {}
    for name, group in (("left", left), ("right", right), ("middle", middle)):
        inside = groups == group
        ones = inside & (label > 0.5)
        found[name] = {
            "size": int(inside.sum()),
            "as said": int(said[name][inside].sum()),
            "label 1": int(ones.sum()),
        }
        found[name] |= {f"psi {i + 1}": int((psi[ones, i] == half).sum()) for i in (0, 1)}
    return found


def _task(config: Config, count: int, how: str) -> Task:
    common: dict[str, Any] = {"p": config.p, "count": count, "seed": config.seed, "device": config.device}
    common["loss"] = config.loss
    if how == "plain descent":
        sizes: dict[str, Any] = {
            "samples": min(config.samples, config.more_samples),
            "width": config.width,
            "batch": 0,
        }
        return Task(**common, **sizes, steps=config.steps, rate=config.rate, adam=False)
    sizes = {"samples": config.more_samples, "width": config.more_width, "batch": config.more_batch}
    adam = how == "Adam"
    return Task(**common, **sizes, steps=config.more_steps, rate=3e-3 if adam else config.rate, adam=adam)


def _more(config: Config) -> list[tuple[str, int, list[tuple[float, float]]]]:
    """Return how, peaks, and the accuracies on the seen and the unseen of each network, with more peaks."""
    rows, ways = [], ("plain descent", "descent in Adam's batches", "Adam")
    with progress("training on more peaks (networks)", len(config.peaks) * (2 + config.more_seeds)) as done:
        for count in config.peaks:
            for how in ways:
                found = []
                for s in range(config.more_seeds if how == "Adam" else 1):
                    task = replace(_task(config, count, how), seed=config.seed + s)
                    found.append(part(f"{count}, {how}, {s}", lambda t=task: more_peaks.accuracies(t)))
                    done(1)
                rows.append((how, count, found))
    return rows


def figure(result: Result) -> Figures:
    """Draw two sequences, the t-SNE of the tangent features, and what made predictions of Adam's network."""
    chart, label, first = (result.arrays[name] for name in ("chart", "label", "first"))
    drawn, (left, right) = panels(9, 4.2, columns=2)
    for value, color in ((1, BLUE), (0, ORANGE)):
        left.scatter(*chart[label == value].T, s=4, color=color, label=f"label {value}")
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, markerscale=3)
    shown = right.scatter(*chart.T, s=4, c=first + 1, cmap="viridis")
    drawn.colorbar(shown, ax=right, label="place of the first peak")
    for ax in (left, right):
        ax.set(xticks=[], yticks=[])
    return {
        "Two sequences and their labels": _draw_examples(result.config.p),
        "Tangent features of all sequences (t-SNE)": drawn,
        "What made two predictions of Adam's network": _draw_account(result),
    }


def _draw_examples(p: int) -> Figure:
    """Draw one sequence of each label, and the shape that it stands for (Figure 11)."""
    x, y = two_peaks(p)
    drawn, axes = panels(7, 2.0, columns=2, sharey=True)
    for ax, value in zip(axes, (0, 1), strict=True):
        there = torch.nonzero(y[:, 0] == value)[:, 0]
        sequence = array(x[there[len(there) // 3]])
        places = np.flatnonzero(sequence) + 1
        ax.axvspan(*places, color="0.9", lw=0)
        ax.vlines(places, 0, 1, color=BLUE, lw=2)
        ax.axvline(p / 2, color=INK, ls="--", lw=1)
        ax.text(p / 2, 1.08, " p/2", color=INK, ha="left", fontsize=8)
        ax.set(title=f"label {value}", xlabel="index", xlim=(0, p + 1), ylim=(0, 1.25), yticks=[0, 1])
    return drawn


def _draw_account(result: Result) -> Figure:
    """Draw two queries, and the sequences that moved their predictions most."""
    asked, top, pushes, prediction = (
        result.arrays[f"account: {name}"] for name in ("queries", "top", "pushes", "prediction")
    )
    count, p = min(2, len(asked)), result.config.p
    drawn, axes = panels(6, 3.1 * count, count, squeeze=False, sharex=True)
    for i, ax in enumerate(axes[:, 0]):
        rows = [asked[i], *top[i]]
        for row, sequence in enumerate(rows):
            places = np.flatnonzero(sequence) + 1
            color = INK if row == 0 else BLUE if pushes[i, row - 1] > 0 else ORANGE
            ax.plot(places, np.full(len(places), row), "s", color=color, ms=4)
            text = f"{round(prediction[i], 2) + 0:.2f}" if row == 0 else f"{pushes[i, row - 1]:+.3f}"
            ax.text(p + 2, row, text.replace("-", "−"), va="center", fontsize=9, color=color)
        ax.axhline(0.5, color="0.7", lw=0.8)
        ax.axvline(p / 2, color="0.6", ls="--", lw=1)
        ax.set(xlim=(0, p + 1), ylim=(len(rows) - 0.4, -0.6), yticks=[0, 5.5])
        ax.set_yticklabels(["query", "strongest\nten"])
        ax.set_title("prediction and contributions", fontsize=9, loc="right")
    axes[-1, 0].set_xlabel("index of the peaks (dashed: p/2)")
    return drawn


def _trained(config: Config, x: Tensor, y: Tensor, seed: int) -> nn.Sequential:
    """Return the network of a seed; only its weights are kept as a part."""
    with seeded(seed):
        model = mlp(config.p, config.width, config.width, 1, activation=nn.GELU)
    model.to(config.device, torch.float64)
    weights = part(f"network {seed}", lambda: _train(config, model, x, y, _seen(config, len(x), seed)))
    model.load_state_dict(weights)
    return model


def _train(config: Config, model: nn.Module, x: Tensor, y: Tensor, index: Tensor) -> dict[str, Tensor]:
    optimizer = optimizer_of(config.optimizer, model.parameters(), config.rate)
    x, y = x[index.to(x.device)], y[index.to(y.device)]
    with progress("training (steps)", config.steps) as done:
        for _ in range(config.steps):
            step(optimizer, loss_of(config.loss)(model(x), y))
            done(1)
    return dict(model.state_dict())
