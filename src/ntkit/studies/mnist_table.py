"""A network, and the kernel machines of its tangent kernels, on few digits.

500 training and 500 test digits of MNIST; a network with three hidden layers of 100 units trained by Adam on
the cross entropy; classifiers with the cross entropy on three kernels: the tangent kernel of a network twice
as wide at the start, which stands for the limit (Cappelletti, Section 4.2, Table 1 and Figure 3), the
analytic limit, and the tangent kernel of the trained network. The same for convolutional networks, flattened
and pooled, which the paper announces and does not show.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.data.digits import Digits
from ntkit.display import plots
from ntkit.studies.figures import Figures, above, panels
from ntkit.studies.pictures import pictures
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import mlp, seeded, step

Architecture = Literal["MLP", "CNN, flattened", "CNN, pooled"]
QUICK = {"samples": 150, "tests": 150, "epochs": 60, "seeds": 1, "architectures": ("MLP",)}


class Config(StudyConfig):
    """The paper's numbers; 500 epochs instead of 8,000."""

    data: Literal["mnist", "digits"] = option("mnist", "The pictures: mnist, or scikit-learn's digits.")
    samples: int = option(500, "Training digits.", low=20, high=5000)
    tests: int = option(500, "Test digits.", low=20, high=10_000)
    epochs: int = option(500, "Epochs of Adam, all samples in a step.", low=1, high=10**5)
    seeds: int = option(3, "Networks of the table.", low=1, high=100)
    width: int = option(100, "Units in each hidden layer of the MLP.", low=2, high=5000)
    channels: int = option(8, "Channels of the CNNs.", low=2, high=512)
    architectures: tuple[Architecture, ...] = option(("MLP", "CNN, flattened", "CNN, pooled"), "Networks.")


