"""The demo: a network learns real handwritten digits and is explained as a kernel machine.

A network with one hidden layer is trained on scikit-learn's digits by an ordinary PyTorch loop, which is
recorded; the account then says of each query which training digits made its prediction.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ntkit.compute.progress import progress
from ntkit.compute.threads import threads
from ntkit.data.digits import CLASSES, SIDE, Digits, digits
from ntkit.display import plots
from ntkit.display.axes import BLUE, ORANGE, draw_picture
from ntkit.errors import NtkitError
from ntkit.files import Scratch
from ntkit.finite.empirical import EmpiricalNTK
from ntkit.report.account_page import account_page
from ntkit.report.page import Curve, Kernels, Page, render
from ntkit.studies.demo_config import QUICK as QUICK
from ntkit.studies.demo_config import Config
from ntkit.studies.environment import versions
from ntkit.studies.figures import Figures
from ntkit.studies.study import Claim, Result
from ntkit.studies.training import mlp, step
from ntkit.training.accounts.account import account
from ntkit.training.accounts.result import Account
from ntkit.training.recording.record import record


@dataclass(frozen=True, kw_only=True)
class Demo(Result):
    """The demo's findings, and what its page and figure draw."""

    account: Account
    page: Page
    folder: Scratch  # of the recorded run, until it is left somewhere


def run(config: Config) -> Demo:
    """Train, record, account and explain."""
    with threads(1), warnings.catch_warnings():  # the matrices are small: threads only wait for each other
        warnings.filterwarnings("ignore", "The account did not reach", RuntimeWarning)  # a claim says it
        return _run(config)


def _run(config: Config) -> Demo:
    begin = time.perf_counter()
    data = digits(config.samples, seed=config.seed, dtype=getattr(torch, config.dtype))
    data = replace(data, **{k: v.to(config.device) for k, v in vars(data).items() if isinstance(v, Tensor)})
    model = network(config)
    subset = data.train_y[: config.subset].argsort(stable=True)
    before = EmpiricalNTK(model)(data.train_x[subset])
    folder = Scratch("demo")
    curves = train(model, data, config, folder.path / "run")
    trained = time.perf_counter()
    after = EmpiricalNTK(model)(data.train_x[subset])

    chosen, verdicts = choose_queries(model, data, config)
    samples, queries = (data.train_x, data.train_y), data.held_out_x[chosen]
    loss = nn.CrossEntropyLoss()
    a = account(folder.path / "run", model, loss, train=samples, queries=queries, tol=config.tol)
    accounted = time.perf_counter()

    page = account_page(
        a,
        labels=data.train_y,
        classes=CLASSES,
        train=data.train_x,
        names=[f"training digit {int(i)}" for i in data.train_index],
        queries=queries,
        query_names=[f"digit {int(data.held_out_index[i])}" for i in chosen],
        truth=data.held_out_y[chosen],
        verdicts=verdicts,
        picture=(SIDE, SIDE),
        shown=config.shown,
        title="A trained network, explained by its training digits",
        lead=(
            f"A network with {config.hidden} hidden units learned {config.samples} handwritten digits. "
            f"Its training was recorded, and each prediction below is taken apart into what every single "
            f"training digit added to it."
        ),
        facts=_facts(config, curves, a.steps, len(data.held_out_y)),
        footer=", ".join(f"{name} {number}" for name, number in versions().items()),
    )
    page = replace(page, curves=curves, kernels=_kernels(before, after, data.train_y[subset]))
    accuracy = curves[-1].values[-1]
    return Demo(
        config=config,
        claims=(
            Claim("accuracy on held-out digits", accuracy),
            Claim("largest residual of the account, logits", page.residual),
            Claim("over the largest change by training", a.relative_residual, high=config.tol),
        ),
        numbers={
            "learning_rate": config.rate,
            "accuracy": accuracy,
            "residual": page.residual,
            "relative_residual": a.relative_residual,
            "converged": a.converged,
            "steps": a.steps,
            "seconds": {"training": trained - begin, "account": accounted - trained},
            "curves": {curve.name + " " + curve.panel: list(curve.values) for curve in curves},
            "queries": [
                {"name": q.name, "verdict": q.verdict, "label": q.truth, "predicted": q.output}
                | {"probability": max(p for _, p in q.probabilities), "terms": dict(q.terms)}
                for q in page.queries
            ],
        },
        account=a,
        page=page,
        folder=folder,
    )


