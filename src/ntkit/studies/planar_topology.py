"""Filling in a shape from its boundary: a U-Net that is nearly right, until the shapes are others.

Connected, branched shapes; the network sees the boundary and is to give the shape (Courtois, Morel, Arias,
Section 6.2, Figures 6 to 10; Morel, Courtois, Arias). A U-Net with six scales is tried in its domain, on
shapes with more branches, and on spirals, nested shapes, several shapes and combs, thin ones and ones drawn
with the stroke of those that it learned from.

Convolutional networks that look only locally, and with global average pooling, self-attention or a
global-context block, are trained alike, on smaller pictures; so is the U-Net with fewer and with more shapes,
and with shapes distorted by affine maps. Beside them stands what can be told from the boundary as it is seen:
by the parity along each row, and by how many lines deep a region lies.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ntkit.compute.progress import progress
from ntkit.data.shapes import OUTSIDE, branched
from ntkit.errors import BadValueError
from ntkit.studies.parts import part
from ntkit.studies.planar_figures import figure as figure
from ntkit.studies.planar_networks import build
from ntkit.studies.planar_shapes import by_depth, by_rows, crossings_per_row, trees, wide_combs, wide_spirals
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, seeded, step

Architecture = Literal["unet", "unet-mse", "local", "gap", "attention", "context"]
QUICK = dict(
    size=32,
    shapes=300,
    tests=60,
    epochs=25,
    channels=8,
    architectures=("unet", "local"),
    compared_shapes=200,
    compared_epochs=6,
    other_shapes=(50,),
    affine=False,
)
WIDE = {"wide spirals": wide_spirals, "wide combs": wide_combs}
BRANCHES = (2, 6, 12, 20, 30)  # the training shapes have 4 to 8
TRICKY = "12 branches"


class Config(StudyConfig):
    """Pictures of 64 x 64 (the paper: 10,000 of 128 x 128); comparisons on pictures of 32 x 32."""

    optimizer: str = optimizer_option("Adam")
    loss: str = loss_option("binary_cross_entropy_with_logits", "pixels, 0 to 1")
    size: int = option(64, "Pixels along each side; a multiple of 32.", low=32, high=512)
    shapes: int = option(2000, "Training shapes.", low=32, high=10**6)
    tests: int = option(200, "Test shapes, and shapes of each kind outside of the domain.", low=8, high=10**5)
    epochs: int = option(20, "Passes over the shapes.", low=1, high=10_000)
    channels: int = option(12, "Channels at the finest scale.", low=1, high=512)
    rate: float = option(4e-3, "Learning rate of Adam, at its largest.", low=1e-6, high=1.0)
    batch: int = option(32, "Shapes in a step.", low=2, high=10**5)
    architectures: tuple[Architecture, ...] = option(
        ("unet", "unet-mse", "local", "gap", "attention", "context"), "Networks that are compared."
    )
    compared_size: int = option(32, "Pixels along each side, in comparisons.", low=32, high=512)
    compared_shapes: int = option(1115, "Training shapes in comparisons; the talk's.", low=32, high=10**6)
    compared_epochs: int = option(
        20, "Passes over them; all are trained for as many steps.", low=1, high=10_000
    )
    other_shapes: tuple[int, ...] = option((250, 4000), "Numbers of shapes for the effect of data.", low=32)
    affine: bool = option(True, "Also with the talk's augmentation by affine maps.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "compared_size"):
            if getattr(self, name) % 32:
                raise BadValueError(
                    f"{name} is {getattr(self, name)}; expected a multiple of 32, for six scales."
                )
        if self.compared_shapes in self.other_shapes:
            raise BadValueError(
                f"other_shapes holds {self.compared_shapes}, which is compared_shapes already."
            )


@dataclass(frozen=True)
class Training:
    """A network and what it is trained on."""

    architecture: str
    size: int
    shapes: int
    steps: int
    affine: bool = False


Scores = dict[str, float]


def run(config: Config) -> Result:
    """Train each network, and measure the intersection over union in and out of the domain."""
    trainings = _trainings(config)
    scores: dict[str, Scores] = {}
    with progress("training (networks)", len(trainings)) as done:
        for name, training in trainings.items():
            if name == "shown":
                scores[name], arrays = part(name, lambda t=training: _shown(config, t))
            else:
                scores[name] = part(name, lambda t=training: _measured(config, t))
            done(1)
    tests = {where: make(config.tests, config.size) for where, make in sets(config).items()}
    for name, solve in (("rows", by_rows), ("depth", by_depth)):
        scores[name] = {
            where: float(iou(torch.tensor(solve(edges)), torch.tensor(shapes)).mean())
            for where, (edges, shapes) in tests.items()
        }
    fill = float(tests["in domain"][1].mean())
    numbers = {
        "scores": scores,
        "weights": {name: _weights(build(name, config.channels)) for name in config.architectures},
        "crossings": {where: float(crossings_per_row(s).mean()) for where, (_, s) in tests.items()},
    }
    return Result(config, _claims(config, scores, fill, arrays), arrays, numbers, (_note(config),))


def _trainings(config: Config) -> dict[str, Training]:
    """Return what is trained: the U-Net that is shown, and on smaller pictures what is compared."""
    size, shapes = config.compared_size, config.compared_shapes
    steps = config.compared_epochs * -(-shapes // config.batch)
    found = {
        "shown": Training(
            "unet", config.size, config.shapes, config.epochs * -(-config.shapes // config.batch)
        )
    }
    found |= {name: Training(name, size, shapes, steps) for name in config.architectures}
    found |= {f"{n:,} shapes": Training("unet", size, n, steps) for n in config.other_shapes}
    if config.affine:
        found["affine"] = Training("unet", size, shapes, steps, affine=True)
    return found


def sets(config: Config) -> dict[str, Callable[[int, int], tuple[np.ndarray, np.ndarray]]]:
    """Return the sets that networks are tried on, as functions of number and size."""
    seed = config.seed
    found = {"in domain": lambda n, size: branched(n, size, seed + 1)}
    found |= {f"{b} branches": lambda n, size, b=b: trees(n, size, seed + 2, b) for b in BRANCHES}
    found |= {
        name: lambda n, size, make=make: make(n, size, seed + 2) for name, make in {**OUTSIDE, **WIDE}.items()
    }
    return found


def _measured(config: Config, training: Training) -> Scores:
    """Train, and return the mean intersection over union on each set."""
    model = train_network(config, training)
    found = {}
    for where, make in sets(config).items():
        edges, shapes = tensors(make(config.tests, training.size), config.device)
        found[where] = float(iou(filled_in(model, edges), shapes).mean())
    return found


def _shown(config: Config, training: Training) -> tuple[Scores, dict[str, np.ndarray]]:
    """Return the same, with pictures of each set (the worst ones outside) and every shape's score."""
    model = train_network(config, training)
    found, arrays = {}, {}
    for where, make in sets(config).items():
        edges, shapes = tensors(make(config.tests, training.size), config.device)
        guess = filled_in(model, edges)
        each = iou(guess, shapes)
        found[where] = float(each.mean())
        chosen = torch.tensor([0, 1]) if where == "in domain" else each.argsort()[[0, 1]].cpu()
        arrays[where] = np.stack([array(t.cpu()[chosen, 0]) for t in (edges, guess, shapes)])
        arrays[f"{where}: each"] = np.stack([array(each), crossings_per_row(array(shapes[:, 0]))])
    return found, arrays


