"""Training along one principal component of the kernel, on MNIST.

The eigenvalues of the limit's tangent kernel of 512 digits (K / N), for several draws of digits, by power
iteration with deflation and by Lanczos; the digits along the second and third component; and networks that
start at a distance of 1/2 from their target along the second component only (Giancola, Section V.3, Figures 7
to 9). In the limit the distance along the component falls as exp(-lambda t) / 2 and nothing happens across
it; finite networks leak across.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor

from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, GREEN, INK, ORANGE
from ntkit.studies import regression
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.parts import part
from ntkit.studies.pictures import pictures
from ntkit.studies.study import Claim, Result, array, option

QUICK = {"samples": 128, "draws": 2, "widths": (50, 1000), "time": 60.0}
PAPER = (
    (0.0457, 0.03),
    (0.00108, 0.10),
    (0.00078, 0.20),
)  # eigenvalues, and how near a draw's median must be
DEPTHS = (2, 3, 4, 5)  # the paper does not state its own


class Config(regression.DescentConfig):
    """The paper's numbers, with widths up to 1,000 instead of 10,000."""

    data: Literal["mnist", "digits"] = option("mnist", "The pictures: mnist, or scikit-learn's digits.")
    samples: int = option(512, "Pictures.", low=8, high=5000)
    draws: int = option(10, "Draws of pictures for the eigenvalues.", low=1, high=1000)
    depth: int = option(4, "Hidden layers.", low=1, high=50)
    widths: tuple[int, ...] = option((100, 500, 1000), "Widths of the networks.", low=2, least=2)
    time: float = option(400.0, "Training time (steps x rate 1).", low=1.0, high=10**5)


