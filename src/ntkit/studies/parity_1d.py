"""A network whose structure is that of the parity algorithm: set by hand, and trained.

The structure adds pairs modulo two, u + v (mod 2) = relu(u - v) + relu(v - u), level by level: a convolution
to r channels with stride two, a ReLU, a convolution to one channel, log2(p) times (Courtois, Morel, Arias,
Section 6.1, Figure 8). Applied to every prefix of a sequence it fills in the shape between its peaks.

Set by hand it is exact. Trained on sequences with one number of peaks it finds the algorithm for some seeds,
and then fills in any number of peaks; with wider kernels or more layers it does not, or only nearly. What is
a property of the structure and what is a lottery of seeds is in the rates.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkit.compute.progress import progress
from ntkit.data.parity import filled, peaks
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.studies.figures import Figures, panels
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import seeded, step

QUICK = dict(channels=(16,), seeds=3, training_peaks=(10,), steps=1500, long_seeds=0, variants=False)
STATISTICS = {"median": np.median, "best": min}  # over seeds


class Config(StudyConfig):
    """The sweep at p = 32, and the paper's p = 128 for r = 16."""

    p: int = option(32, "Length of the sequences of the sweep; a power of two.", low=4, high=1024)
    samples: int = option(10_000, "Training sequences.", low=1, high=10**6)
    channels: tuple[int, ...] = option((2, 4, 8, 16), "Channels r of the sweep.", low=1)
    seeds: int = option(5, "Seeds of each setting.", low=1, high=1000)
    training_peaks: tuple[int, ...] = option((4, 10), "Peaks l of the training sequences.", low=1)
    test_peaks: tuple[int, ...] = option((4, 10, 20), "Peaks of the test sequences.", low=1)
    steps: int = option(2000, "Steps of Adam.", low=1, high=10**6)
    rate: float = option(0.01, "Learning rate.", low=1e-6, high=1.0)
    batch: int = option(256, "Random prefixes in a step.", low=1, high=10**6)
    variants: bool = option(True, "Also own weights in each level, a wider kernel, more layers.")
    long: int = option(128, "Length of the sequences of the longer runs.", low=4, high=1024)
    long_seeds: int = option(4, "Seeds of the longer runs, r = 16.", low=0, high=1000)


class Structure(nn.Module):
    """The parity of a sequence ``[n, p]`` as ``[n]``: log2(p) levels, shared or each with its own weights.

    ``kernel`` is the width of the first convolution of a level, ``more`` the number of convolutions between
    its two.
    """

    def __init__(
        self, p: int, r: int, *, shared: bool = True, bias: bool = False, kernel: int = 2, more: int = 0
    ) -> None:
        super().__init__()
        self.levels = p.bit_length() - 1
        self.kernel = kernel

        def level() -> nn.Module:
            middle = [m for _ in range(more) for m in (nn.Conv1d(r, r, 3, padding=1, bias=bias), nn.ReLU())]
            first, last = nn.Conv1d(1, r, kernel, stride=2, bias=bias), nn.Conv1d(r, 1, 1, bias=bias)
            return nn.Sequential(first, nn.ReLU(), *middle, last)

        self.level = nn.ModuleList([level() for _ in range(1 if shared else self.levels)])

    def forward(self, x: Tensor) -> Tensor:
        """Add pairs modulo two until one number is left."""
        x = x[:, None]
        for i in range(self.levels):
            x = self.level[i % len(self.level)](functional.pad(x, (0, self.kernel - 2)))
        return x[:, 0, 0]


def by_hand(p: int, r: int = 2) -> Structure:
    """Return the exact structure: relu(u - v) + relu(v - u), the further channels being zero."""
    model = Structure(p, r, bias=True)
    with torch.no_grad():
        for w in model.parameters():
            w.zero_()
        level = cast(nn.Sequential, model.level[0])
        first, last = cast(nn.Conv1d, level[0]), cast(nn.Conv1d, level[-1])
        first.weight[:2, 0] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        last.weight[0, :2, 0] = 1.0
    return model


def prefixes(x: Tensor) -> Tensor:
    """Return every prefix of sequences ``[n, p]``, padded with zeros on the left, ``[n, p, p]``."""
    p = x.shape[1]
    padded = functional.pad(x, (p, 0))
    return torch.stack([padded[:, k : k + p] for k in range(1, p + 1)], dim=1)