def _claims(
    config: Config, scores: dict[str, Scores], fill: float, arrays: dict[str, np.ndarray]
) -> list[Claim]:
    shown, outside = scores["shown"], [*OUTSIDE, *WIDE]
    inside = shown["in domain"]
    less = float(np.mean([shown[where] for where in outside])) - inside
    least = min(float(arrays[f"{where}: each"][0].min()) for where in outside)
    wide = float(np.mean([shown[where] for where in WIDE])) - inside
    claims = [
        Claim("U-Net: IoU in domain", inside, "99.80 %", low=0.6 if config.changed else 0.97),
        Claim(f"U-Net: IoU, {TRICKY} (4 to 8 in training)", shown[TRICKY], "tricky cases: perfect"),
        Claim(f"U-Net: IoU, {BRANCHES[-1]} branches", shown[f"{BRANCHES[-1]} branches"]),
    ]
    said = {"several shapes": "two or three: fine"}
    claims += [Claim(f"U-Net: IoU, {where}", shown[where], said.get(where, "")) for where in outside]
    claims += [
        Claim("U-Net: least IoU of one shape out of domain", least, "examples: 51 %, 85 %"),
        Claim("U-Net: mean IoU out of domain, less that in domain", less, "< 0", high=-0.05),
        Claim("the same, of shapes drawn with the training's stroke", wide, high=-0.02),
        Claim("part of the picture that shapes fill, mean", fill),
    ]
    for name in config.architectures:
        paper = "impossible" if name == "local" else ""
        claims.append(Claim(f"{name}, trained alike: IoU in domain", scores[name]["in domain"], paper))
    for name, found in scores.items():
        if name == "affine" or name.endswith("shapes"):
            what = "distorted by affine maps" if name == "affine" else name
            mean = float(np.mean([found[where] for where in outside]))
            claims.append(Claim(f"unet, {what}: IoU in domain", found["in domain"]))
            claims.append(Claim(f"unet, {what}: mean IoU out of domain", mean))
    for name, text in (("rows", "parity along rows"), ("depth", "depth of regions")):
        mean = float(np.mean([scores[name][where] for where in outside]))
        claims.append(Claim(f"{text} of the boundary as seen: IoU in domain", scores[name]["in domain"]))
        claims.append(Claim(f"{text} of the boundary as seen: mean IoU out of domain", mean))
    return claims


