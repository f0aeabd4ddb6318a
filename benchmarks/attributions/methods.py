"""The methods that are compared: each scores what a training sample did to the loss of each query."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from attributions.setting import Data, Setting, losses, network, train
from torch import Tensor, nn

import ntkit
from ntkit.training.accounts.account import Account

MEMORY = "2GiB"
NEIGHBORS = 10  # of a sample, whose labels its own is compared with
DAMPINGS = (1e-2, 1e-1, 1.0)  # in units of the mean eigenvalue of the last layer's Hessian


@dataclass(frozen=True)
class Scores:
    """What a method says of each training sample.

    ``on_queries [q, n]`` is by how much the sample changed each query's loss (negative: it lowered it), up to
    a factor; ``own [n]`` is large where the label looks wrong; ``seconds`` is what both took; ``residual`` is
    that of an account, in units of the movement.
    """

    name: str
    on_queries: np.ndarray | None
    own: np.ndarray | None
    seconds: float
    residual: float | None = None


def all_scores(setting: Setting, data: Data, folder: Path, tol: float, logits: bool = True) -> list[Scores]:
    """Return the scores of all methods for one run, seed 0; that of the loss's account is the first."""
    models: list[nn.Sequential] = []
    train(setting, data, each_epoch=lambda model: models.append(copy.deepcopy(model)))
    rates = [setting.rate_at((e + 0.5) * setting.steps / setting.epochs) for e in range(setting.epochs)]
    return [
        *accounts(setting, data, folder, tol, logits),
        *tracin(data, models, rates),
        *last_layer(data, models[-1]),
        representation(data, models[-1]),
        *loss_ranking(data, models),
    ]


def accounts(
    setting: Setting, data: Data, folder: Path, tol: float, with_logits: bool = True
) -> Iterator[Scores]:
    """Yield the exact accounts of the loss, and of the label's logit less the mean of the other nine."""
    recorded = folder / "run"
    if not (folder / "run.done").exists():
        shutil.rmtree(recorded, ignore_errors=True)
        train(setting, data, folder=recorded)
        (folder / "run.done").touch()

    def kept(name: str, **options) -> tuple[Account, float]:
        file, clock = folder / f"{name}.safetensors", folder / f"{name}.seconds"
        if not clock.exists():
            begin = time.perf_counter()
            made = ntkit.account(
                recorded,
                network(setting, 0),
                nn.functional.cross_entropy,
                train=(data.x, data.y),
                tol=tol,
                memory=MEMORY,
                keep=folder / f"{name}.parts",
                **options,
            )
            made.save(file)
            clock.write_text(str(time.perf_counter() - begin))
            shutil.rmtree(folder / f"{name}.parts", ignore_errors=True)
        return Account.load(file), float(clock.read_text())

    loss, first = kept("queries", queries=data.query_x, labels=data.query_y, target="loss")
    own, second = kept("training", queries=data.x, labels=data.y, target="loss")
    yield Scores(
        "account of the loss",
        loss.contributions[:, 0].numpy(),
        -own.self_influence()[:, 0].numpy(),
        first + second,
        max(loss.relative_residual, own.relative_residual),
    )
    if not with_logits:
        return
    logits, third = kept("logits", queries=data.query_x, target="outputs")
    margin = torch.einsum("qon,qo->qn", logits.contributions, _margin(data.query_y, 10))
    yield Scores("account of the logit margin", -margin.numpy(), None, third, logits.relative_residual)


def tracin(
    data: Data, models: list[nn.Sequential], rates: list[float], with_own: bool = True
) -> Iterator[Scores]:
    """Yield TracIn (Pruthi et al. 2020): sums over checkpoints of rate x gradient . gradient.

    The checkpoints are the ends of epochs, the rates those in the middle of them. The gradient of a query is
    that of its loss, or of its logit margin.
    """
    q, n = len(data.query_x), len(data.x)
    loss, margin = (torch.zeros(q, n, dtype=torch.float64) for _ in range(2))
    own = torch.zeros(n, dtype=torch.float64)
    begin, spent_on_queries = time.perf_counter(), 0.0
    for model, rate in zip(models, rates, strict=True):
        kernel = ntkit.EmpiricalNTK(model, outputs="full", memory=MEMORY)
        c, c_query = _slope(model, data.x, data.y), _slope(model, data.query_x, data.query_y)
        if with_own:
            own = own + rate * torch.einsum("no,nop,np->n", c, kernel.diag(data.x), c)
        since = time.perf_counter()
        moved = torch.einsum("qnop,np->qno", kernel(data.query_x, data.x), c)  # of outputs, sign aside
        loss = loss - rate * torch.einsum("qno,qo->qn", moved, c_query)
        margin = margin + rate * torch.einsum("qno,qo->qn", moved, _margin(data.query_y, 10))
        spent_on_queries += time.perf_counter() - since
    whole = time.perf_counter() - begin
    label = f"TracIn, {len(models)} checkpoints"
    yield Scores(f"{label}, loss", loss.numpy(), own.numpy() if with_own else None, whole)
    yield Scores(f"{label}, logit margin", margin.numpy(), None, spent_on_queries)


