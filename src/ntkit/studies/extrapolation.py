"""Whether what is new to a trained network's kernel is what the network gets wrong.

Three networks of Courtois, Morel, Arias are asked about queries of graded complexity: points ever farther
from a circle and the disk inside it (Section 5.1), sequences with ever more peaks (6.3), shapes with ever
more branches, and other shapes (6.2). Of each query, novelty is the part of it that the training samples
leave unexplained in the trained network's tangent kernel,

    (k(x, x) - k^T (K + alpha)^-1 k) / k(x, x),

and the error is the network's: the wrong side, or 1 - the intersection over union. "A network only learns
based on similarity": if that is so, errors should rise with novelty. Of a U-Net, whose kernel has a value for
each pair of pixels, k is the mean over random projections of the pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.data.parity import filled, peaks
from ntkit.data.shapes import branched
from ntkit.data.toy import ball_sphere
from ntkit.diagnose import novelty
from ntkit.display.axes import BLUE, INK, ORANGE
from ntkit.kernel import Kernel
from ntkit.studies import planar_topology
from ntkit.studies.figures import Figures, name_points, panels
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, StudyConfig, array, option
from ntkit.studies.training import loss_of, loss_option, mlp, optimizer_of, optimizer_option, seeded, step

QUICK = {"points": 200, "steps": 1500, "p": 32, "sequences": 300, "shapes": 200, "epochs": 20, "queries": 12}
SIDES = ("points in the plane", "sequences with peaks", "shapes")
Found = dict[str, np.ndarray]  # of all queries: novelty, error and degree; the errors of held-out ones
RADII = tuple(0.25 * i for i in range(17))
PEAKS = (1, 2, 3, 4, 5, 6, 8, 10)


class Config(StudyConfig):
    """The paper's two small networks, and its U-Net on pictures of 32 x 32."""

    optimizer: str = optimizer_option("SGD")
    loss: str = loss_option("mse_loss")
    points: int = option(1024, "Points of the circle and the disk to learn from.", low=16, high=20_000)
    p: int = option(64, "Length of the sequences; even.", low=8, high=256)
    sequences: int = option(1024, "Sequences with two peaks to learn from.", low=16, high=20_000)
    steps: int = option(10_000, "Steps of gradient descent of both.", low=1, high=10**6)
    shapes: int = option(1000, "Shapes that the U-Net learns from.", low=32, high=10**6)
    epochs: int = option(20, "Passes over the shapes.", low=1, high=10_000)
    known: int = option(400, "Shapes that its kernel knows.", low=16, high=5000)
    queries: int = option(60, "Queries of each degree of complexity.", low=4, high=10_000)
    projections: int = option(8, "Random projections of the pixels.", low=1, high=1000)
    alpha: float = option(1e-2, "Ridge, in units of the mean of k(x, x).", low=1e-9, high=10.0)


def run(config: Config) -> Result:
    """Train the three networks; measure novelty and error of each query."""
    found: dict[str, Found] = {}
    with progress("asking three networks", 3) as done:
        for name, ask in zip(SIDES, (_plane, _peaks, _shapes), strict=True):
            found[name] = part(name, lambda ask=ask: ask(config))
            done(1)
    claims, numbers = [], {}
    for name, each in found.items():
        queries, degrees = rank(each["novelty"], each["error"]), _means(each)
        over = rank(degrees[1], degrees[2])
        numbers[name] = {"queries": queries, "degrees": over, "held out": float(each["held out"].mean())}
        bar = 0.3 if name == "shapes" else None  # where the paper says that the network fails
        claims += [
            Claim(f"{name}: rank correlation of novelty and error, queries", queries, "> 0", low=bar),
            Claim(f"{name}: the same of their means by degree", over, "> 0"),
            Claim(f"{name}: error of held-out queries of the domain", numbers[name]["held out"]),
            Claim(f"{name}: error of the newest tenth", _of_tenth(each, -1)),
            Claim(f"{name}: error of the least new tenth", _of_tenth(each, 0)),
        ]
    arrays = {f"{name}: {key}": v for name, each in found.items() for key, v in each.items()}
    planar = planar_topology.Config(seed=config.seed, tests=config.queries)
    names = {
        SIDES[0]: [f"radius {r:g}" for r in RADII],
        SIDES[1]: [f"{count} peak{'s' * (count > 1)}" for count in PEAKS],
        SIDES[2]: list(planar_topology.sets(planar)),
    }
    return Result(config, claims, arrays, {**numbers, "names": names})


