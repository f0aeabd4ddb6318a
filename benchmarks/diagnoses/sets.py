"""Data and networks of the benchmark of diagnoses: pairs of domains, labels to flip, one training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Tensor, nn

import ntkit
from ntkit.data.cache import DataSet, load
from ntkit.data.digits import digits
from ntkit.data.mnist import fashion_mnist, mnist

CIFAR = DataSet(  # 4,000 of CIFAR-10's training pictures: no mirror has them in this form
    file="cifar10_subset.npz",
    sha256={
        "x_train": "bac45b45504ed1289a3f437be4bfbefece248abbc094a428a0b4dfab00e776ae",
        "y_train": "2c365f60663d4e0eae47b2e7e1f85bef4375b295095eff8ce46a32be9415473c",
    },
    mirrors=(),
)


@dataclass(frozen=True)
class Pair:
    """A domain with its network, and pictures from elsewhere.

    ``calibration`` are samples that neither the network nor a kernel was given.
    """

    name: str
    network: Callable[[], nn.Sequential]
    x: Tensor
    y: Tensor
    calibration: Tensor
    inside: Tensor
    inside_y: Tensor
    outside: Tensor


@dataclass(frozen=True)
class Labelled:
    """Samples whose labels are right, held-out ones, and their network."""

    name: str
    network: Callable[[], nn.Sequential]
    x: Tensor
    y: Tensor
    held_out: tuple[Tensor, Tensor]
    rate: float = 0.1


def mlp(d: int, width: int, classes: int) -> nn.Sequential:
    """Return d-width-classes with a ReLU."""
    return nn.Sequential(nn.Linear(d, width), nn.ReLU(), nn.Linear(width, classes))


def cnn(channels: int, side: int, classes: int = 10) -> nn.Sequential:
    """Return two convolutions with stride 2, and a linear layer, for flat pictures."""
    left = -(-side // 4)
    return nn.Sequential(
        nn.Unflatten(1, (channels, side, side)),
        nn.Conv2d(channels, 16, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * left * left, classes),
    )


def pairs() -> dict[str, Callable[[], Pair]]:
    """Return the four pairs of domains."""
    return {"mnist": _mnist, "fashion": _fashion, "digits": _digits, "cifar": _cifar}


def _split(x: Tensor, y: Tensor, sizes: list[int], seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    parts = order[: sum(sizes)].split(sizes)
    return [(x[index], y[index]) for index in parts]


def _mnist() -> Pair:
    data = mnist(5000, held_out=1000, dtype=torch.float32)
    (x, y), (calibration, _) = _split(data.train_x, data.train_y, [4000, 1000])
    away = fashion_mnist(1000, dtype=torch.float32)[0]
    name = "MNIST / Fashion-MNIST"
    return Pair(name, lambda: mlp(784, 100, 10), x, y, calibration, data.held_out_x, data.held_out_y, away)


def _fashion() -> Pair:
    x, y = fashion_mnist(dtype=torch.float32)
    (x, y), (calibration, _), (inside, inside_y) = _split(x, y, [8000, 1000, 1000])
    away = mnist(10, held_out=1000, dtype=torch.float32).held_out_x
    return Pair("Fashion-MNIST / MNIST", lambda: mlp(784, 100, 10), x, y, calibration, inside, inside_y, away)


def _digits() -> Pair:
    data = digits(held_out=450, dtype=torch.float32)
    x, y = torch.cat([data.train_x, data.held_out_x]), torch.cat([data.train_y, data.held_out_y])
    away = x[y >= 8]
    x, y = x[y < 8], y[y < 8]
    rest = len(x) - 1000 - 200
    (x, y), (calibration, _), (inside, inside_y) = _split(x, y, [1000, 200, rest])
    name = "digits 0-7 / digits 8-9"
    return Pair(name, lambda: mlp(64, 64, 8), x, y, calibration, inside, inside_y, away)


def _cifar() -> Pair:
    arrays = load(CIFAR)
    x = torch.tensor(arrays["x_train"]).permute(0, 3, 1, 2).flatten(1).float() / 255
    y = torch.tensor(arrays["y_train"].astype(np.int64)).reshape(-1)
    (x, y), (calibration, _), (inside, inside_y) = _split(x, y, [1500, 500, 500])
    away = fashion_mnist(500, dtype=torch.float32)[0].reshape(-1, 1, 28, 28)
    away = nn.functional.pad(away, (2, 2, 2, 2)).expand(-1, 3, -1, -1).flatten(1)
    name = "CIFAR-10 subset / Fashion-MNIST"
    return Pair(name, lambda: cnn(3, 32), x, y, calibration, inside, inside_y, away)


def labelled(seed: int) -> dict[str, Callable[[], Labelled]]:
    """Return the sets whose labels are flipped, drawn from a seed."""

    def mnist_() -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        data = mnist(2000, held_out=500, seed=seed, dtype=torch.float32)
        return data.train_x, data.train_y, (data.held_out_x, data.held_out_y)

    def digits_() -> Labelled:
        d = digits(1200, seed=seed, dtype=torch.float32)
        return Labelled("digits", lambda: mlp(64, 64, 10), d.train_x, d.train_y, (d.held_out_x, d.held_out_y))

    return {
        "mnist-cnn": lambda: Labelled("MNIST, CNN", lambda: cnn(1, 28), *mnist_(), rate=0.05),
        "mnist-mlp": lambda: Labelled("MNIST, MLP", lambda: mlp(784, 100, 10), *mnist_()),
        "digits": digits_,
        "cancer": lambda: _table("breast cancer", load_breast_cancer, seed),
        "wine": lambda: _table("wine", load_wine, seed),
    }


def _table(name: str, fetch: Callable[..., tuple[np.ndarray, np.ndarray]], seed: int) -> Labelled:
    x, y = fetch(return_X_y=True)
    x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
    away = len(x) // 5
    first, second = _split(x, torch.tensor(y.astype(np.int64)), [len(x) - away, away], seed)
    classes = int(y.max()) + 1
    return Labelled(name, lambda: mlp(x.shape[1], 32, classes), *first, second)


def flipped(y: Tensor, share: float, how: str, seed: int) -> tuple[Tensor, np.ndarray]:
    """Return labels of which a share is wrong, and which: uniform over the others, or always the next class.

    Where it depends on the class, class c is flipped in proportion to 1 + c, to c + 1 (the last to 0).
    """
    draw, n, classes = np.random.default_rng(seed + 1), len(y), int(y.max()) + 1
    old = y.numpy()
    weight = np.ones(n) if how == "uniform" else 1.0 + old
    index = draw.choice(n, size=round(share * n), replace=False, p=weight / weight.sum())
    wrong = np.zeros(n, dtype=bool)
    wrong[index] = True
    step = draw.integers(1, classes, n) if how == "uniform" else np.ones(n, dtype=np.int64)
    return torch.tensor(np.where(wrong, (old + step) % classes, old)), wrong


def trained(
    make: Callable[[], nn.Sequential],
    x: Tensor,
    y: Tensor,
    seed: int,
    *,
    epochs: int = 10,
    rate: float = 0.1,
    folder: Path | None = None,
) -> nn.Sequential:
    """Return a network trained by SGD with momentum in batches of 100; record it into a folder."""
    torch.manual_seed(seed)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    draw = torch.Generator().manual_seed(seed)
    batches = [index for _ in range(epochs) for index in torch.randperm(len(x), generator=draw).split(100)]

    def step(index: Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()

    if folder is None:
        for index in batches:
            step(index)
        return model
    with ntkit.record(folder, model, optimizer, train=(x, y)) as run:
        for index in batches:
            run.batch(index)
            step(index)
    return model