def run(config: Config) -> Result:
    """Train each network and the classifiers on its kernels."""
    data = pictures(config.data, config.samples, config.tests, config.seed)
    side = round(data.train_x.shape[1] ** 0.5)
    mean, std = data.train_x.mean(), data.train_x.std()
    x, q = ((t - mean) / std for t in (data.train_x, data.held_out_x))
    table: dict[str, dict[str, list[float]]] = {}
    kernels: dict[str, np.ndarray] = {}
    with progress("training (networks)", len(config.architectures) * config.seeds) as done:
        for name in config.architectures:
            table[name] = {row: [] for row in ("network", "limit", "analytic limit", "trained kernel")}
            u, v = ((t if name == "MLP" else t.reshape(-1, 1, side, side)).to(config.device) for t in (x, q))
            for s in range(config.seeds):
                model, wide = (_build(name, config, side, config.seed + s, times) for times in (1, 2))
                before = ntkit.EmpiricalNTK(model)(u) if s == 0 else None
                start = ntkit.EmpiricalNTK(wide)
                table[name]["limit"].append(_score(start(u), start(v, u), data))
                epochs = -(-config.epochs // 5) if name == "CNN, flattened" else config.epochs
                rate = 3e-2 if name == "CNN, pooled" else 1e-3  # its outputs move little: they are means
                _train(model, u, data.train_y.to(config.device), epochs, rate)
                with torch.no_grad():
                    right = model(v).argmax(1).cpu() == data.held_out_y
                table[name]["network"].append(float(right.double().mean()))
                trained = ntkit.EmpiricalNTK(model)
                block = trained(u)
                table[name]["trained kernel"].append(_score(block, trained(v, u), data))
                if before is not None:
                    order = array(data.train_y.argsort(stable=True))[:: max(1, len(x) // 150)]
                    for when, matrix in (("before", before), ("after", block)):
                        kernels[f"{name}: {when}"] = array(matrix)[np.ix_(order, order)]
                    kernels["labels"] = array(data.train_y[order])
                done(1)
            if name != "CNN, pooled":
                limit = ntkit.infinite_width(_build(name, config, side, 0, 1), u[:1], 2**0.5, 0.1).ntk
                table[name]["analytic limit"].append(_score(limit(u), limit(v, u), data))
    claims = []
    paper = {"network": ("0.848", 0.80), "limit": ("0.744", 0.70), "trained kernel": ("0.81", 0.75)}
    asserted = config.data == "mnist" and not config.changed.keys() - {"architectures"}
    for name, rows in table.items():
        for row, values in rows.items():
            if values:
                said, bar = paper.get(row, ("", None)) if name == "MLP" else ("", None)
                mean, low = float(np.mean(values)), bar if asserted else None
                claims.append(Claim(f"{name}, {row}: test accuracy, mean", mean, said, low=low))
    for name in config.architectures:
        grown = [float(np.diag(kernels[f"{name}: {when}"]).mean()) for when in ("after", "before")]
        said = "1000" if name == "MLP" else ""
        claims.append(Claim(f"{name}: mean of K(x, x), trained over at the start", grown[0] / grown[1], said))
    notes = (
        f"{config.epochs} epochs here (a fifth for the flattened CNN), 8,000 in the paper; Adam at 1e-3, at "
        "3e-2 for the pooled CNN.",
        "The order of the paper's table is not stable over seeds and is not asserted.",
        "The limit of the pooled CNN is its wide network: its analytic kernel takes hours at 28 x 28.",
    )
    return Result(config, claims, kernels, {"accuracies": table}, notes)


def figure(result: Result) -> Figures:
    """Draw the kernels before and after training, each on its scale, digits ordered by class."""
    labels = [str(label) for label in result.arrays["labels"]]
    accuracies = result.numbers["accuracies"]
    drawn, axes = panels(9, 4.0 * len(accuracies), len(accuracies), 2, squeeze=False)
    for row, name in zip(axes, accuracies, strict=True):
        for ax, when in zip(row, ("before", "after"), strict=True):
            title = f"{name}, {when} training"
            shown = plots.kernel_matrix(result.arrays[f"{name}: {when}"], labels, ax, title=title)
            drawn.colorbar(shown, ax=ax, shrink=0.8)
    bars, ax = panels(8, 3.6)
    places = np.arange(len(accuracies))
    for i, row in enumerate(("network", "limit", "analytic limit", "trained kernel")):
        values = [np.mean(rows[row] or [np.nan]) for rows in accuracies.values()]
        ax.bar(places + 0.2 * (i - 1.5), values, 0.18, label=row)
    ax.set_xticks(places, list(accuracies))
    ax.set(ylabel="test accuracy", ylim=(0, 1))
    above(bars, ax, 4)
    return {"Tangent kernels, before and after training": drawn, "Test accuracy": bars}


def _build(name: str, config: Config, side: int, seed: int, times: int) -> nn.Module:
    """Return an untrained network, so many times as wide."""
    with seeded(seed):
        if name == "MLP":
            return mlp(side * side, *[times * config.width] * 3, 10).to(config.device, torch.float64)
        c = times * config.channels
        body = [nn.Conv2d(1, c, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU()]
        places = (-(-side // 2)) ** 2
        pool, size = ([], places * c) if name == "CNN, flattened" else ([nn.AdaptiveAvgPool2d(1)], c)
        head = nn.Flatten(), nn.Linear(size, 10)
        return nn.Sequential(*body, *pool, *head).to(config.device, torch.float64)


def _train(model: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float) -> None:
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for _ in range(epochs):
        step(optimizer, nn.functional.cross_entropy(model(x), y))


def _score(gram: Tensor, cross: Tensor, data: Digits) -> float:
    """Return the test accuracy of a classifier with the cross entropy on a kernel, scaled to mean one."""
    scale = float(gram.diagonal().mean())
    machine = ntkit.KernelClassifier("precomputed", alpha=1e-4)
    machine.fit(array(gram) / scale, array(data.train_y))
    return float(machine.score(array(cross) / scale, array(data.held_out_y)))
