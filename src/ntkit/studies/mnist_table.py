"""A network, and the kernel machines of its tangent kernels, on few digits.

500 training and 500 test digits of MNIST; a network with three hidden layers of 100 units trained by Adam on
the cross entropy; classifiers with the cross entropy on three kernels: the tangent kernel of a network twice
as wide at the start, which stands for the limit (Cappelletti, Section 4.2, Table 1 and Figure 3), the
analytic limit, and the tangent kernel of the trained network, as one number for two digits and as the block
of all pairs of outputs (Eq. 2.10). The same for convolutional networks, flattened and pooled, which the paper
announces and does not show.
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
from ntkit.errors import BadValueError
from ntkit.studies.figures import Figures, above, panels
from ntkit.studies.parts import part
from ntkit.studies.pictures import pictures
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import loss_of, loss_option, mlp, optimizer_of, optimizer_option, seeded, step

Architecture = Literal["MLP", "CNN, flattened", "CNN, pooled"]
ROWS = (
    "network",
    "limit",
    "analytic limit",
    "trained kernel",
    "trained kernel, few digits",
    "trained kernel of blocks, few digits",
)
PAPER = {"network": 0.848, "limit": 0.744, "trained kernel": 0.81}  # test accuracies; all of training are 1.0
QUICK = {
    "samples": 100,
    "tests": 100,
    "epochs": 60,
    "seeds": 1,
    "architectures": ("MLP",),
    "block_samples": 40,
}


class Config(StudyConfig):
    """The paper's numbers; 500 epochs instead of 8,000."""

    optimizer: str = optimizer_option("Adam")
    loss: str = loss_option("cross_entropy", "classes")
    data: Literal["mnist", "digits"] = option("mnist", "The pictures: mnist, or scikit-learn's digits.")
    samples: int = option(500, "Training digits.", low=20, high=5000)
    tests: int = option(500, "Test digits.", low=20, high=10_000)
    epochs: int = option(500, "Epochs of Adam, all samples in a step.", low=1, high=10**5)
    seeds: int = option(3, "Networks of the table.", low=1, high=100)
    width: int = option(100, "Units in each hidden layer of the MLP.", low=2, high=5000)
    channels: int = option(8, "Channels of the CNNs.", low=2, high=512)
    block_samples: int = option(
        200, "Training digits of the kernel of blocks, at most (0: without it).", low=0, high=2000
    )
    architectures: tuple[Architecture, ...] = option(("MLP", "CNN, flattened", "CNN, pooled"), "Networks.")