def rank(novelty: np.ndarray, error: np.ndarray) -> float:
    """Return Spearman's correlation; zero where one of both does not vary."""
    if np.ptp(novelty) == 0 or np.ptp(error) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(novelty), rankdata(error))[0, 1])


def unexplained(kernel: Kernel, train: Tensor, queries: Tensor, held_out: Tensor, alpha: float) -> np.ndarray:
    """Return the part of each query that the training samples leave unexplained."""
    return novelty(kernel, train, queries, held_out=held_out, alpha=alpha).variance


def figure(result: Result) -> Figures:
    """Draw error against novelty: of each query, and the means by degree of complexity."""
    drawn, axes = panels(11, 3.9, columns=3)
    for ax, name in zip(axes, SIDES, strict=True):
        each: Found = {key: result.arrays[f"{name}: {key}"] for key in ("novelty", "error", "degree")}
        each["novelty"] = np.maximum(each["novelty"], 1e-5)
        ax.plot(each["novelty"], each["error"], ".", ms=2.5, color=BLUE, alpha=0.3)
        ax.set_xscale("linear" if name == "shapes" else "log")
        degrees, new, wrong = _means(each)
        ax.plot(new, wrong, "o-" if name != "shapes" else "o", ms=5, color=ORANGE, lw=1)
        names = result.numbers["names"][name]
        ax.set(title=name, xlabel="novelty: what no training sample explains", ylim=(-0.08, 1.08))
        ax.grid(alpha=0.3)
        first = [*dict.fromkeys((0, len(degrees) - 1, len(degrees) // 2)), *range(len(degrees))]
        chosen = list(dict.fromkeys(first))  # those have the first choice of places
        name_points(
            drawn, ax, [names[int(degrees[i])] for i in chosen], new[chosen].tolist(), wrong[chosen].tolist()
        )
    axes[0].set_ylabel("error")
    over, ax = panels(6, 3.8)
    for name, color in zip(SIDES, (BLUE, ORANGE, INK), strict=True):
        order = np.argsort(result.arrays[f"{name}: novelty"])
        parts = np.array_split(result.arrays[f"{name}: error"][order], 10)
        ax.plot(np.arange(1, 11), [float(p.mean()) for p in parts], "o-", color=color, label=name)
    ax.set(xlabel="tenth of the queries, by novelty", ylabel="error, mean", ylim=(0, 1))
    ax.set_xticks(np.arange(1, 11))
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return {"Error against novelty": drawn, "Error of the queries, from the least new to the newest": over}


def _means(each: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the degrees with the mean novelty and error of each."""
    degrees = np.unique(each["degree"])
    means = [[float(each[key][each["degree"] == d].mean()) for d in degrees] for key in ("novelty", "error")]
    return degrees, np.array(means[0]), np.array(means[1])


def _of_tenth(each: Found, which: int) -> float:
    order = np.argsort(each["novelty"])
    return float(each["error"][np.array_split(order, 10)[which]].mean())


def _asked(
    config: Config,
    kernel: Kernel,
    train: Tensor,
    held_out: Tensor,
    queries: dict[str, Tensor],
    errors: Callable[[int, Tensor], Tensor],
) -> Found:
    """Return novelty, error and degree of all queries, those of the domain first held out."""
    sizes = [len(q) for q in queries.values()]
    both = unexplained(kernel, train, torch.cat(list(queries.values())), held_out, config.alpha)
    wrong = torch.cat([errors(i, q).double().cpu() for i, q in enumerate(queries.values())])
    return {
        "novelty": both,
        "error": array(wrong),
        "degree": np.repeat(np.arange(len(sizes)), sizes),
        "held out": array(errors(-1, held_out).double()),
    }


def _descended(config: Config, sizes: tuple[int, ...], x: Tensor, y: Tensor, rate: float) -> nn.Module:
    with seeded(config.seed):
        model = mlp(*sizes, activation=nn.GELU).to(config.device, torch.float64)
    optimizer = optimizer_of(config.optimizer, model.parameters(), rate)
    for _ in range(config.steps):
        step(optimizer, loss_of(config.loss)(model(x), y))
    return model


def _plane(config: Config) -> Found:
    """Ask about points at growing distances, which are outside of the circle of radius 3/4 or inside."""
    x, y = (t.to(config.device) for t in ball_sphere(config.points, config.seed))
    away = ball_sphere(config.points, config.seed + 1000)[0].to(config.device)
    model = _descended(config, (2, 10, 10, 1), x, y, 0.01 * max(1.0, 10_000 / config.steps))
    draw = torch.Generator().manual_seed(config.seed + 1)
    angle = 2 * torch.pi * torch.rand(len(RADII), config.queries, generator=draw, dtype=torch.float64)
    queries = {
        f"radius {r:g}": (r * torch.stack([a.cos(), a.sin()], 1)).to(config.device)
        for r, a in zip(RADII, angle, strict=True)
    }

    @torch.no_grad()
    def errors(_: int, q: Tensor) -> Tensor:
        return (model(q)[:, 0] > 0) != (q.norm(dim=1) > 0.75)

    return _asked(config, ntkit.EmpiricalNTK(model), x, away, queries, errors)


def _peaks(config: Config) -> Found:
    """Ask about sequences with more and fewer peaks than two, whether the middle is filled in."""

    def drawn(count: int, n: int, seed: int) -> Tensor:
        found = peaks(4 * n + 16, config.p, count, seed).unique(dim=0)
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))
        return found[order[:n]].to(config.device, torch.float64)

    def labels(q: Tensor) -> Tensor:
        return filled(q)[:, config.p // 2 - 1, None]

    both = drawn(2, config.sequences + config.queries, config.seed + 1)
    away, x = both[: config.queries], both[config.queries :]
    model = _descended(config, (config.p, 10, 10, 1), x, labels(x), 0.1)
    queries = {f"{c} peaks": away if c == 2 else drawn(c, config.queries, config.seed + 2) for c in PEAKS}

    @torch.no_grad()
    def errors(_: int, q: Tensor) -> Tensor:
        return ((model(q) > 0.5) != (labels(q) > 0.5))[:, 0]

    return _asked(config, ntkit.EmpiricalNTK(model), x, away, queries, errors)


def _shapes(config: Config) -> Found:
    """Ask a U-Net about shapes with more branches, and about other shapes: 1 - IoU."""
    planar = planar_topology.Config(
        seed=config.seed, device=config.device, shapes=config.shapes, tests=config.queries, channels=8
    )
    steps = config.epochs * -(-config.shapes // planar.batch)
    model = planar_topology.train_network(planar, planar_topology.Training("unet", 32, config.shapes, steps))
    train = planar_topology.tensors(
        branched(min(config.known, config.shapes), 32, config.seed), config.device
    )
    pairs = {
        name: planar_topology.tensors(make(config.queries, 32), config.device)
        for name, make in planar_topology.sets(planar).items()
    }
    truth, away = (
        [p[1] for p in pairs.values()],
        planar_topology.tensors(branched(config.queries, 32, config.seed + 7), config.device),
    )

    def errors(i: int, q: Tensor) -> Tensor:
        guess = planar_topology.filled_in(model, q)
        return 1 - planar_topology.iou(guess, away[1] if i < 0 else truth[i]).double()

    kernel = ntkit.EmpiricalNTK(_Projected(model, 32 * 32, config.projections, config.seed))
    queries = {name: p[0] for name, p in pairs.items()}
    return _asked(config, kernel, train[0], away[0], queries, errors)


class _Projected(nn.Module):
    """A network whose outputs are random sums of another's, with signs: their kernels' mean is its own's."""

    signs: Tensor

    def __init__(self, model: nn.Module, outputs: int, count: int, seed: int) -> None:
        super().__init__()
        self.model = model
        draw = torch.Generator().manual_seed(seed)
        signs = 2.0 * torch.randint(0, 2, (outputs, count), generator=draw) - 1
        self.register_buffer("signs", signs / outputs**0.5)
        self.to(next(model.parameters()).device).eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sums ``[n, count]``."""
        return self.model(x).flatten(1) @ self.signs