def leave(result: Demo, folder: Path) -> None:
    """Leave the explained page, the account, and ``run``, the recorded training run."""
    (folder / "report.html").write_text(render(result.page), encoding="utf-8")
    result.account.save(folder / "account.safetensors")
    shutil.move(result.folder.path / "run", folder / "run")


def network(config: Config) -> nn.Sequential:
    """Return the untrained network: 64 pixels, one hidden layer, 10 logits."""
    known = (nn.GELU, nn.Tanh, nn.SiLU, nn.Softplus, nn.Sigmoid, nn.ReLU)
    activation = {each.__name__.lower(): each for each in known}[config.activation]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = mlp(SIDE * SIDE, config.hidden, len(CLASSES), activation=activation)
    return model.to(config.device, getattr(torch, config.dtype))


def optimizer(model: nn.Module, config: Config) -> torch.optim.Optimizer:
    """Return the optimizer that the configuration names."""
    make: Callable[..., torch.optim.Optimizer] = {
        "sgd": torch.optim.SGD,
        "momentum": partial(torch.optim.SGD, momentum=0.9),
        "nesterov": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
        "adam": torch.optim.Adam,
        "adamw": torch.optim.AdamW,
    }[config.optimizer]
    return make(model.parameters(), config.rate, weight_decay=config.weight_decay)


def train(model: nn.Module, data: Digits, config: Config, folder: Path) -> tuple[Curve, ...]:
    """Train by an ordinary loop, recorded into ``folder``; return the learning curves."""
    opt = optimizer(model, config)
    order = torch.Generator().manual_seed(config.seed)
    history = [_measure(model, data)]
    with (
        record(folder, model, opt, train=(data.train_x, data.train_y)) as run,
        progress("training (epochs)", config.epochs) as done,
    ):
        for _ in range(config.epochs):
            for batch in torch.randperm(config.samples, generator=order).split(config.batch):
                run.batch(batch)
                step(opt, cross_entropy(model(data.train_x[batch]), data.train_y[batch]))
            history.append(_measure(model, data))
            done(1)
            if not np.isfinite(history[-1]).all():
                raise NtkitError(
                    f"The training diverged: the loss is no longer a finite number with learning_rate "
                    f"{config.rate:g}. Choose a smaller one."
                )
    loss, held_out_loss, accuracy, held_out_accuracy = zip(*history, strict=True)
    return (
        Curve("training", "loss (cross entropy)", loss),
        Curve("held out", "loss (cross entropy)", held_out_loss),
        Curve("training", "accuracy", accuracy),
        Curve("held out", "accuracy", held_out_accuracy),
    )


@torch.no_grad()
def _measure(model: nn.Module, data: Digits) -> tuple[float, ...]:
    """Return loss and accuracy on the training and the held-out digits."""
    losses, accuracies = [], []
    for x, y in ((data.train_x, data.train_y), (data.held_out_x, data.held_out_y)):
        logits = model(x)
        losses.append(float(cross_entropy(logits, y)))
        accuracies.append(float((logits.argmax(1) == y).double().mean()))
    return (*losses, *accuracies)


