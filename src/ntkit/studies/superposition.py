"""A prediction as a superposition of training examples, through training time.

Domingos reads a deep network's weights as a superposition of the training examples (Morel, Courtois, Arias,
2021; remarks 1 and 5 there): a query is matched with each of them by a path kernel, and the weighted matches
add up. Here a network learns digits by Adam in minibatches; for some queries, the account says which training
digits make up the prediction, and when in training they did.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import ntkit
from ntkit.data.digits import CLASSES, SIDE, digits
from ntkit.display import plots
from ntkit.display.axes import draw_picture
from ntkit.errors import BadValueError
from ntkit.studies.figures import Figures, panels
from ntkit.studies.parts import scratch
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import (
    loss_of,
    loss_option,
    mlp,
    optimizer_of,
    optimizer_option,
    seeded,
    train_recorded,
)

QUICK = {"samples": 200, "epochs": 4, "queries": 6}


class Config(StudyConfig):
    """A network with one hidden layer on scikit-learn's digits."""

    optimizer: str = optimizer_option("Adam")
    loss: str = loss_option("cross_entropy", "classes")
    samples: int = option(1000, "Training digits.", low=20, high=1347)
    epochs: int = option(15, "Passes over the digits.", low=1, high=1000)
    batch: int = option(32, "Digits in a step.", low=1, high=1347)
    hidden: int = option(48, "Hidden units.", low=1, high=4096)
    queries: int = option(24, "Held-out digits.", low=3, high=450)
    shown: int = option(3, "Queries that are drawn.", low=1, high=10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shown > self.queries:
            raise BadValueError(
                f"shown is {self.shown}, of {self.queries} queries; expected at most as many. Ask for more "
                "queries, or show fewer."
            )


def run(config: Config) -> Result:
    """Train, account, and ask how few training digits make up a prediction, and how early."""
    data = digits(config.samples, seed=config.seed)
    x, y = data.train_x.to(config.device), data.train_y.to(config.device)
    q, truth = (t[: config.queries].to(config.device) for t in (data.held_out_x, data.held_out_y))
    with seeded(config.seed):
        model = mlp(SIDE**2, config.hidden, len(CLASSES), activation=nn.GELU)
    model.to(config.device, torch.float64)
    optimizer = optimizer_of(config.optimizer, model.parameters(), 3e-3)
    draw = torch.Generator().manual_seed(config.seed)
    with scratch() as folder:
        epochs = (torch.randperm(len(x), generator=draw) for _ in range(config.epochs))
        batches = (index for order in epochs for index in order.split(config.batch))
        train_recorded(f"{folder}/run", model, optimizer, loss_of(config.loss), (x, y), batches)
        a = ntkit.account(f"{folder}/run", model, loss_of(config.loss), train=(x, y), queries=q)
    predicted = a.prediction.argmax(1)
    rows = torch.arange(len(q))
    pushes, steps = a.contributions[rows, predicted], a.by_step[rows, predicted]
    share = pushes.abs().sort(dim=1, descending=True).values.cumsum(1) / pushes.abs().sum(1, keepdim=True)
    half = (share < 0.5).sum(1) + 1
    by_class = a.by_class(data.train_y)[rows, predicted]
    own = float((by_class.argmax(1) == predicted).double().mean())
    against = by_class.scatter(1, predicted[:, None], 0.0).sum(1)
    early = steps[:, : steps.shape[1] // 5].sum(1) / steps.sum(1)
    top = pushes.topk(6, dim=1).indices
    like = (data.train_y[top] == predicted[:, None]).double().mean()
    few = float(half.double().median()) / len(x)
    claims = (
        Claim("residual of the account / movement", a.relative_residual, "exact", high=1e-8),
        Claim("digits of the predicted class push most towards it, share of queries", own, low=0.9),
        Claim("strongest six digits that have the predicted label", float(like), "similar", low=0.9),
        Claim("sum of the contributions of all other classes, mean", float(against.mean()), high=0.0),
        Claim("digits that make half of all pushes, median share", few),
        Claim("part of the movement made in the first fifth of training, median", float(early.median())),
        Claim("accuracy on the queries", float((predicted == truth.cpu()).double().mean())),
    )
    shown = slice(config.shown)
    arrays = {
        "queries": q[shown].reshape(-1, SIDE, SIDE),
        "top": x[top[shown].flatten()].reshape(-1, 6, SIDE, SIDE),
        "pushes": pushes.gather(1, top)[shown],
        "classes": [_through_time(a, i, int(predicted[i])) for i in range(config.shown)],
        "predicted": predicted[shown],
    }
    return Result(config, claims, arrays)


def figure(result: Result) -> Figures:
    """Draw some queries, the digits that pushed most, and the way of the prediction."""
    a, count = result.arrays, len(result.arrays["queries"])
    drawn, axes = panels(11, 1.9 * count, count, 8, squeeze=False, width_ratios=[1.2, *[1] * 6, 3])
    for i, row in enumerate(axes):
        draw_picture(a["queries"][i], row[0], title=f"predicted {a['predicted'][i]}")
        for ax, picture, push in zip(row[1:7], a["top"][i], a["pushes"][i], strict=True):
            draw_picture(picture, ax, title=f"{push:+.2f}".replace("-", "−"), color=plots.BLUE)
        row[7].plot(a["classes"][i], color=plots.BLUE, lw=1.5)
        row[7].grid(alpha=0.3)
        row[7].set_ylabel("logit", fontsize=8)
        row[7].tick_params(labelsize=7)
    axes[-1][7].set_xlabel("step: initial logit and all contributions until then", fontsize=8)
    return {"Queries, the training digits that made them, and when": drawn}


def _through_time(a: ntkit.Account, i: int, output: int) -> np.ndarray:
    """Return the initial output of a query plus what all steps until then moved."""
    return array(torch.cat([a.initial[i, output, None], a.over_time(i, output)]).cumsum(0))
