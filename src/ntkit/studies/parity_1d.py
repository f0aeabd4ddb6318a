"""A network whose structure is that of the parity algorithm: set by hand, disturbed, and trained.

The structure adds pairs modulo two, u + v (mod 2) = relu(u - v) + relu(v - u), level by level: a convolution
to r channels with stride two, a ReLU, a convolution to one channel, log2(p) times (Courtois, Morel, Arias,
Section 6.1, Figure 8). Applied to every prefix of a sequence it fills in the shape between its peaks.

Three questions: whether it is exact when set by hand; whether training finds the way back from the exact
weights plus noise, w* + sigma N(0, 1); and how many of the networks that are trained from random weights on
one number of peaks find the algorithm, so that they fill in any number. The last is counted over seeds, for
r channels, for own weights in each level, a wider kernel, and more layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional

from ntkit.compute.progress import progress
from ntkit.data.parity import filled, peaks
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.errors import BadValueError
from ntkit.studies.figures import Figures, panels
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, seeded, step

QUICK = dict(
    channels=(16,), seeds=3, training_peaks=(10,), steps=1500, near_seeds=2, long_seeds=0, variants=False
)
FOUND = 1e-5  # mean squared error below which a network counts as having found the algorithm
STATISTICS = {"median": np.median, "best": min}  # over seeds
MORE = {4: "1e-4", 10: "1e-3", 20: "1e-2"}  # the paper's errors with more layers, trained on 10 peaks


class Config(StudyConfig):
    """The sweep at p = 32, and the paper's p = 128 for r = 16."""

    optimizer: str = optimizer_option("Adam")
    loss: str = loss_option("mse_loss")
    p: int = option(32, "Length of the sequences of the sweep; a power of two.", low=4, high=1024)
    samples: int = option(10_000, "Training sequences.", low=1, high=10**6)
    channels: tuple[int, ...] = option((2, 4, 8, 16), "Channels r of the sweep.", low=1)
    seeds: int = option(5, "Seeds of each setting.", low=1, high=1000)
    training_peaks: tuple[int, ...] = option((4, 10), "Peaks l of the training sequences.", low=1)
    test_peaks: tuple[int, ...] = option((4, 10, 20), "Peaks of the test sequences.", low=1)
    steps: int = option(2000, "Steps of Adam.", low=1, high=10**6)
    rate: float = option(0.01, "Learning rate.", low=1e-6, high=1.0)
    batch: int = option(256, "Random prefixes in a step.", low=1, high=10**6)
    sigmas: tuple[float, ...] = option((0.1, 0.5), "Noise on the exact weights, r = 2.", low=0.0)
    near_seeds: int = option(4, "Seeds of each such noise.", low=1, high=1000)
    variants: bool = option(True, "Also own weights in each level, a wider kernel, more layers.")
    long: int = option(128, "Length of the sequences of the longer runs; a power of two.", low=4, high=1024)
    long_seeds: int = option(4, "Seeds of the longer runs, r = 16.", low=0, high=1000)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("p", "long"):
            length = getattr(self, name)
            if length & (length - 1):
                raise BadValueError(f"{name} is {length}; expected a power of two: 4, 8, 16, 32, ...")
        shortest = min(self.p, self.long) if self.long_seeds else self.p
        for name in ("training_peaks", "test_peaks"):
            most = max(getattr(self, name))
            if most > shortest:
                raise BadValueError(
                    f"{name} holds {most}; a sequence of length {shortest} has room for at most {shortest}. "
                    f"Give fewer peaks, or longer sequences."
                )


@dataclass(frozen=True)
class Setting:
    """Networks that are trained alike, from several seeds; what the paper says, and bars on how many."""

    name: str
    p: int
    options: dict[str, Any]
    seeds: int
    peaks: int
    paper: str
    low: float | None = None
    high: float | None = None


