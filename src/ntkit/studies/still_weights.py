"""Weights that stay where they are drawn, as the network widens.

ReLU networks with two hidden layers in the NTK parameterization learn x1 x2 on Gaussian inputs by gradient
descent. The distance of each weight matrix from its start,

    sup over t <= T of |(W(t) - W(0)) / sqrt(n)|  (operator norm, n the matrix's inputs)

tends to zero as the layers widen (Giancola, Section III.2, Lemma III.2.2, after Jacot et al.), here as
n^(-1/2), for every matrix whose inputs are hidden units. Figure 4 there shows the matrices in training.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, INK, ORANGE
from ntkit.studies import regression
from ntkit.studies.figures import Figures, finish, panels, ticks
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, array, option
from ntkit.studies.training import slope

QUICK = {"widths": (32, 128, 512), "seeds": 2, "steps": 60}
MATRICES = ("first", "hidden", "last")
SHOWN = 32  # rows and columns of the hidden matrix that the picture shows


class Config(regression.DescentConfig):
    """Widths 64, 256 and 1,024; the paper's picture has a small, a medium and a large network."""

    widths: tuple[int, ...] = option((64, 256, 1024), "Widths of the two hidden layers.", low=2, least=2)
    seeds: int = option(5, "Networks of each width.", low=1, high=100)
    samples: int = option(50, "Training inputs, Gaussian in the plane.", low=2, high=10_000)
    steps: int = option(200, "Steps of gradient descent.", low=10, high=10**5)
    rate: float = option(1.0, "Learning rate.", low=1e-6, high=10.0)


def run(config: Config) -> Result:
    """Train networks of each width, and follow their weight matrices."""
    draw = torch.Generator().manual_seed(config.seed)
    x = torch.randn(config.samples, 2, generator=draw).to(config.device)
    y = (x[:, 0] * x[:, 1])[:, None]
    every = max(1, config.steps // 20)
    tracks: dict[int, np.ndarray] = {}
    corners: dict[str, np.ndarray] = {}
    losses: dict[int, list[float]] = {}
    with progress("training (networks)", len(config.widths) * config.seeds) as done:
        for width in config.widths:
            rows = []
            for s in range(config.seeds):

                def followed(width=width, s=s) -> tuple[np.ndarray, np.ndarray, float]:
                    model = regression.network(2, width, 2, config.seed + s, config.device)
                    start = [w.detach().clone() for w in matrices(model)]
                    track = []

                    def look(made: int) -> None:
                        if made % every == 0:
                            track.append(
                                [_distance(a, b) for a, b in zip(matrices(model), start, strict=True)]
                            )

                    regression.descend(config, model, x, y, config.steps, config.rate, look)
                    with torch.no_grad():
                        left = float(nn.functional.mse_loss(model(x), y) / y.square().mean())
                    corner = [array(w[:SHOWN, :SHOWN]) for w in (start[1], matrices(model)[1])]
                    return np.array(track), np.stack(corner), left

                rows.append(part(f"width {width}, seed {s}", followed))
                done(1)
            tracks[width] = np.stack([row[0] for row in rows])
            corners[f"matrix {width}"] = rows[0][1]
            losses[width] = [row[2] for row in rows]
    most = np.stack([tracks[w].max(1) for w in config.widths])  # [widths, seeds, matrices]
    means = most.mean(1)
    claims = []
    for i, name in ((1, "hidden"), (2, "last")):
        for width, value in zip(config.widths, means[:, i], strict=True):
            claims.append(Claim(f"{name} matrix: distance from the start, width {width}", value, "→ 0"))
        claims.append(
            Claim(
                f"{name} matrix: slope in width",
                slope(config.widths, means[:, i]),
                "< 0",
                low=-0.7,
                high=-0.35,
            )
        )
    widest, narrowest = config.widths[-1], config.widths[0]
    ratio = float(means[-1, 0] / means[0, 0])
    claims += [
        Claim(f"first matrix, of two inputs: distance, width {widest} over width {narrowest}", ratio),
        Claim(f"error left / mean square of the target, width {widest}", float(np.mean(losses[widest]))),
    ]
    falls = "does not fall, either" if ratio > 0.9 else "falls, too"
    notes = (
        f"The lemma is about matrices whose inputs are hidden units. The first one's inputs stay two; its "
        f"distance {falls} (from {means[0, 0]:.3g} to {means[-1, 0]:.3g}).",
    )
    arrays = {"widths": config.widths, "times": config.rate * every * np.arange(tracks[widest].shape[1])}
    arrays |= {f"distance {w}": t for w, t in tracks.items()} | corners | {"largest": most}
    return Result(config, claims, arrays, {"errors left": losses}, notes)


def figure(result: Result) -> Figures:
    """Draw the hidden matrix before and after training, and the distances over time and width."""
    a = result.arrays
    widths = [int(w) for w in a["widths"]]
    shown, axes = panels(7.5, 2.6 * len(widths), len(widths), 3, squeeze=False)
    for row, width in zip(axes, widths, strict=True):
        before, after = a[f"matrix {width}"]
        for ax, matrix in zip(row, (before, after, 10 * (after - before)), strict=True):
            image = ax.imshow(matrix, cmap="PuOr", vmin=-3, vmax=3)
            ax.set(xticks=[], yticks=[])
        row[0].set_ylabel(f"width {width}")
    for ax, title in zip(axes[0], ("start", "after training", "difference × 10"), strict=True):
        ax.set_title(title)
    shown.colorbar(image, ax=axes, shrink=0.5, label="entry of the hidden matrix (a corner of it)")
    drawn, (left, right) = panels(9, 3.8, columns=2)
    for i, width in enumerate(widths):
        for j, track in enumerate(a[f"distance {width}"][:, :, 1]):
            left.plot(a["times"], track, color=f"C{i}", lw=1.2, label=None if j else f"width {width}")
    finish(left, xlabel="training time (steps × rate)", ylabel="|W(t) − W(0)| / √n, hidden matrix")
    left.legend(frameon=False, ncols=len(widths), fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for i, (name, color) in enumerate(zip(MATRICES, (INK, BLUE, ORANGE), strict=True)):
        right.loglog(widths, a["largest"][:, :, i].mean(1), "o-", color=color, label=f"{name} matrix")
        right.loglog(widths, a["largest"][:, :, i], ".", ms=3, color=color, alpha=0.5)
    finish(right, xlabel="width", ylabel="largest |W(t) − W(0)| / √n", grid="both")
    right.legend(frameon=False, ncols=3, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    ticks(right.xaxis, widths)
    return {
        "The hidden matrix before and after training": shown,
        "Distance of the weights from their start": drawn,
    }


def matrices(model: nn.Module) -> list[Tensor]:
    """Return the weight matrices of a network, from its inputs to its outputs, drawn from N(0, 1)."""
    return [p for p in model.parameters() if p.ndim == 2]


def _distance(now: Tensor, start: Tensor) -> float:
    """Return the operator norm of (W(t) - W(0)) / sqrt(n), with n the number of columns."""
    change = now.detach() - start
    return float(torch.linalg.matrix_norm(change, 2)) / change.shape[1] ** 0.5