def run(config: Config) -> Result:
    """Check the structure set by hand, sweep the trained ones, and measure in and out of domain."""
    draw = torch.Generator().manual_seed(config.seed)
    exact = _error(by_hand(config.long), (torch.rand(2000, config.long, generator=draw) < 0.5).float())
    settings = _settings(config)
    table: dict[str, list[dict[int, float]]] = {}
    with progress("training (networks)", sum(s[3] for s in settings)) as done:
        for name, p, options, seeds, train_peaks in settings:
            table[name] = []
            for s in range(seeds):
                model = _train(config, p, options, train_peaks, config.seed + s)
                tests = {c: _error(model, peaks(200, p, c, 10_000 + c)) for c in config.test_peaks if c <= p}
                table[name].append(tests)
                done(1)
    best, furthest = config.training_peaks[-1], max(c for c in config.test_peaks if c <= config.p)
    wide = f"r = {max(config.channels)}, {best} peaks"
    near, far = (min(tests[count] for tests in table[wide]) for count in (best, furthest))
    claims = [
        Claim(f"error of the structure set by hand, p = {config.long}, r = 2", exact, "0", high=0.0),
        Claim(f"{wide}: best of {config.seeds} seeds, MSE", near, "converges", high=1e-5),
        Claim(f"{wide}: the same on {furthest} peaks", far, "1e-7", high=1e-5),
    ]
    for name, found in table.items():
        paper = "0" if "r = 2," in name or "r = 4," in name else "all"
        if "wider" in name:
            paper = "none"
        if "more layers" in name:
            paper = "low error"
        solved = sum(tests[max(tests)] <= 1e-5 for tests in found)
        low = 1 if name.startswith("p =") else None
        claims.append(Claim(f"{name}: seeds that found it, of {len(found)}", solved, paper, low=low))
    errors = [[[t.get(c, np.nan) for t in found] for c in config.test_peaks] for found in table.values()]
    arrays = {how: [[each(e) for e in row] for row in errors] for how, each in STATISTICS.items()}
    notes = (
        "That r >= 8 always and r < 8 never converges is not reproduced as stated: it is a lottery of seeds "
        "whose odds grow with r.",
    )
    numbers = {"names": list(table), "errors": table}
    return Result(config, claims, {**arrays, "peaks": config.test_peaks}, numbers, notes)


def figure(result: Result) -> Figures:
    """Draw the error against the number of peaks, best seed and median."""
    names, a = result.numbers["names"], result.arrays
    drawn, ax = panels(8.5, 0.32 * len(names) + 1.6)
    rows = np.arange(len(names))
    for i, (count, color) in enumerate(zip(a["peaks"], (BLUE, ORANGE, GREEN), strict=False)):
        for how, marker, size, text in (("best", "o", 5, "best seed"), ("median", "|", 10, "median")):
            shown, label = np.maximum(a[how][:, i], 1e-16), f"{count} peaks, {text}"
            ax.plot(shown, rows + 0.2 * (i - 1), marker, color=color, ms=size, label=label)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="mean squared error over all prefixes (1e-16: zero)")
    ax.axvline(1e-5, color="0.6", lw=1)
    ax.grid(alpha=0.3, axis="x")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return {"Error inside and outside the number of peaks of the training": drawn}


def _settings(config: Config) -> list[tuple[str, int, dict, int, int]]:
    """Return name, length, options, seeds and training peaks of each setting."""
    settings = [
        (f"r = {r}, {c} peaks", config.p, {"r": r}, config.seeds, c)
        for r in config.channels
        for c in config.training_peaks
    ]
    r, c = max(config.channels), config.training_peaks[-1]
    if config.variants:
        settings += [
            (f"own weights in each level, r = {r}", config.p, {"r": r, "shared": False}, config.seeds, c),
            (f"wider kernel, r = {r}", config.p, {"r": r, "kernel": 3}, config.seeds, c),
            (f"more layers, r = {r}", config.p, {"r": r, "more": 1}, config.seeds, c),
        ]
    if config.long_seeds:
        settings.append((f"p = {config.long}, r = 16", config.long, {"r": 16}, config.long_seeds, c))
    return settings


def _train(config: Config, p: int, options: dict, count: int, seed: int) -> Structure:
    with seeded(seed):
        model = Structure(p, **options)
        for name, w in model.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(w)
            else:
                nn.init.kaiming_normal_(w)
        model.to(config.device)
        x = peaks(config.samples, p, min(count, p), seed + 1)
        y = filled(x).to(config.device)
        padded = functional.pad(x, (p, 0)).to(config.device)
        optimizer = torch.optim.Adam(model.parameters(), config.rate)
        for _ in range(config.steps):
            which = torch.randint(len(x), (config.batch,))
            k = torch.randint(1, p + 1, (config.batch,))
            window = k[:, None] + torch.arange(p)
            step(optimizer, functional.mse_loss(model(padded[which[:, None], window]), y[which, k - 1]))
    return model


@torch.no_grad()
def _error(model: Structure, x: Tensor) -> float:
    """Return the mean squared error over all prefixes of sequences."""
    device = next(model.parameters()).device
    total = 0.0
    for part in x.split(100):
        every = prefixes(part).to(device)
        out = model(every.flatten(0, 1)).reshape(part.shape)
        total += float(((out - filled(part).to(device)) ** 2).sum())
    return total / x.numel()