def run(config: Config) -> Result:
    """Train each network and the classifiers on its kernels."""
    data = pictures(config.data, config.samples, config.tests, config.seed)
    side = round(data.train_x.shape[1] ** 0.5)
    mean, std = data.train_x.mean(), data.train_x.std()
    x, q = ((t - mean) / std for t in (data.train_x, data.held_out_x))
    scores: dict[str, dict[str, list[tuple[float, float]]]] = {}
    kernels: dict[str, np.ndarray] = {}
    with progress("training (networks)", len(config.architectures) * config.seeds) as done:
        for name in config.architectures:
            scores[name] = {row: [] for row in ROWS}
            u, v = ((t if name == "MLP" else t.reshape(-1, 1, side, side)).to(config.device) for t in (x, q))
            for s in range(config.seeds):
                found, shown = part(
                    f"{name}, seed {s}",
                    lambda name=name, s=s, u=u, v=v: _of_seed(config, name, side, s, data, u, v),
                )
                for row, value in found.items():
                    scores[name][row].append(value)
                kernels |= {f"{name}: {when}": matrix for when, matrix in shown.items()}
                done(1)
            if name != "CNN, pooled":
                limit = ntkit.infinite_width(_build(name, config, side, 0, 1), u[:1], 2**0.5, 0.1).ntk
                scores[name]["analytic limit"].append(_score(limit(u), limit(v, u), data))
    kernels["labels"] = array(data.train_y[_order(data)])
    claims = []
    bars = {"network": 0.80, "limit": 0.70, "trained kernel": 0.75}
    asserted = config.data == "mnist" and not config.changed.keys() - {"architectures"}
    for name, rows in scores.items():
        for row, values in rows.items():
            if not values:
                continue
            theirs = name == "MLP" and row in PAPER
            test, train = np.array(values).T
            low, low_train = (bars[row], 0.99) if asserted and theirs else (None, None)
            said, said_train = (f"{PAPER[row]:g}", "1.0") if theirs else ("", "")
            claims.append(Claim(f"{name}, {row}: test accuracy, mean", float(test.mean()), said, low=low))
            if len(test) > 1:
                claims += [
                    Claim(f"{name}, {row}: test accuracy, {how} of {len(test)} seeds", float(f(test)))
                    for how, f in (("least", np.min), ("largest", np.max))
                ]
            what = f"{name}, {row}: training accuracy, mean"
            claims.append(Claim(what, float(train.mean()), said_train, low=low_train))
    for name in config.architectures:
        grown = [float(np.diag(kernels[f"{name}: {when}"]).mean()) for when in ("after", "before")]
        said = "1000" if name == "MLP" else ""
        claims.append(Claim(f"{name}: mean of K(x, x), trained over at the start", grown[0] / grown[1], said))
    notes = [
        f"{config.epochs} epochs here (a fifth for the flattened CNN), 8,000 in the paper; "
        f"{config.optimizer} at 1e-3, at 3e-2 for the pooled CNN.",
        _of_order(scores),
    ]
    if 0 < config.block_samples < config.samples:
        notes.append(
            f"Few digits are the first {config.block_samples}: all that the kernel of blocks learns from."
        )
    if "CNN, pooled" in scores:
        notes.append(
            "The limit of the pooled CNN is its wide network: its analytic kernel takes hours at 28 x 28."
        )
    arrays = {
        f"{name}, {row}: scores": np.array(v) for name, r in scores.items() for row, v in r.items() if v
    }
    return Result(config, claims, kernels | arrays, {"architectures": list(scores)}, tuple(notes))


def figure(result: Result) -> Figures:
    """Draw the kernels before and after training, each on its scale, digits ordered by class."""
    labels = [str(label) for label in result.arrays["labels"]]
    names = result.numbers["architectures"]
    drawn, axes = panels(9, 4.0 * len(names), len(names), 2, squeeze=False)
    for row, name in zip(axes, names, strict=True):
        for ax, when in zip(row, ("before", "after"), strict=True):
            title = f"{name}, {when} training"
            shown = plots.kernel_matrix(result.arrays[f"{name}: {when}"], labels, ax, title=title)
            drawn.colorbar(shown, ax=ax, shrink=0.8, label="K(x, x')")
    points, ax = panels(9, 4.2)
    shift = 0.12
    for i, row in enumerate(ROWS):
        label: str | None = row
        for j, name in enumerate(names):
            values = result.arrays.get(f"{name}, {row}: scores")
            if values is None:
                continue
            there = [each for each in ROWS if f"{name}, {each}: scores" in result.arrays]
            place = j + shift * (there.index(row) - (len(there) - 1) / 2)
            mark = [place - shift / 3, place + shift / 3]
            ax.plot(mark, [values[:, 0].mean()] * 2, color=f"C{i}", lw=3, label=label)
            ax.plot(np.full(len(values), place), values[:, 0], "o", ms=4, color=f"C{i}", mec="k", mew=0.4)
            if name == "MLP" and row in PAPER:
                ax.plot(place, PAPER[row], "x", color="k", ms=8, mew=2)
            label = None
    ax.plot([], [], "o", ms=4, color="0.8", mec="k", mew=0.4, label="one network (line: mean)")
    if "MLP" in names:
        ax.plot([], [], "x", color="k", ms=8, mew=2, ls="", label="the paper")
    ax.set_xticks(range(len(names)), names)
    ax.set(ylabel="test accuracy", xlim=(-0.5, len(names) - 0.5))
    ax.grid(alpha=0.3, axis="y")
    above(points, ax, 4)
    return {"Tangent kernels, before and after training": drawn, "Test accuracy": points}