def _note(config: Config) -> str:
    return (
        f"{config.shapes:,} shapes of {config.size} x {config.size} and {config.epochs} epochs here, 10,000 "
        "of 128 x 128 and 150 epochs in the paper; Adam with a rate that rises and falls once here, Ranger "
        "with a rate divided by ten at plateaus there; the cross entropy (the talk's) here, the mean "
        "square there. "
        f"Comparisons: {config.compared_shapes:,} shapes of {config.compared_size} x {config.compared_size}, "
        f"{config.compared_epochs} epochs, all for as many steps."
    )


def iou(guess: Tensor, shape: Tensor) -> Tensor:
    """Return the intersection over union ``[n]`` of two batches of pictures, cut at one half."""
    a, b = guess.flatten(1) > 0.5, shape.flatten(1) > 0.5
    return (a & b).sum(1) / (a | b).sum(1).clamp_min(1)


def tensors(pair: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    """Return boundaries and shapes ``[n, 1, size, size]`` in [0, 1]."""
    edges, shapes = (torch.tensor(p)[:, None].to(device) for p in pair)
    return edges, shapes.clamp(0, 1)


def train_network(config: Config, training: Training) -> nn.Module:
    """Train on random batches, flipped at random, and maybe distorted, for so many steps."""
    x, y = tensors(branched(training.shapes, training.size, config.seed), config.device)
    with seeded(config.seed):
        model = build(training.architecture, config.channels).to(config.device)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = optimizer_of(config.optimizer, model.parameters(), config.rate)
    moving = bool(
        {"momentum", "betas"} & optimizer.defaults.keys()
    )  # what the schedule turns beside the rate
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.rate, total_steps=training.steps, cycle_momentum=moving
    )
    draw = torch.Generator().manual_seed(config.seed)
    with progress(f"training {training.architecture} (steps)", training.steps) as done:
        made = 0
        while made < training.steps:
            order = torch.randperm(len(x), generator=draw).split(config.batch)
            order = [index for index in order if len(index) > 1]  # batch norm needs two
            for index in order[: training.steps - made]:
                flips = [axis for axis in (2, 3) if torch.rand((), generator=draw) < 0.5]
                edges, shapes = (t[index.to(t.device)].flip(flips) for t in (x, y))
                if training.affine:
                    edges, shapes = _distorted(edges, shapes, draw)
                out = model(edges.contiguous(memory_format=torch.channels_last))
                if training.architecture.endswith("mse"):
                    step(optimizer, functional.mse_loss(torch.sigmoid(out), shapes))
                else:
                    step(optimizer, loss_of(config.loss)(out, shapes))
                schedule.step()
                done(1)
                made += 1
    return model.eval()


def _distorted(edges: Tensor, shapes: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return both pictures of each pair under one random affine map: turned, sheared, scaled, moved."""
    n = len(edges)
    u = torch.rand(5, n, generator=draw) * 2 - 1
    angle, scale, shear = torch.pi * u[0], 1.1 + 0.15 * u[1], 0.2 * u[2]
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).reshape(n, 2, 2)
    skew = torch.eye(2).repeat(n, 1, 1)
    skew[:, 0, 1] = shear
    maps = torch.cat([scale[:, None, None] * (turn @ skew), 0.1 * u[3:].T[:, :, None]], 2)
    grid = functional.affine_grid(maps.to(edges), list(edges.shape), align_corners=False)
    return functional.grid_sample(edges, grid, align_corners=False), functional.grid_sample(
        shapes, grid, align_corners=False
    ).clamp(0, 1)


@torch.no_grad()
def filled_in(model: nn.Module, x: Tensor) -> Tensor:
    """Return what a network gives for boundaries, between 0 and 1."""
    return torch.cat([torch.sigmoid(model(some)) for some in x.split(64)])


def _weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