def power_iteration(matrix: Tensor, count: int, steps: int = 5000) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest eigenvalues and their vectors ``[count, n]``, one after another by deflation."""
    matrix, values, vectors = matrix.clone(), [], []
    for _ in range(count):
        v = torch.ones(len(matrix), dtype=matrix.dtype) + torch.arange(len(matrix)) / len(matrix)
        v /= v.norm()
        for _ in range(steps):
            w = matrix @ v
            w /= w.norm()
            if float((w - v).norm()) < 1e-13:
                break
            v = w
        values.append(float(w @ matrix @ w))
        vectors.append(array(w))
        matrix -= values[-1] * torch.outer(w, w)
    return np.array(values), np.stack(vectors)


def run(config: Config) -> Result:
    """Decompose the limit's kernel, and train networks along its second component."""
    data = pictures(config.data, config.samples, 100, config.seed)
    x = data.train_x
    n, d = x.shape
    matrix = regression.limit(d, config.depth).ntk(x) / n
    values, vectors = power_iteration(matrix, 3)
    lanczos = eigsh(array(matrix), k=min(10, n - 1), v0=np.ones(n))
    spectrum = lanczos[0][::-1]
    others = [_eigenvalues(config, s) for s in range(1, config.draws)]
    draws = np.array([values, *others])
    by_depth = {depth: _eigenvalues(config, 0, depth) for depth in DEPTHS}
    second = torch.tensor(vectors[1]) * n**0.5  # its mean square over the samples is one
    steps = round(config.time)  # at rate 1
    times = np.arange(0, steps + 1, max(1, steps // 50))
    along, across = {}, {}
    with progress("training (networks)", len(config.widths)) as done:
        for width in config.widths:
            along[width], across[width] = part(
                f"width {width}", lambda width=width: _train(config, width, x, second, times)
            )
            done(1)
    predicted = np.exp(-values[1] * times) / 2
    share = float(along[config.widths[-1]][-1] / predicted[-1])
    apart = float(np.abs(values / spectrum[:3] - 1).max())
    leaks = {w: float(across[w][-1]) for w in config.widths}
    scores = lanczos[1][:, ::-1][:, 1:3] * n**0.5
    arrays = {"spectrum": spectrum, "draws": draws, "scores": scores, "labels": data.train_y}
    arrays |= {"times": times, "predicted": predicted}
    arrays |= {f"along {w}": v for w, v in along.items()} | {f"across {w}": v for w, v in across.items()}
    return Result(
        config,
        _claims(config, draws, apart, share, leaks),
        arrays,
        {"by depth": by_depth},
        _notes(config, by_depth),
    )


def _claims(
    config: Config, draws: np.ndarray, apart: float, share: float, leaks: dict[int, float]
) -> list[Claim]:
    wide, narrow = config.widths[-1], config.widths[0]
    at = f"at t = {config.time:g}, width"
    claims = []
    theirs = config.data == "mnist" and config.samples == 512
    for i, (value, near) in enumerate(PAPER):
        name, found = f"eigenvalue {i + 1} of K / N", draws[:, i]
        ratio, bar = float(np.median(found)) / value, near if theirs and config.depth == 4 else None
        said = f"{value:g}" if theirs else ""
        claims.append(Claim(f"{name}, median of {len(draws)} draws", float(np.median(found)), said))
        low, high = (None, None) if bar is None else (1 - bar, 1 + bar)
        claims.append(Claim(f"{name}, over the paper's", ratio, "1" if theirs else "", low=low, high=high))
        claims += [Claim(f"{name}, {how}", float(f(found))) for how, f in (("least", min), ("largest", max))]
    claims.append(Claim("power iteration against Lanczos, largest relative difference", apart, high=1e-6))
    low, high = (0.85, 1.15) if wide >= 1000 else (0.6, 1.4)
    along_it = f"part along the component {at} {wide}, relative to the limit"
    claims.append(Claim(along_it, share, "1 as n grows", low=low, high=high))
    claims += [Claim(f"leak across it {at} {w}", leak, "0 as n grows") for w, leak in leaks.items()]
    falls = "leak of the widest over that of the narrowest"
    bar = min(0.8, 2 * (narrow / wide) ** 0.5)  # twice what width^(-1/2) gives
    claims.append(Claim(falls, leaks[wide] / leaks[narrow], "< 1", high=bar))
    return claims


def _notes(config: Config, by_depth: dict[int, np.ndarray]) -> tuple[str, ...]:
    """Say which depth comes nearest to the paper's eigenvalues."""
    if config.data != "mnist" or config.samples != 512:
        return ()
    off = {
        depth: max(abs(v / paper - 1) for v, (paper, _) in zip(values, PAPER, strict=True))
        for depth, values in by_depth.items()
    }
    each = ", ".join(f"{value:.0%} with {depth}" for depth, value in off.items())
    return (
        "The paper does not state the depth of this network. Of the first draw, the three eigenvalues are at "
        f"most so far from the paper's: {each} hidden layers; nearest with {min(off, key=lambda k: off[k])}.",
    )


def _eigenvalues(config: Config, draw: int, depth: int | None = None) -> np.ndarray:
    """Return the three largest eigenvalues of K / N for a draw of pictures."""
    x = pictures(config.data, config.samples, 100, config.seed + draw).train_x
    kernel = regression.limit(x.shape[1], config.depth if depth is None else depth).ntk(x)
    return eigsh(array(kernel) / len(x), k=3, v0=np.ones(len(x)))[0][::-1].copy()


def _train(
    config: Config, width: int, x: Tensor, second: Tensor, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances from the target along the component and across it, at these times."""
    model = regression.network(x.shape[1], width, config.depth, config.seed, config.device)
    x, second = x.float().to(config.device), second.float().to(config.device)
    with torch.no_grad():
        target = model(x)[:, 0] + second / 2
    along, across, due = [], [], set(times.tolist())

    def look(step: int) -> None:
        if step in due:
            with torch.no_grad():
                left = model(x)[:, 0] - target
            share = float(left @ second / len(x))
            along.append(abs(share))
            across.append(float(((left - share * second) ** 2).mean().sqrt()))

    regression.descend(config, model, x, target[:, None], int(times[-1]), 1.0, look)
    return np.array(along), np.array(across)


def figure(result: Result) -> Figures:
    """Draw the digits along two components, and the two parts of the distance over time."""
    a = result.arrays
    first, ax = panels(6, 5)
    shown = ax.scatter(*a["scores"].T, c=a["labels"], cmap="tab10", s=0)
    for (u, v), label in zip(a["scores"], a["labels"], strict=True):
        ax.text(u, v, str(label), fontsize=8, color=shown.cmap(shown.norm(label)), ha="center", va="center")
    finish(ax, xlabel="second component", ylabel="third component")
    second, (left, right) = panels(9, 3.8, columns=2)
    for i, width in enumerate(result.config.widths):
        color = (ORANGE, GREEN, BLUE)[i] if i < 3 else f"C{i}"
        left.plot(a["times"], a[f"along {width}"], color=color, label=f"width {width}")
        right.plot(a["times"], a[f"across {width}"], color=color, label=f"width {width}")
    left.plot(a["times"], a["predicted"], "--", color=INK, label="exp(-λ t) / 2")
    finish(left, xlabel="time", ylabel="distance along the component")
    finish(right, xlabel="time", ylabel="distance across it")
    return {"Digits along two components of the kernel": first, "Training along one component": second}
