"""Which training shapes made a U-Net fill in one pixel, of a shape like them and of a spiral where it fails.

Courtois, Morel, Arias, Section 6.3: "we were not able to compute" the two-dimensional kernel. Here are both:
the exact account of the pixel's logit over the whole training (batch norm, RAdam with Lookahead, minibatches,
binary cross entropy), and the tangent kernel of the trained network at that pixel over the training shapes.
"""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import ntkit
from ntkit.data.shapes import branched, spirals
from ntkit.studies.figures import Figures, panels
from ntkit.studies.planar_networks import UNet
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, seeded

QUICK = {"shapes": 48, "epochs": 2, "channels": 2}
SHOWN = 5  # training shapes on each side
NEAR = 20  # nearest shapes whose pixel is looked at
PERIOD, BACK = 5, 0.5  # Lookahead: after so many steps, to that part of the way


class Config(StudyConfig):
    """Pictures of 32 x 32, and a U-Net of 42,489 weights."""

    optimizer: str = optimizer_option("RAdam")
    loss: str = loss_option("binary_cross_entropy_with_logits", "pixels, 0 to 1")
    size: int = option(32, "Pixels along each side; a multiple of 32.", low=32, high=128)
    shapes: int = option(300, "Training shapes.", low=8, high=10**5)
    spirals: int = option(40, "Spirals among which the failing one is looked for.", low=1, high=10**4)
    epochs: int = option(20, "Passes over the shapes.", low=1, high=10_000)
    channels: int = option(4, "Channels at the finest scale.", low=1, high=64)
    rate: float = option(4e-3, "Learning rate of RAdam.", low=1e-6, high=1.0)
    batch: int = option(32, "Shapes in a step.", low=2, high=10**5)
    tol: float = option(1e-2, "Residual allowed, in units of the movement.", low=1e-6, high=1.0)


class AtPixel(nn.Module):
    """A network of pictures as one of a single output: its logit at one pixel."""

    def __init__(self, net: nn.Module, pixel: int) -> None:
        super().__init__()
        self.net, self.pixel = net, pixel

    def forward(self, x: Tensor) -> Tensor:
        """Return the logit ``[n, 1]``."""
        return self.net(x).flatten(1)[:, self.pixel, None]


def run(config: Config) -> Result:
    """Train, find a pixel of a spiral that is wrong, and account for it."""
    device = config.device
    x, y = _shapes(branched(config.shapes, config.size, config.seed), device)
    near, near_y = _shapes(branched(config.shapes, config.size, config.seed + 1), device)
    far, far_y = _shapes(spirals(config.spirals, config.size, config.seed + 2), device)
    with seeded(config.seed):
        net = UNet(config.channels).to(device)
    with tempfile.TemporaryDirectory() as folder:
        _train(config, net, x, y, folder + "/run")
        net.eval()
        with torch.no_grad():
            inside, outside = net(near), net(far)
        spiral, shape, pixel = _failing(outside, far_y, inside, near_y)
        queries = torch.stack([near[shape], far[spiral]])
        truth = torch.stack([near_y[shape], far_y[spiral]])
        loss = loss_of(config.loss)
        options = {"train": (x, y), "queries": queries, "target": [pixel], "tol": config.tol}
        a = ntkit.account(folder + "/run", net, loss, **options)
    kernel = ntkit.EmpiricalNTK(AtPixel(net, pixel)).normalized()(queries, x).cpu()
    label = y.flatten(1)[:, pixel].cpu() > 0.5
    wanted = truth.flatten(1)[:, pixel].cpu() > 0.5
    nearest = kernel.argsort(dim=1, descending=True)[:, :NEAR]
    share = (label[nearest] == wanted[:, None]).double().mean(1).tolist()
    known, changes = _iou(inside, near_y), (a.prediction - a.initial)[:, 0]
    claims = [
        Claim("IoU of held-out shapes", known, low=None if config.changed else 0.6),
        Claim(
            "IoU of spirals less that", _iou(outside, far_y) - known, high=None if config.changed else -0.1
        ),
        Claim("the account: residual / movement", a.relative_residual, high=config.tol),
        Claim(
            "the account: absolute residuals of steps / movement",
            float(a.unsigned.max() / changes.abs().max()),
        ),
    ]
    words = ("the shape", "the spiral")
    claims += [
        Claim(f"{NEAR} nearest training shapes by the kernel: pixel as that of {word}", value)
        for word, value in zip(words, share, strict=True)
    ]
    columns = ("contributions", "buffers", "decay", "rounding", "residual")
    for i, word in enumerate(words):
        parts = {name: getattr(a, name)[i] for name in columns}
        parts["contributions"] = parts["contributions"].sum(-1)
        told = ", ".join(f"{name} {float(value):+.3g}" for name, value in parts.items())
        claims.append(Claim(f"logit of {word}, prediction less initial ({told})", float(changes[i])))
    arrays = {
        "queries": queries[:, 0].cpu(),
        "truth": truth[:, 0].cpu(),
        "guess": torch.sigmoid(torch.stack([inside[shape], outside[spiral]]))[:, 0].cpu(),
        "contributions": a.contributions[:, 0],
        "kernel": kernel,
        "shapes": y[:, 0].cpu(),
        "pixel": torch.tensor(divmod(pixel, config.size)),
    }
    return Result(config, tuple(claims), arrays)