def _of_seed(
    config: Config, name: str, side: int, s: int, data: Digits, u: Tensor, v: Tensor
) -> tuple[dict[str, tuple[float, float]], dict[str, np.ndarray]]:
    """Return test and training accuracy of each row for one network; of the first, its kernels, too."""
    model, wide = (_build(name, config, side, config.seed + s, times) for times in (1, 2))
    before = ntkit.EmpiricalNTK(model)(u) if s == 0 else None
    start = ntkit.EmpiricalNTK(wide)
    found = {"limit": _score(start(u), start(v, u), data)}
    epochs = -(-config.epochs // 5) if name == "CNN, flattened" else config.epochs
    rate = 3e-2 if name == "CNN, pooled" else 1e-3  # its outputs move little: they are means
    _train(config, model, u, data.train_y.to(config.device), epochs, rate)
    with torch.no_grad():
        right = [
            float((model(t).argmax(1).cpu() == y).double().mean())
            for t, y in ((v, data.held_out_y), (u, data.train_y))
        ]
    found["network"] = right[0], right[1]
    trained = ntkit.EmpiricalNTK(model)
    gram = trained(u)
    found["trained kernel"] = _score(gram, trained(v, u), data)
    if name == "MLP" and config.block_samples:
        count = min(config.block_samples, len(u))
        found[ROWS[4]] = _score(gram[:count, :count], trained(v, u[:count]), data)
        found[ROWS[5]] = _score_of_blocks(model, data, u[:count], v)
    if before is None:
        return found, {}
    order = _order(data)
    return found, {
        when: array(matrix)[np.ix_(order, order)] for when, matrix in (("before", before), ("after", gram))
    }


def _order(data: Digits) -> np.ndarray:
    """Return about 150 training digits, ordered by class."""
    return array(data.train_y.argsort(stable=True))[:: max(1, len(data.train_y) // 150)]


def _of_order(scores: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """Say in how many of the networks the rows come in the order of the paper's table."""
    rows = scores.get("MLP")
    if rows is None:
        return "The paper's table is about the MLP."
    triples = list(zip(*(rows[row] for row in sorted(PAPER, key=PAPER.__getitem__)), strict=True))
    same = sum(low[0] < middle[0] < high[0] for low, middle, high in triples)
    order = "The order of the paper's table (network, trained kernel, limit)"
    return f"{order} is that of {same} of {len(triples)} seeds."


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


def _train(config: Config, model: nn.Module, x: Tensor, y: Tensor, epochs: int, rate: float) -> None:
    optimizer = optimizer_of(config.optimizer, model.parameters(), rate)
    for _ in range(epochs):
        step(optimizer, loss_of(config.loss)(model(x), y))


def _score(gram: Tensor, cross: Tensor, data: Digits) -> tuple[float, float]:
    """Return test and training accuracy of a classifier with the cross entropy on a kernel of mean one."""
    scale = float(gram.diagonal().mean())
    y = array(data.train_y[: len(gram)])
    machine = ntkit.KernelClassifier("precomputed", "cross_entropy", alpha=1e-4).fit(array(gram) / scale, y)
    test = machine.score(array(cross) / scale, array(data.held_out_y))
    return float(test), float(machine.score(array(gram) / scale, y))


def _score_of_blocks(model: nn.Module, data: Digits, x: Tensor, q: Tensor) -> tuple[float, float]:
    """Return the same for the kernel of blocks, [K(x, x')]_kk' for outputs k, k' (Eq. 2.10)."""
    kernel, y = ntkit.EmpiricalNTK(model, outputs="full"), array(data.train_y[: len(x)])
    classes = len(np.unique(y))
    if classes < 10:
        raise BadValueError(
            f"block_samples is {len(x)}, and there are only {classes} of 10 classes among the first {len(x)} "
            "digits; the blocks are for ten. Take more, or 0: without them."
        )
    scale = float(ntkit.EmpiricalNTK(model, outputs="mean").diag(x).mean())
    machine = ntkit.KernelClassifier(kernel, "cross_entropy", alpha=1e-4 * scale, tol=1e-6).fit(array(x), y)
    return float(machine.score(array(q), array(data.held_out_y))), float(machine.score(array(x), y))