class Structure(nn.Module):
    """The parity of a sequence ``[n, p]`` as ``[n]``: log2(p) levels, shared or each with its own weights.

    ``kernel`` is the width of the first convolution of a level, ``more`` the number of convolutions between
    its two.
    """

    def __init__(self, p: int, r: int, *, shared: bool = True, kernel: int = 2, more: int = 0) -> None:
        super().__init__()
        self.levels = p.bit_length() - 1
        self.kernel = kernel

        def level() -> nn.Module:
            middle = [m for _ in range(more) for m in (nn.Conv1d(r, r, 3, padding=1, bias=False), nn.ReLU())]
            first, last = nn.Conv1d(1, r, kernel, stride=2, bias=False), nn.Conv1d(r, 1, 1, bias=False)
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
    model = Structure(p, r)
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
    """Check the structure set by hand, disturb it, train it, and measure in and out of domain."""
    draw = torch.Generator().manual_seed(config.seed)
    exact = _error(by_hand(config.long), (torch.rand(2000, config.long, generator=draw) < 0.5).float())
    settings = _settings(config)
    table: dict[str, list[dict[int, float]]] = {}
    with progress("training (networks)", sum(each.seeds for each in settings)) as done:
        for each in settings:
            table[each.name] = []
            counts = sorted({*config.test_peaks, each.peaks})
            for s in range(each.seeds):

                def tests(each=each, s=s, counts=counts) -> dict[int, float]:
                    model = _train(config, each, config.seed + s)
                    return {c: _error(model, peaks(200, each.p, c, 10_000 + c)) for c in counts}

                table[each.name].append(part(f"{each.name}, seed {s}", tests))
                done(1)
    counts = sorted({*config.test_peaks, *config.training_peaks})
    errors = [[[t.get(c, np.nan) for t in found] for c in counts] for found in table.values()]
    arrays = {how: [[each(e) for e in row] for row in errors] for how, each in STATISTICS.items()}
    numbers = {"names": list(table), "errors": table}
    return Result(
        config, _claims(config, exact, table), {**arrays, "peaks": counts}, numbers, _notes(config, table)
    )


def _claims(config: Config, exact: float, table: dict[str, list[dict[int, float]]]) -> list[Claim]:
    best, furthest = config.training_peaks[-1], max(config.test_peaks)
    wide = f"r = {max(config.channels)}, {best} peaks"
    near, far = (min(tests[count] for tests in table[wide]) for count in (best, furthest))
    claims = [
        Claim(f"error of the structure set by hand, p = {config.long}, r = 2", exact, "0", high=0.0),
        Claim(f"{wide}: best of {config.seeds} seeds, MSE", near, "converges", high=FOUND),
        Claim(f"{wide}: the same on {furthest} peaks", far, "1e-7", high=FOUND),
    ]
    for each in _settings(config):
        found = table[each.name]
        claims.append(
            Claim(
                f"{each.name}: seeds that found it, of {len(found)}",
                _solved(found),
                each.paper,
                low=each.low,
                high=each.high,
            )
        )
        if "more" in each.options and each.peaks == 10:
            claims += [
                Claim(
                    f"{each.name}: error on {c} peaks, median", float(np.median([t[c] for t in found])), paper
                )
                for c, paper in MORE.items()
                if all(c in t for t in found)
            ]
    return claims


def _solved(found: list[dict[int, float]]) -> int:
    """Return how many networks are right on every number of peaks that they were tested on."""
    return sum(max(tests.values()) <= FOUND for tests in found)


def _notes(config: Config, table: dict[str, list[dict[int, float]]]) -> tuple[str, ...]:
    """Say how often each number of channels found the algorithm."""
    parts = []
    for r in config.channels:
        runs = [t for name, found in table.items() if name.startswith(f"r = {r},") for t in found]
        parts.append(f"{_solved(runs)} of {len(runs)} with r = {r}")
    return (
        f"From random weights the algorithm was found by {', '.join(parts)}; the paper has all of them for "
        "r >= 8 and none below.",
    )


def figure(result: Result) -> Figures:
    """Draw the structure, and the error against the number of peaks, best seed and median."""
    names, a = result.numbers["names"], result.arrays
    drawn, ax = panels(8.5, 0.32 * len(names) + 1.6)
    rows, colors = np.arange(len(names)), (BLUE, ORANGE, GREEN)
    for i, count in enumerate(a["peaks"]):
        shift = 0.6 * ((i + 0.5) / len(a["peaks"]) - 0.5)
        for how, marker, size, text in (("best", "o", 5, "best seed"), ("median", "|", 10, "median")):
            shown, label = np.maximum(a[how][:, i], 1e-16), f"{count} peaks, {text}"
            color = colors[i] if i < 3 else f"C{i}"
            ax.plot(shown, rows + shift, marker, color=color, ms=size, label=label)
    ax.set_yticks(rows, names)
    ax.invert_yaxis()
    ax.set(xscale="log", xlabel="mean squared error over all prefixes (1e-16: zero)")
    ax.axvline(FOUND, color="0.6", lw=1)
    ax.grid(alpha=0.3, axis="x")
    ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    error = "Error inside and outside the number of peaks of the training"
    return {"The structure": draw_structure(), error: drawn}