def figure(result: Result) -> Figures:
    """Draw the shapes that pushed the pixel most, by the account, and the nearest ones, by the kernel."""
    arrays = {name: np.asarray(value) for name, value in result.arrays.items()}
    row, column = arrays["pixel"]
    drawn, near = (panels(12.5, 2.9, 2, 3 + 2 * SHOWN) for _ in range(2))
    for i in range(2):
        first = {"boundary": "queries", "filled in": "guess", "truth": "truth"}
        for axes in (drawn[1][i], near[1][i]):
            for ax, (title, name) in zip(axes[:3], first.items(), strict=True):
                _picture(ax, arrays[name][i], title, (row, column))
        pushes, similar = arrays["contributions"][i], arrays["kernel"][i]
        order = pushes.argsort()
        ends = [*order[::-1][:SHOWN], *order[:SHOWN]]
        for ax, k in zip(drawn[1][i][3:], ends, strict=True):
            _picture(ax, arrays["shapes"][k], f"{pushes[k]:+.3f}", (row, column))
        for ax, k in zip(near[1][i][3:], similar.argsort()[::-1][: 2 * SHOWN], strict=True):
            _picture(ax, arrays["shapes"][k], f"{similar[k]:.2f}", (row, column))
    return {
        "What made the logit of the marked pixel: towards inside, then towards outside": drawn[0],
        "The nearest training shapes by the tangent kernel at the marked pixel": near[0],
    }


def _picture(ax: Axes, picture: np.ndarray, title: str, pixel: tuple[int, int]) -> None:
    ax.imshow(picture, cmap="gray_r", vmin=0, vmax=1)
    ax.plot(pixel[1], pixel[0], "o", mfc="none", mec="C1", ms=6, mew=1.4)
    ax.set_title(title, fontsize=7)
    ax.set(xticks=[], yticks=[])


def _train(config: Config, net: nn.Module, x: Tensor, y: Tensor, folder: str) -> None:
    optimizer = optimizer_of(config.optimizer, net.parameters(), config.rate)
    slow = [p.detach().clone() for p in net.parameters()]
    draw = torch.Generator().manual_seed(config.seed)
    count = 0
    with ntkit.record(folder, net, optimizer, train=(x, y), lookahead=PERIOD) as recorded:
        for _ in range(config.epochs):
            for index in torch.randperm(len(x), generator=draw).split(config.batch):
                recorded.batch(index)
                optimizer.zero_grad()
                loss_of(config.loss)(net(x[index]), y[index]).backward()
                optimizer.step()
                count += 1
                if count % PERIOD == 0:
                    with torch.no_grad():
                        for p, s in zip(net.parameters(), slow, strict=True):
                            p.copy_(s.add_(p - s, alpha=BACK))


def _failing(outside: Tensor, far: Tensor, inside: Tensor, near: Tensor) -> tuple[int, int, int]:
    """Return a spiral, a shape and a pixel: wrong in the one, right in the other, by the largest margin."""
    signs, others = (2 * t.flatten(1) - 1 for t in (far, near))
    wrong = -(outside.flatten(1) * signs)  # [spirals, pixels]: how far on the wrong side
    right = inside.flatten(1) * others
    most, spiral = wrong.max(0)
    alike = right.masked_fill(others != signs[spiral].diagonal()[None], -torch.inf)
    best, shape = alike.max(0)
    pixel = int(torch.minimum(most, best).argmax())
    return int(spiral[pixel]), int(shape[pixel]), pixel


def _iou(guess: Tensor, truth: Tensor) -> float:
    a, b = guess.flatten(1) > 0, truth.flatten(1) > 0.5
    return float(((a & b).sum(1) / (a | b).sum(1).clamp_min(1)).mean())


def _shapes(pair: tuple[np.ndarray, np.ndarray], device: str) -> tuple[Tensor, Tensor]:
    edges, shapes = (torch.tensor(part)[:, None].to(device) for part in pair)
    return edges.float(), shapes.clamp(0, 1).float()
