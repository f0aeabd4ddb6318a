"""The networks whose limits are taken, as torch modules, and their inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SIGMA_W, SIGMA_B = 2**0.5, 0.1
DEPTH = 3


def mlp() -> nn.Module:
    """Return three hidden layers with ReLU; a limit does not depend on their widths."""
    layers: list[nn.Module] = []
    for a in (784, *[32] * (DEPTH - 1)):
        layers += [nn.Linear(a, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 1))


def cnn(side: int, pool: bool) -> nn.Module:
    """Return three convolutions with ReLU, and a readout of their mean over positions or of all of them."""
    layers: list[nn.Module] = []
    for c in (3, *[8] * (DEPTH - 1)):
        layers += [nn.Conv2d(c, 8, 3, padding=1), nn.ReLU()]
    ends = [nn.AdaptiveAvgPool2d(1)] if pool else []
    return nn.Sequential(*layers, *ends, nn.Flatten(), nn.Linear(8 if pool else 8 * side**2, 1))


# name: (network, shape of a sample, samples)
JOBS = {
    "mlp": (mlp, (784,), 6000),
    "cnn-gap": (lambda: cnn(14, True), (3, 14, 14), 40),
    "cnn-flatten": (lambda: cnn(28, False), (3, 28, 28), 200),
}


FIRST = "first-"  # of jobs: a first call in a process, of the job that is named behind
AFTER = "-after"  # of one that has read and taken another limit before
JOBS["mlp-1000"] = (mlp, (784,), 1000)


def base(name: str) -> str:
    """Return the job of which a first call is timed, or the job itself."""
    return name.removeprefix(FIRST).removesuffix(AFTER)


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor]:
    """Return a job's network and inputs, always the same."""
    torch.manual_seed(0)
    make, shape, n = JOBS[base(name)]
    x = torch.randn(n, *shape)
    return make().to(dtype), x.to(dtype)