def last_layer(data: Data, model: nn.Sequential) -> Iterator[Scores]:
    """Yield influence functions of the last layer in closed form (Koh and Liang 2017), one for each damping.

    The gradient of a sample is c h^T, the Hessian the mean of (diag p - p p^T) x h h^T, which is exact there.
    """
    for damping in DAMPINGS:
        begin = time.perf_counter()
        h, h_query = _features(model, data.x), _features(model, data.query_x)
        c, c_query = _slope(model, data.x, data.y), _slope(model, data.query_x, data.query_y)
        hessian = _hessian(c + nn.functional.one_hot(data.y, 10), h)
        scale = hessian.diagonal().mean()
        factor = torch.linalg.cholesky(hessian + damping * scale * torch.eye(len(hessian), dtype=h.dtype))
        g = torch.einsum("no,nf->nof", c, h).flatten(1)
        g_query = torch.einsum("no,nf->nof", c_query, h_query).flatten(1)
        solved = torch.cholesky_solve(g.T, factor)
        yield Scores(
            f"last-layer influence, damping {damping:g}",
            -(g_query @ solved).numpy(),
            (g * solved.T).sum(1).numpy(),
            time.perf_counter() - begin,
        )


def representation(data: Data, model: nn.Sequential) -> Scores:
    """Return the cosine of the features before the last layer, positive where the labels are equal."""
    begin = time.perf_counter()
    h, h_query = (nn.functional.normalize(_features(model, x)[:, :-1], dim=1) for x in (data.x, data.query_x))

    def signed(a: Tensor, labels: Tensor) -> Tensor:
        return (a @ h.T) * torch.where(labels[:, None] == data.y, 1.0, -1.0)

    among = signed(h, data.y)
    nearest = (h @ h.T).fill_diagonal_(-2).topk(NEIGHBORS, dim=1).indices
    own = -among.gather(1, nearest).mean(1)
    on_queries = -signed(h_query, data.query_y)
    return Scores("representation similarity", on_queries.numpy(), own.numpy(), time.perf_counter() - begin)


@torch.no_grad()
def loss_ranking(data: Data, models: list[nn.Sequential]) -> Iterator[Scores]:
    """Yield each sample's own loss: in the end, and its mean over the checkpoints."""
    begin = time.perf_counter()
    found = torch.stack([losses(model(data.x), data.y) for model in models]).numpy()
    seconds = time.perf_counter() - begin
    yield Scores("loss, in the end", None, found[-1], seconds / len(models))
    yield Scores(f"loss, mean of {len(models)} checkpoints", None, found.mean(0), seconds)


@torch.no_grad()
def _slope(model: nn.Sequential, x: Tensor, y: Tensor) -> Tensor:
    """Return the derivative of each sample's loss by its outputs, ``[n, o]``."""
    outputs = model(x)
    return outputs.softmax(1) - nn.functional.one_hot(y, outputs.shape[1])


@torch.no_grad()
def _features(model: nn.Sequential, x: Tensor) -> Tensor:
    """Return the inputs of the last layer with a one for its bias, ``[n, f + 1]``."""
    h = model[:-1](x)
    return torch.cat([h, torch.ones_like(h[:, :1])], dim=1)


def _hessian(p: Tensor, h: Tensor) -> Tensor:
    """Return the mean of (diag p - p p^T) x h h^T, ``[o f, o f]``."""
    n, o = p.shape
    f = h.shape[1]
    blocks = torch.zeros(o, f, o, f, dtype=h.dtype)
    for a in range(o):
        for b in range(o):
            weight = p[:, a] * (float(a == b) - p[:, b]) / n
            blocks[a, :, b] = (h * weight[:, None]).T @ h
    return blocks.reshape(o * f, o * f)


def _margin(labels: Tensor, o: int) -> Tensor:
    """Return the weights of the label's logit less the mean of the others, ``[q, o]``."""
    own = nn.functional.one_hot(labels, o).double()
    return own - (1 - own) / (o - 1)