def draw_structure(bits: tuple[int, ...] = (0, 1, 0, 0, 1, 1, 0, 0)) -> Figure:
    """Draw the structure at work on a short sequence: pairs added modulo two until one number is left."""
    drawn, ax = panels(8.5, 3.4)
    levels, places = [np.array(bits)], [np.arange(len(bits), dtype=float)]
    while len(levels[-1]) > 1:
        levels.append(levels[-1].reshape(-1, 2).sum(1) % 2)
        places.append(places[-1].reshape(-1, 2).mean(1))
    for y, (values, x) in enumerate(zip(levels, places, strict=True)):
        for i, (value, at) in enumerate(zip(values, x, strict=True)):
            box = {"boxstyle": "square,pad=0.5", "fc": BLUE if value else "white", "ec": "0.3"}
            ax.text(at, y, str(value), color="white" if value else "0.2", ha="center", va="center", bbox=box)
            if y + 1 < len(levels):
                above = places[y + 1][i // 2]
                sign = "u" if i % 2 == 0 else "v"
                ax.plot([at, above], [y + 0.25, y + 0.75], color="0.5", lw=1, zorder=0)
                ax.text(
                    (at + above) / 2,
                    y + 0.5,
                    sign,
                    fontsize=8,
                    color="0.4",
                    ha="center",
                    va="center",
                    bbox={"fc": "white", "ec": "none", "pad": 1},
                )
        text = "sequence" if y == 0 else f"level {y}" + (": parity" if len(values) == 1 else "")
        ax.text(-0.8, y, text, ha="right", va="center")
    ax.text(
        len(bits) - 0.2,
        1.5,
        "each level, the same weights:\nconvolution to r channels, stride 2\nReLU\n"
        "convolution to 1 channel\n\n"
        "exact for r = 2:\nrelu(u − v) + relu(v − u)",
        va="center",
        fontsize=9,
    )
    ax.set(xlim=(-2.6, len(bits) + 3.6), ylim=(-0.5, len(levels) - 0.5))
    ax.axis("off")
    return drawn


def _settings(config: Config) -> list[Setting]:
    """Return what is trained."""
    settings = [
        Setting(f"r = {r}, {c} peaks", config.p, {"r": r}, config.seeds, c, "none" if r < 8 else "all")
        for r in config.channels
        for c in config.training_peaks
    ]
    r, c = max(config.channels), config.training_peaks[-1]
    if config.variants:
        for name, more, paper in (
            ("own weights in each level", {"shared": False}, "all"),
            ("wider kernel", {"kernel": 3}, "none"),
            ("more layers", {"more": 1}, "not the optimum"),
        ):
            settings.append(
                Setting(
                    f"{name}, r = {r}", config.p, {"r": r, **more}, config.seeds, c, paper if r >= 8 else ""
                )
            )
    seeds = config.near_seeds
    for sigma in config.sigmas:
        near, paper = {"r": 2, "sigma": sigma}, "converges for sigma < 0.1" if sigma <= 0.1 else ""
        low, high = (seeds if sigma <= 0.1 else None), (seeds // 4 if sigma >= 0.5 and seeds >= 4 else None)
        settings.append(Setting(f"w* + {sigma:g} N(0, 1), r = 2", config.p, near, seeds, c, paper, low, high))
    if config.long_seeds:
        name = f"p = {config.long}, r = 16"
        settings.append(Setting(name, config.long, {"r": 16}, config.long_seeds, c, "all", low=1))
    return settings


def _train(config: Config, setting: Setting, seed: int) -> Structure:
    p, options = setting.p, dict(setting.options)
    sigma = options.pop("sigma", None)
    with seeded(seed):
        model = Structure(p, **options) if sigma is None else by_hand(p, **options)
        for w in model.parameters():
            if sigma is None:
                nn.init.kaiming_normal_(w)
            else:
                w.data.add_(sigma * torch.randn_like(w))
        model.to(config.device)
        x = peaks(config.samples, p, setting.peaks, seed + 1)
        y = filled(x).to(config.device)
        padded = functional.pad(x, (p, 0)).to(config.device)
        optimizer = optimizer_of(config.optimizer, model.parameters(), config.rate)
        for _ in range(config.steps):
            which = torch.randint(len(x), (config.batch,))
            k = torch.randint(1, p + 1, (config.batch,))
            window = k[:, None] + torch.arange(p)
            step(optimizer, loss_of(config.loss)(model(padded[which[:, None], window]), y[which, k - 1]))
    return model


@torch.no_grad()
def _error(model: Structure, x: Tensor) -> float:
    """Return the mean squared error over all prefixes of sequences."""
    device = next(model.parameters()).device
    total = 0.0
    for some in x.split(100):
        every = prefixes(some).to(device)
        out = model(every.flatten(0, 1)).reshape(some.shape)
        total += float(((out - filled(some).to(device)) ** 2).sum())
    return total / x.numel()