@torch.no_grad()
def choose_queries(model: nn.Module, data: Digits, config: Config) -> tuple[Tensor, list[str]]:
    """Choose held-out digits to explain: wrong ones, uncertain ones, and right ones of many classes.

    A third each, where there are as many: the wrong ones of which the network is surest, the right ones that
    it nearly misses, and of each class the right one of which it is surest.
    """
    p = model(data.held_out_x).softmax(1)
    best = p.topk(2, dim=1).values
    margin = best[:, 0] - best[:, 1]
    right = p.argmax(1) == data.held_out_y
    wrong = [i for i in (-margin).argsort(stable=True).tolist() if not right[i]]
    count = min(config.queries, len(right))
    wrong = wrong[: count // 3]
    by_margin = [i for i in margin.argsort(stable=True).tolist() if right[i]]
    doubtful = by_margin[: count // 3]
    sure = by_margin[len(doubtful) :][::-1]
    seen: Counter[int] = Counter()
    turns = []  # the first of each class, then the second of each, ...
    for i in sure:
        label = int(data.held_out_y[i])
        turns.append((seen[label], label, i))
        seen[label] += 1
    plain = [i for _, _, i in sorted(turns)][: count - len(wrong) - len(doubtful)]
    verdicts = ["right"] * len(plain) + ["doubtful"] * len(doubtful) + ["wrong"] * len(wrong)
    return torch.tensor(plain + doubtful + wrong), verdicts


def figure(result: Demo) -> Figures:
    """Draw the README's picture: three predictions with their digits, the kernel before and after."""
    page, shown = result.page, 5
    picked = [next((q for q in page.queries if q.verdict == v), None) for v in ("right", "doubtful", "wrong")]
    queries = [query for query in picked if query is not None]
    fig = Figure(figsize=(11, 1.45 * len(queries) + 3.6), layout="constrained", facecolor="white")
    halves: Any = fig.subfigures(2, 1, height_ratios=(1.45 * len(queries), 3.6))
    top, (_, bottom, _) = halves[0], halves[1].subfigures(1, 3, width_ratios=(0.12, 0.76, 0.12))
    top.suptitle(
        "Training digits that pushed most towards (blue) and against (orange) the predicted class, in logits",
        fontsize=12,
    )
    widths = [1.5, 0.2, *[1] * shown, 0.2, *[1] * shown]
    axes = top.subplots(len(queries), 2 * shown + 3, width_ratios=widths, squeeze=False)
    for row, query in zip(axes, queries, strict=True):
        for ax in row:
            ax.set_axis_off()
        title = f"{query.verdict}: a {query.truth}\npredicted {query.output}"
        for ax, side, color in ((row[2:], query.towards, BLUE), (row[3 + shown :], query.against, ORANGE)):
            for cell, push in zip(ax, side.shown[:shown], strict=False):
                if push.picture is not None:
                    cell.set_axis_on()
                    amount = f"{push.contribution:+.2f}".replace("-", "−")
                    draw_picture(push.picture, cell, title=amount, color=color)
        if query.picture is not None:
            row[0].set_axis_on()
            draw_picture(query.picture, row[0], title=title)
    if page.kernels is not None:
        title = "What the network sees as similar: its tangent kernel, digits ordered by class"
        bottom.suptitle(title, fontsize=12)
        before, after, labels = page.kernels.before, page.kernels.after, page.kernels.labels
        plots.kernel_pair(before, after, labels, list(bottom.subplots(1, 2)), unit="cosine")
    return {"overview": fig}


def _kernels(before: Tensor, after: Tensor, labels: Tensor) -> Kernels:
    """Return the kernels of the subset as cosines, with their scale and eigenvalues."""

    def cosine(k: Tensor) -> np.ndarray:
        norms = k.diagonal().double().sqrt()
        return (k.double() / (norms[:, None] * norms)).numpy()

    return Kernels(
        before=cosine(before),
        after=cosine(after),
        labels=tuple(CLASSES[int(label)] for label in labels),
        scale_before=float(before.diagonal().mean()),
        scale_after=float(after.diagonal().mean()),
        spectrum_before=torch.linalg.eigvalsh(before.double()).numpy(),
        spectrum_after=torch.linalg.eigvalsh(after.double()).numpy(),
    )


def _facts(
    config: Config, curves: tuple[Curve, ...], steps: int, held_out: int
) -> tuple[tuple[str, str], ...]:
    """Return the table of what was trained."""
    loss, held_out_loss, accuracy, held_out_accuracy = (curve.values[-1] for curve in curves)
    weights = sum(p.numel() for p in network(config).parameters())
    return (
        ("held-out accuracy", f"{100 * held_out_accuracy:.1f} % of {held_out}"),
        ("training accuracy", f"{100 * accuracy:.1f} % of {config.samples}"),
        ("held-out loss", f"{held_out_loss:.4f}"),
        ("training loss", f"{loss:.4f}"),
        ("network", f"64 → {config.hidden} ({config.activation}) → 10"),
        ("weights", f"{weights:,} ({config.dtype})"),
        ("optimizer", config.optimizer),
        ("learning rate, weight decay", f"{config.rate:g}, {config.weight_decay:g}"),
        ("epochs", str(config.epochs)),
        ("steps", str(steps)),
        ("batch", str(config.batch)),
        ("seed", str(config.seed)),
    )
