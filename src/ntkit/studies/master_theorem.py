"""The vectors of a tensor program as its widths grow: their empirical moments against the limit.

For networks of four kinds, drawn at random, the inner products (1/n) h(x) . h(x') of the vector behind the
last matrix are compared with the expectation that the limit takes in their place (Cappelletti, Theorem 2.2
and Figure 1, after Yang). Single draws are off by width^(-1/2), whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import slope

QUICK = {"widths": (32, 128, 512), "draws": 6}


class Config(StudyConfig):
    """Networks of four kinds on a few random inputs."""

    widths: tuple[int, ...] = option((32, 64, 128, 256, 512, 1024), "Widths.", low=4, least=2)
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
        self.take = nn.Linear(3, width)
        self.keep = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, 1)

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


Make = Callable[[int], nn.Module]
KINDS: dict[str, Make] = {"MLP": mlp, "CNN": cnn, "RNN": Recurrent, "attention": Attention}


def run(config: Config) -> Result:
    """Draw networks of each kind and width, and compare their moments with the limit's."""
    draws, draw = config.draws, torch.Generator().manual_seed(config.seed)
    x = torch.randn(config.inputs, 4, 3, generator=draw, dtype=torch.float64).to(config.device)
    single, mean, slopes, scaled = {}, {}, {}, {}
    with progress("drawing networks (kinds x widths)", len(KINDS) * len(config.widths)) as done:
        for name, make in KINDS.items():
            model = make(config.widths[0]).double().to(config.device)
            exact = ntkit.infinite_width(model, x[:1], 2**0.5, 0.1).nngp(x).cpu()
            single[name], mean[name] = [], []
            for width in config.widths:
                model = make(width).double().to(config.device)
                estimate = ntkit.monte_carlo(model, draws, x, sigma_w=2**0.5, sigma_b=0.1, seed=config.seed)
                spread = estimate.nngp_error.cpu() * draws**0.5
                bias = estimate.nngp.cpu() - exact
                single[name].append(float((spread**2 + bias**2).sum().sqrt() / exact.norm()))
                mean[name].append(float(bias.norm() / exact.norm()))
                scaled[name] = float((bias.abs() / (estimate.nngp_error.cpu() + 1e-12 * exact.abs())).max())
                done(1)
            slopes[name] = slope(config.widths, single[name])
    wide, off = config.widths[-1], f"mean of {draws} draws off by standard errors"
    steep = "slope of a draw's error in width"
    claims = [Claim(f"{n}: {steep}", s, low=-0.7, high=-0.3) for n, s in slopes.items()]
    claims += [Claim(f"{n}: error of a draw, width {wide}", e[-1], "→ 0") for n, e in single.items()]
    claims += [Claim(f"{n}: {off}", s, high=5.0) for n, s in scaled.items()]
    arrays = {f"{n}, one draw": v for n, v in single.items()} | {f"{n}, mean": v for n, v in mean.items()}
    return Result(config, claims, {"widths": config.widths, **arrays, "inputs": x})


def figure(result: Result) -> Figures:
    """Draw the errors of single draws, and of their means."""
    a = result.arrays
    drawn, ax = panels(6, 4.2)
    for i, name in enumerate(KINDS):
        one, mean = a[f"{name}, one draw"], a[f"{name}, mean"]
        ax.loglog(a["widths"], one, "o-", color=f"C{i}", label=f"{name}, one draw")
        ax.loglog(a["widths"], mean, ":", color=f"C{i}", lw=1.3, label=f"{name}, mean of the draws")
    finish(ax, xlabel="width n", ylabel="error of (1/n) h(x) · h(x′), relative", grid="both")
    ax.legend(frameon=False, fontsize=7, ncols=2)
    return {"Moments of the program's vectors against the limit": drawn}
