"""Filling in a shape from its boundary: a U-Net that is nearly right, until the shapes are others.

Connected, branched shapes; the network sees the boundary and is to give the shape (Courtois, Morel, Arias,
Section 6.2, Figures 6 to 10; Morel, Courtois, Arias). A U-Net with six scales reaches a high intersection
over union in its domain. Spirals, nested shapes, several shapes and combs are solved by the same two lines,
the parity of crossings along each row, but not by the network.

Beside the U-Net stand convolutional networks that look only locally, and with global average pooling,
self-attention or a global-context block, trained alike.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkit.compute.progress import progress
from ntkit.data.shapes import OUTSIDE, branched, crossings, parity
from ntkit.errors import BadValueError
from ntkit.studies.figures import Figures, panels
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import seeded, step

Architecture = Literal["unet", "unet-mse", "local", "gap", "attention", "context"]
QUICK = dict(size=32, shapes=300, tests=60, epochs=25, channels=8, architectures=("unet", "local"))


class Config(StudyConfig):
    """Pictures of 64 x 64 (the paper: 10,000 of 128 x 128)."""

    size: int = option(64, "Pixels along each side; a multiple of 32.", low=32, high=512)
    shapes: int = option(2000, "Training shapes.", low=32, high=10**6)
    tests: int = option(200, "Test shapes, and shapes of each kind outside of the domain.", low=8, high=10**5)
    epochs: int = option(20, "Passes over the shapes.", low=1, high=10_000)
    other_epochs: int = option(
        3, "Passes of all networks but the U-Net with cross entropy.", low=1, high=10**4
    )
    channels: int = option(12, "Channels at the finest scale.", low=1, high=512)
    rate: float = option(4e-3, "Learning rate of Adam, at its largest.", low=1e-6, high=1.0)
    batch: int = option(32, "Shapes in a step.", low=1, high=10**5)
    architectures: tuple[Architecture, ...] = option(
        ("unet", "unet-mse", "local", "gap", "attention", "context"), "Networks; the first is the one shown."
    )


class UNet(nn.Module):
    """A U-Net with six scales: halved five times, and joined on the way up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * min(2**i, 4) for i in range(6)]
        self.down = nn.ModuleList([_block(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True)])
        self.up = nn.ModuleList([_block(widths[i] + widths[i + 1], widths[i]) for i in range(5)])
        self.out = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each pixel."""
        seen = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else functional.max_pool2d(x, 2))
            seen.append(x)
        for i in reversed(range(5)):
            x = functional.interpolate(x, scale_factor=2.0)
            x = self.up[i](torch.cat([seen[i], x], dim=1))
        return self.out(x)


class Flat(nn.Module):
    """Convolutions at one scale, with something in the middle that may look at the whole picture."""

    def __init__(self, channels: int, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle = nn.Sequential(_block(1, channels), _block(channels, channels)), middle
        self.last = nn.Sequential(_block(channels, channels), nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each pixel."""
        return self.last(self.middle(self.first(x)))


class Pooled(nn.Module):
    """Global average pooling, added to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add a function of the mean over pixels."""
        return x + self.mix(x.mean((2, 3)))[:, :, None, None]


class Context(nn.Module):
    """A global-context block: a weighted mean over pixels, added to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, 1, 1)
        self.mix = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add a function of the weighted mean."""
        weights = self.weigh(x).flatten(1).softmax(1)
        mean = torch.einsum("np,ncp->nc", weights, x.flatten(2))
        return x + self.out(self.mix(mean))[:, :, None, None]


class Attention(nn.Module):
    """Self-attention between patches of four by four pixels, added to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, 1, batch_first=True)
        self.place = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among patches that know their place."""
        small = functional.avg_pool2d(x, 4)
        line = torch.linspace(-1, 1, small.shape[-1], device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None].expand(len(x), -1, -1, -1)
        tokens = (small + self.place(grid)).flatten(2).transpose(1, 2)
        mixed, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        return x + functional.interpolate(mixed.transpose(1, 2).reshape(small.shape), scale_factor=4.0)


def build(name: str, channels: int) -> nn.Module:
    """Return an untrained network of the study."""
    if name.startswith("unet"):
        return UNet(channels)
    middles = {"gap": Pooled, "attention": Attention, "context": Context}
    return Flat(2 * channels, middles[name](2 * channels) if name in middles else nn.Identity())


