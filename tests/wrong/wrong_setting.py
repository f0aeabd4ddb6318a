"""Small networks, data, runs and estimators, to be given one wrong thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset

import ntkit
import ntkit.report
import ntkit.testing

D = torch.float64


class Iterable(IterableDataset):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Mixed(nn.Linear):
    def forward(self, x):
        return super().forward(x) - x.mean()


class Thing:
    """Something that is of no use to anyone."""

    def __repr__(self) -> str:
        return "a thing"


def net(width: int = 4, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, outputs)).double()


def two_dtypes() -> nn.Module:
    model = net()
    model[2].float()
    return model


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(2))


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3, 2, dtype=torch.int64), requires_grad=False)

    def forward(self, x):
        return x @ self.w.to(x)


@cache
def _draws() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 3)), rng.normal(size=12)


def X() -> np.ndarray:
    return _draws()[0].copy()


def y() -> np.ndarray:
    return _draws()[1].copy()


def classes() -> np.ndarray:
    return (y() > 0).astype(int)


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.as_tensor(X()[:8])
    return x, torch.stack([x.sum(1), x[:, 0] ** 2], 1)


def spoil(x: Any, row: int, value: float = float("nan")) -> Any:
    x = x.clone() if isinstance(x, torch.Tensor) else x.copy()
    x[row] = value
    return x


@cache
def trainee() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network and its optimizer, to be recorded."""
    model = net()
    return model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)


LOSS = nn.MSELoss()
PLACE: dict[str, Path] = {}  # of the recorded runs, made once


def step(
    run: Any, model: nn.Module, optimizer: torch.optim.Optimizer, indices: Any, weight: Any = 1.0
) -> None:
    x, target = data()
    run.batch(indices, weight)
    optimizer.zero_grad()
    LOSS(model(x), target).backward()
    optimizer.step()


def recorded(every: int = 1) -> Path:
    """Return the folder of a run of three steps."""
    place = PLACE["root"] / f"run{every}"
    if not place.exists():
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with ntkit.record(place, model, optimizer, train=data(), every=every) as run:
            for _ in range(3):
                step(run, model, optimizer, range(8))
    return place


def fresh() -> Path:
    return PLACE["root"] / "fresh"


def account(**changed: Any) -> Any:
    given = {"folder": recorded(), "model": net(), "loss": LOSS, "train": data(), "queries": data()[0][:2]}
    given |= changed
    return ntkit.account(given.pop("folder"), given.pop("model"), given.pop("loss"), **given)


def retrain(**changed: Any) -> Any:
    given = {"folder": recorded(), "model": net(), "loss": LOSS, "train": data()}
    given |= (
        changed if changed.keys() & {"without", "weights", "without_each"} else {"without": [], **changed}
    )
    return ntkit.retrain(given.pop("folder"), given.pop("model"), given.pop("loss"), **given)


def counterfactual(**changed: Any) -> Any:
    given = {"folder": recorded(), "model": net(), "loss": LOSS, "train": data(), "queries": data()[0][:2]}
    given |= changed
    return ntkit.counterfactual(given.pop("folder"), given.pop("model"), given.pop("loss"), **given)


@cache
def a_counterfactual() -> ntkit.Counterfactual:
    return counterfactual()


@cache
def an_account() -> ntkit.Account:
    return account()


def path_kernel(**changed: Any) -> ntkit.PathKernel:
    given = {"folder": recorded(), "model": net()} | changed
    return ntkit.PathKernel(given.pop("folder"), given.pop("model"), **given)


def record(**changed: Any) -> None:
    model, optimizer = trainee()
    given = {"folder": fresh(), "model": model, "optimizer": optimizer} | changed
    with ntkit.record(**given) as run:
        step(run, model, optimizer, range(8))


def batch(indices: Any = range(8), weight: Any = 1.0) -> None:
    model, optimizer = trainee()
    with ntkit.record(fresh(), model, optimizer, train=data()) as run:
        run.batch(indices, weight)


def watch(**changed: Any) -> None:
    model, optimizer = trainee()
    given = {"model": model, "optimizer": optimizer, "loss": LOSS, "train": data(), "queries": data()[0][:2]}
    with ntkit.watch(**(given | changed)) as run:
        step(run, model, optimizer, range(8))


@cache
def ntk(**options: Any) -> ntkit.EmpiricalNTK:
    return ntkit.EmpiricalNTK(net(), **options)


@cache
def limit() -> Any:
    return ntkit.infinite_width(net(), data()[0][:1])


def infinite(model: Any = None, example: Any = None, **options: Any) -> Any:
    return ntkit.infinite_width(
        net() if model is None else model, data()[0][:1] if example is None else example, **options
    )


def estimated(model: Any = None, samples: Any = 2, x1: Any = None, **options: Any) -> Any:
    return ntkit.monte_carlo(
        net() if model is None else model, samples, data()[0] if x1 is None else x1, **options
    )


def started() -> Any:
    """Return a recording whose `with` was forgotten."""
    model, optimizer = trainee()
    return ntkit.record(fresh(), model, optimizer)


def unannounced() -> None:
    model, optimizer = trainee()
    with ntkit.record(fresh(), model, optimizer):
        LOSS(model(data()[0]), data()[1]).backward()
        optimizer.step()


def early() -> Any:
    return ntkit.watch(*trainee(), LOSS, data(), data()[0][:2]).account


def zero() -> ntkit.EmpiricalNTK:
    return ntkit.EmpiricalNTK(nn.Linear(3, 1, bias=False).double())


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)).double()


def matrix_variance() -> Any:
    return ntkit.GaussianProcess("precomputed").fit(np.eye(12), y()).predict(np.eye(12), return_std=True)


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(3, 2, dtype=D))

    def forward(self, x):
        return x @ self.w


def ridge(**options: Any) -> Any:
    return ntkit.KernelRidge(**options).fit(X(), y())


def classifier(**options: Any) -> Any:
    return ntkit.KernelClassifier(**options).fit(X(), classes())


def process(**options: Any) -> Any:
    return ntkit.GaussianProcess(**options).fit(X(), y())


def flow(**options: Any) -> Any:
    return ntkit.GradientFlow(**options).fit(X(), y())


def features(**options: Any) -> Any:
    return ntkit.RandomFeatures(**({"m": 8} | options)).fit(X())


def streamed(**options: Any) -> Any:
    small = {"features": ntkit.RandomFeatures(m=4), "alpha": 1.0}
    return ntkit.FeatureRidge(**(small | options)).fit(X(), y())


FITTED = {"ridge": ridge, "classifier": classifier, "process": process, "flow": flow, "features": features}
MADE = {
    "ridge": ntkit.KernelRidge,
    "classifier": ntkit.KernelClassifier,
    "process": ntkit.GaussianProcess,
    "flow": ntkit.GradientFlow,
}


@cache
def fitted(name: str) -> Any:
    return FITTED[name]()


def registered(register: Callable[..., Any], *given: Any) -> Any:
    return register(*given)(lambda *args: None)


def page(**options: Any) -> Any:
    return ntkit.report.explain(an_account(), PLACE["root"] / "page.html", **options)


class Own(torch.optim.SGD):
    pass


class Parts(nn.Linear):
    def forward(self, x):
        return {"logits": super().forward(x), "loss": x.sum()}
