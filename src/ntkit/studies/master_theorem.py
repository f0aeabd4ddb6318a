"""The vectors of a tensor program as its widths grow: their empirical moments against the limit.

For networks of four kinds, drawn at random, the inner products (1/n) h(x) . h(x') of the vector behind the
last matrix are compared with the expectation that the limit takes in their place (Cappelletti, Theorem 2.2
and Figure 1, after Yang). Single draws are off by width^(-1/2), whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.studies.study import Claim, Result, StudyConfig, array, option

QUICK = {"widths": (32, 128, 512), "draws": 6}


@dataclass(frozen=True, kw_only=True)
class Config(StudyConfig):
    """Networks of four kinds on a few random inputs."""

    widths: tuple[int, ...] = option((32, 64, 128, 256, 512, 1024), "Widths.", low=4)
    draws: int = option(20, "Networks of each kind and width.", low=2, high=10_000)
    inputs: int = option(4, "Inputs.", low=2, high=100)


class Attention(nn.Module):
    """Self-attention with scores q . q / width (queries are the keys), read out as a mean over tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed, self.q, self.v, self.out = (
            nn.Linear(a, b, bias=False) for a, b in ((3, width), *[(width, width)] * 2, (width, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each sequence ``[n, t, 3]``."""
        x = self.embed(x)
        q = self.q(x)
        weights = torch.softmax(q @ q.transpose(1, 2) / x.shape[-1], dim=-1)
        return self.out(torch.relu(weights @ self.v(x)).mean(1))


class Recurrent(nn.Module):
    """A recurrent network with one matrix for all steps, read out as a mean over time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.take, self.keep, self.out = (
            nn.Linear(3, width),
            nn.Linear(width, width, bias=False),
            nn.Linear(width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return one number for each sequence ``[n, t, 3]``."""
        h = torch.relu(self.take(x[:, 0]))
        total = h
        for t in range(1, x.shape[1]):
            h = torch.relu(self.take(x[:, t]) + self.keep(h))
            total = total + h
        return self.out(total / x.shape[1])


def mlp(width: int) -> nn.Module:
    """Return a network with two hidden layers on flat inputs."""
    layers = (nn.Linear(12, width), nn.ReLU(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    return nn.Sequential(nn.Flatten(), *layers)


def cnn(width: int) -> nn.Module:
    """Return a convolutional network with global average pooling."""
    layers = (nn.Conv1d(3, width, 3, padding=1), nn.ReLU(), nn.Conv1d(width, width, 3, padding=1), nn.ReLU())
    return nn.Sequential(Transpose(), *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 1))


class Transpose(nn.Module):
    """Sequences ``[n, t, c]`` as ``[n, c, t]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Swap the last two axes."""
        return x.transpose(1, 2)


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "MLP": mlp,
    "CNN": cnn,
    "RNN": Recurrent,
    "attention": Attention,
}


def run(config: Config) -> Result:
    """Draw networks of each kind and width, and compare their moments with the limit's."""
    draw = torch.Generator().manual_seed(config.seed)
    x = torch.randn(config.inputs, 4, 3, generator=draw, dtype=torch.float64).to(config.device)
    single, mean, slopes, scaled = {}, {}, {}, {}
    with progress("drawing networks (kinds x widths)", len(KINDS) * len(config.widths)) as done:
        for name, make in KINDS.items():
            limit = ntkit.infinite_width(
                make(config.widths[0]).double().to(config.device), x[:1], 2**0.5, 0.1
            )
            exact = limit.nngp(x).cpu()
            single[name], mean[name] = [], []
            for width in config.widths:
                model = make(width).double().to(config.device)
                estimate = ntkit.monte_carlo(
                    model, config.draws, x, sigma_w=2**0.5, sigma_b=0.1, seed=config.seed
                )
                spread = estimate.nngp_error.cpu() * config.draws**0.5
                bias = estimate.nngp.cpu() - exact
                single[name].append(float((spread**2 + bias**2).sum().sqrt() / exact.norm()))
                mean[name].append(float(bias.norm() / exact.norm()))
                scaled[name] = float((bias.abs() / (estimate.nngp_error.cpu() + 1e-12 * exact.abs())).max())
                done(1)
            slopes[name] = float(np.polyfit(np.log(config.widths), np.log(single[name]), 1)[0])
    wide = config.widths[-1]
    return Result(
        config,
        claims=(
            *(
                Claim(f"{n}: slope of a draw's error in width", s, "-1/2", low=-0.7, high=-0.3)
                for n, s in slopes.items()
            ),
            *(Claim(f"{n}: error of a draw, width {wide}", single[n][-1], "→ 0") for n in KINDS),
            *(
                Claim(f"{n}: mean of {config.draws} draws off by standard errors", s, high=5.0)
                for n, s in scaled.items()
            ),
        ),
        arrays={
            "widths": np.array(config.widths),
            **{f"{n}, one draw": np.array(v) for n, v in single.items()},
            **{f"{n}, mean": np.array(v) for n, v in mean.items()},
            "inputs": array(x),
        },
    )


def figure(result: Result) -> Mapping[str, Figure]:
    """Draw the errors of single draws, and of their means."""
    a = result.arrays
    drawn = Figure(figsize=(6, 4.2), layout="constrained")
    ax = drawn.subplots()
    for i, name in enumerate(KINDS):
        ax.loglog(a["widths"], a[f"{name}, one draw"], "o-", color=f"C{i}", label=f"{name}, one draw")
        ax.loglog(
            a["widths"], a[f"{name}, mean"], ":", color=f"C{i}", lw=1.3, label=f"{name}, mean of the draws"
        )
    ax.set(xlabel="width n", ylabel="error of (1/n) h(x) · h(x′), relative")
    ax.grid(alpha=0.3, which="both")
    ax.legend(frameon=False, fontsize=7, ncols=2)
    return {"Moments of the program's vectors against the limit": drawn}
