"""What is trained: digits with wrong labels, two small networks, one deterministic loop for all runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import ntkit
from ntkit.data.digits import digits
from ntkit.data.mnist import mnist
from ntkit.files import hash_data


@dataclass(frozen=True)
class Setting:
    """One network, its data and its training; every number that a retraining depends on."""

    network: str
    data: str = "mnist"
    samples: int = 2000
    queries: int = 100
    flipped: float = 0.1
    batch: int = 100
    epochs: int = 10
    rate: float = 0.1
    momentum: float = 0.9
    decay: bool = False  # of the rate, step by step in equal parts to nothing

    @property
    def steps(self) -> int:
        """Return the number of steps of a training."""
        return self.epochs * -(-self.samples // self.batch)

    def rate_at(self, step: float) -> float:
        """Return the rate of a step."""
        return self.rate * (1 - step / self.steps) if self.decay else self.rate


@dataclass(frozen=True)
class Data:
    """Training samples with some labels flipped (``wrong [n]``), and held-out queries with the true ones."""

    x: Tensor
    y: Tensor
    wrong: Tensor
    query_x: Tensor
    query_y: Tensor


def draw(setting: Setting) -> Data:
    """Return the data of a setting; a flipped label is one of the nine others, each as likely."""
    if setting.data == "mnist":
        drawn = mnist(setting.samples, held_out=setting.queries)
    else:
        drawn = digits(setting.samples)
    y, n = drawn.train_y, len(drawn.train_y)
    generator = torch.Generator().manual_seed(1)
    wrong = torch.zeros(n, dtype=torch.bool)
    wrong[torch.randperm(n, generator=generator)[: round(setting.flipped * n)]] = True
    other = (y + torch.randint(1, 10, (n,), generator=generator)) % 10
    held_out_x, held_out_y = drawn.held_out_x[: setting.queries], drawn.held_out_y[: setting.queries]
    return Data(drawn.train_x, torch.where(wrong, other, y), wrong, held_out_x, held_out_y)


def network(setting: Setting, seed: int) -> nn.Sequential:
    """Return the network at its start; the last layer is linear, what is before it are the features."""
    torch.manual_seed(seed)
    wide = torch.float64  # said to each layer: drawn in float32 and widened, the numbers would be others
    if setting.data == "digits":
        layers = [nn.Linear(64, 16, dtype=wide), nn.Tanh(), nn.Linear(16, 10, dtype=wide)]
    elif setting.network == "mlp":
        layers = [nn.Linear(784, 32, dtype=wide), nn.Tanh(), nn.Linear(32, 10, dtype=wide)]
    else:
        layers = [
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 8, 5, stride=3, padding=1, dtype=wide),
            nn.Tanh(),
        ]
        layers += [nn.Conv2d(8, 16, 3, stride=2, dtype=wide), nn.Tanh()]
        layers += [nn.Flatten(), nn.Linear(256, 10, dtype=wide)]
    return nn.Sequential(*layers)


def key(setting: Setting, data: Data) -> str:
    """Return the folder of a setting's results: another one for other settings, data or initial weights."""
    text = json.dumps(asdict(setting), sort_keys=True)
    found = hash_data(data.x, data.y, data.query_x, data.query_y, *network(setting, 0).parameters())
    return f"{setting.network}-{hashlib.sha256((text + found).encode()).hexdigest()[:12]}"


def train(
    setting: Setting,
    data: Data,
    kept: Tensor | None = None,
    seed: int = 0,
    folder: Path | None = None,
    each_epoch: Callable[[nn.Sequential], None] | None = None,
) -> nn.Sequential:
    """Return the trained network; samples that are not ``kept [n]`` are missing from their batches.

    Initial weights and batches depend on the seed only, so that two runs differ by the samples alone. A step
    divides the sum over its batch by what is expected to be left of it: removing samples changes neither the
    number of steps nor the mean size of a gradient.
    """
    n = len(data.x)
    kept = torch.ones(n, dtype=torch.bool) if kept is None else kept
    divisor = setting.batch * float(kept.double().mean())
    model = network(setting, seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=setting.rate, momentum=setting.momentum)
    generator, step = torch.Generator().manual_seed(seed), 0
    with contextlib.ExitStack() as stack:
        run = None
        if folder is not None:
            run = stack.enter_context(ntkit.record(folder, model, optimizer, train=(data.x, data.y)))
        for _ in range(setting.epochs):
            for index in torch.randperm(n, generator=generator).split(setting.batch):
                index = index[kept[index]]
                if run is not None:
                    run.batch(index)
                optimizer.param_groups[0]["lr"] = setting.rate_at(step)
                step += 1
                optimizer.zero_grad()
                (losses(model(data.x[index]), data.y[index]).sum() / divisor).backward()
                optimizer.step()
            if each_epoch is not None:
                each_epoch(model)
    return model


def losses(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the cross entropy of each sample, ``[n]``."""
    return nn.functional.cross_entropy(outputs, labels, reduction="none")