def run(config: Config) -> Result:
    """Train each network, and measure the intersection over union in and out of the domain."""
    if config.size % 32:
        raise BadValueError(f"size is {config.size}; expected a multiple of 32, for six scales.")
    x, y = _tensors(branched(config.shapes, config.size, config.seed), config.device)
    tests = {"in domain": branched(config.tests, config.size, config.seed + 1)}
    tests |= {name: make(config.tests, config.size, config.seed + 2) for name, make in OUTSIDE.items()}
    scores: dict[str, dict[str, float]] = {}
    pictures: dict[str, np.ndarray] = {}
    for i, name in enumerate(config.architectures):
        model = _train(config, name, x, y, config.epochs if i == 0 else config.other_epochs)
        scores[name] = {}
        for where, pair in tests.items():
            edges, shapes = _tensors(pair, config.device)
            guess = _apply(model, edges)
            scores[name][where] = float(iou(guess, shapes).mean())
            if i == 0:
                worst = iou(guess, shapes).argsort()[[0, 1]] if where != "in domain" else torch.tensor([0, 1])
                pictures[where] = np.stack([array(t[worst.to(t.device), 0]) for t in (edges, guess, shapes)])
    first = config.architectures[0]
    shapes = array(y[:100, 0]) > 0.5
    exact = float((parity(crossings(shapes)) == shapes).mean())
    inside, fill = scores[first]["in domain"], float(y.mean())
    outside = {where: scores[first][where] for where in OUTSIDE}
    less = float(np.mean(list(outside.values()))) - inside
    claims = [
        Claim(f"{first}: IoU in domain", inside, "99.80 %", low=0.6 if config.changed else 0.97),
        Claim("part of the picture that shapes fill, mean", fill, low=0.15),
    ]
    for where, score in outside.items():
        claims.append(Claim(f"{first}: IoU, {where}", score, "" if where == "several shapes" else "fails"))
    claims.append(Claim(f"{first}: mean IoU out of domain, less that in domain", less, "< 0", high=-0.05))
    for name in config.architectures[1:]:
        paper = "impossible" if name == "local" else ""
        claims.append(Claim(f"{name}: IoU in domain", scores[name]["in domain"], paper))
    claims.append(Claim("parity of the crossings, pixels that are right", exact, "all", low=1.0))
    note = (
        f"{config.shapes:,} shapes of {config.size} x {config.size} and {config.epochs} epochs here; "
        "10,000 of 128 x 128 and 150 epochs in the paper. Adam stands for Ranger. All networks but the "
        f"first are trained for {config.other_epochs} epochs."
    )
    weights = {n: _weights(build(n, config.channels)) for n in config.architectures}
    numbers = {"scores": scores, "weights": weights}
    return Result(config, claims, pictures, numbers, (note,) if config.shapes < 10_000 else ())


def figure(result: Result) -> Figures:
    """Draw boundaries, answers and shapes, in the domain and where the network fails."""
    a = result.arrays
    drawn, axes = panels(2.2 * len(a) * 2 / 1.6, 5, 3, 2 * len(a))
    for row, kind in enumerate(("boundary", "network", "shape")):
        axes[row][0].set_ylabel(kind)
        for ax, picture in zip(axes[row], (p for triple in a.values() for p in triple[row]), strict=True):
            ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
    for ax, where in zip(axes[0][::2], a, strict=True):
        ax.set_title(where, fontsize=9, loc="left")
    scores = result.numbers["scores"]
    bars, ax = panels(8, 3.8)
    places, width = np.arange(len(a)), 0.8 / len(scores)
    for i, (name, row) in enumerate(scores.items()):
        shift = width * (i - len(scores) / 2 + 0.5)
        ax.bar(places + shift, [row[where] for where in a], width, label=name)
    ax.set_xticks(places, list(a))
    ax.set(ylabel="intersection over union, mean", ylim=(0, 1))
    ax.legend(frameon=False, ncols=3, fontsize=8)
    return {"In the domain, and where it fails": drawn, "Networks compared": bars}


def iou(guess: Tensor, shape: Tensor) -> Tensor:
    """Return the intersection over union ``[n]`` of two batches of pictures, cut at one half."""
    a, b = guess.flatten(1) > 0.5, shape.flatten(1) > 0.5
    return (a & b).sum(1) / (a | b).sum(1).clamp_min(1)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a in (inputs, outputs):
        layers += [nn.Conv2d(a, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def _tensors(pair: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    edges, shapes = (torch.tensor(p)[:, None].to(device) for p in pair)
    return edges, shapes.clamp(0, 1)


def _train(config: Config, name: str, x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    with seeded(config.seed):
        model = build(name, config.channels).to(config.device).to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.Adam(model.parameters(), config.rate)
    steps = epochs * -(-len(x) // config.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.rate, total_steps=steps)
    draw = torch.Generator().manual_seed(config.seed)
    with progress(f"training {name} (steps)", steps) as done:
        for _ in range(epochs):
            for index in torch.randperm(len(x), generator=draw).split(config.batch):
                flips = [axis for axis in (2, 3) if torch.rand((), generator=draw) < 0.5]
                edges, shapes = (t[index.to(t.device)].flip(flips) for t in (x, y))
                edges = edges.contiguous(memory_format=torch.channels_last)
                out = model(edges)
                if name.endswith("mse"):
                    step(optimizer, functional.mse_loss(torch.sigmoid(out), shapes))
                else:
                    step(optimizer, functional.binary_cross_entropy_with_logits(out, shapes))
                schedule.step()
                done(1)
    return model.eval()


@torch.no_grad()
def _apply(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([torch.sigmoid(model(part)) for part in x.split(64)])


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
