"""The exact account for the optimizers that the theorem leaves out.

Domingos' theorem is about gradient flow, its discrete form about full-batch gradient descent; momentum, Adam
and minibatches are left open (Courtois, Morel, Arias, Section 7). Each step of these is linear in the
gradients seen so far, given what it divided them by, so the prediction is a sum over training samples as
well. On the tasks of the other studies, with minibatches: the residual of the exact account, and of the
left-end rule beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.data.parity import two_peaks
from ntkit.data.toy import ball_sphere, half_plane
from ntkit.display.axes import BLUE, ORANGE
from ntkit.studies.figures import Figures, above, panels
from ntkit.studies.parts import part, scratch
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, mlp, seeded, train_recorded

QUICK = {"samples": 48, "steps": 80, "queries": 6}

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 5e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=0.1),
}


class Config(StudyConfig):
    """Small smooth networks, minibatches."""

    loss: str = loss_option("mse_loss")
    samples: int = option(256, "Training points of each task.", low=8, high=10_000)
    steps: int = option(1000, "Steps.", low=1, high=10**6)
    batch: int = option(32, "Samples in a step.", low=1, high=10_000)
    queries: int = option(24, "Points whose predictions are accounted for.", low=1, high=1000)
    tol: float = option(1e-8, "Tolerance of the exact account.", low=1e-13, high=1.0)


def run(config: Config) -> Result:
    """Train with each optimizer on each task, and account with both rules."""
    p = 16
    peaks_x, peaks_y = two_peaks(p)
    order = torch.randperm(len(peaks_x), generator=torch.Generator().manual_seed(config.seed))
    tasks = {
        "ball and sphere": ball_sphere(config.samples + config.queries, config.seed),
        "half plane": half_plane(config.samples + config.queries, config.seed),
        "two peaks": (peaks_x[order], peaks_y[order]),
    }
    exact, left = np.zeros((len(tasks), len(OPTIMIZERS))), np.zeros((len(tasks), len(OPTIMIZERS)))
    with progress("training and accounting (runs)", exact.size) as done:
        for i, (x, y) in enumerate(tasks.values()):
            cut = len(x) - config.queries
            train = x[:cut].to(config.device), y[:cut].to(config.device)
            for j, make in enumerate(OPTIMIZERS.values()):
                queries = x[cut:].to(config.device)
                exact[i, j], left[i, j] = part(
                    f"{i}, {j}", lambda m=make, t=train, q=queries: _residuals(config, m, t, q)
                )
                done(1)
    claims = []
    for name, by_exact, by_left in zip(OPTIMIZERS, exact.max(0), left.max(0), strict=True):
        claims += [
            Claim(f"{name}: residual of the exact account / movement, worst task", by_exact, high=config.tol),
            Claim(f"{name}: residual of the left-end rule / movement, worst task", by_left),
        ]
    numbers = {"tasks": list(tasks), "optimizers": list(OPTIMIZERS)}
    return Result(config, claims, {"exact": exact, "left": left}, numbers)


def figure(result: Result) -> Figures:
    """Draw the residuals of both rules."""
    a, n = result.arrays, result.numbers
    drawn, axes = panels(3.1 * len(n["tasks"]), 3.6, columns=len(n["tasks"]), sharey=True)
    where = np.arange(len(n["optimizers"]))
    for i, (ax, task) in enumerate(zip(axes, n["tasks"], strict=True)):
        ax.plot(where, a["left"][i], "o", color=ORANGE, label="left end of each step")
        ax.plot(where, np.maximum(a["exact"][i], 1e-17), "s", color=BLUE, label="exact account")
        ax.set_xlim(-0.6, len(where) - 0.4)
        ax.set(yscale="log", title=task)
        ax.set_xticks(where, n["optimizers"], rotation=30)
        ax.grid(alpha=0.3, axis="y")
    drawn.axes[0].set_ylabel("largest residual / movement")
    above(drawn, ax, 2)
    return {"Residual of the account": drawn}


def _residuals(
    config: Config,
    make: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    train: tuple[Tensor, Tensor],
    queries: Tensor,
) -> tuple[float, float]:
    x = train[0]
    with seeded(config.seed):
        model = mlp(x.shape[1], 10, 10, 1, activation=nn.GELU).to(config.device, torch.float64)
    optimizer = make(list(model.parameters()))
    draw = torch.Generator().manual_seed(config.seed)
    with scratch() as folder:
        orders = (torch.randperm(len(x), generator=draw) for _ in range(config.steps))
        batches = (order[: config.batch] for order in orders)
        train_recorded(f"{folder}/run", model, optimizer, loss_of(config.loss), train, batches)
        account = partial(
            ntkit.account, f"{folder}/run", model, loss_of(config.loss), train=train, queries=queries
        )
        accounts = [account(tol=config.tol), account(nodes="left")]
    exact, left = (a.relative_residual for a in accounts)
    return exact, left
