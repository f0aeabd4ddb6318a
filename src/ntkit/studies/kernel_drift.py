"""How far the tangent kernel moves in training, narrow and wide.

ReLU networks with three hidden layers in the NTK parameterization learn f*(x) = x1 x2 on Gaussian inputs by
200 steps of gradient descent at rate 1 (Giancola, Section V.1, Figure 5, after Jacot et al.). The kernel is
drawn on the unit circle around x0 = (1, 0), before and after, with the analytic limit. A wide network's
kernel starts near the limit and stays, at all times until the end (Theorem III.2.3: uniformly in time).
"""

from __future__ import annotations

import numpy as np
import torch

import ntkit
from ntkit.compute.progress import progress
from ntkit.display.axes import BLUE, INK, ORANGE
from ntkit.studies import regression
from ntkit.studies.figures import Figures, above, finish, panels
from ntkit.studies.parts import part
from ntkit.studies.study import Claim, Result, array, option

QUICK = {"widths": (100, 1000), "seeds": 2, "steps": 100}


class Config(regression.DescentConfig):
    """Widths 500 and 2,000 (the paper: 500 and 10,000)."""

    widths: tuple[int, ...] = option((500, 2000), "Widths, the narrow one first.", low=2, least=2)
    seeds: int = option(5, "Networks of each width.", low=1, high=100)
    samples: int = option(50, "Training inputs, Gaussian in the plane.", low=2, high=10_000)
    steps: int = option(200, "Steps of gradient descent.", low=1, high=10**5)
    rate: float = option(1.0, "Learning rate.", low=1e-6, high=10.0)
    angles: int = option(61, "Points on the circle.", low=3, high=1000)


def run(config: Config) -> Result:
    """Train networks of each width and follow their kernels."""
    draw = torch.Generator().manual_seed(config.seed)
    x = torch.randn(config.samples, 2, generator=draw).to(config.device)
    y = (x[:, 0] * x[:, 1])[:, None]
    pivot = regression.circle(torch.zeros(1)).to(config.device)
    circle = regression.circle(torch.linspace(-torch.pi, torch.pi, config.angles)).to(config.device)
    exact = regression.limit(2, 3).ntk
    limit, limit_circle = exact(x.cpu().double()), exact(pivot.cpu().double(), circle.cpu().double())[0]
    drift, distance, curves = {}, {}, {}
    looked = sorted({round(config.steps * (i / 10) ** 2) for i in range(11)})
    with progress("training (networks)", len(config.widths) * config.seeds) as done:
        for width in config.widths:
            rows = []
            for s in range(config.seeds):

                def followed(width=width, s=s) -> tuple[list[float], float, np.ndarray, np.ndarray]:
                    model = regression.network(2, width, 3, config.seed + s, config.device)
                    kernel = ntkit.EmpiricalNTK(model)
                    before, start = kernel(x).double().cpu(), kernel(pivot, circle)[0]
                    moved = []

                    def look(made: int) -> None:
                        if made in looked:
                            moved.append(regression.relative(kernel(x).double().cpu() - before, before))

                    regression.descend(config, model, x, y, config.steps, config.rate, look)
                    end = kernel(pivot, circle)[0]
                    return moved, regression.relative(before - limit, limit), array(start), array(end)

                rows.append(part(f"width {width}, seed {s}", followed))
                done(1)
            drift[width] = np.array([f[0] for f in rows])
            distance[width] = [f[1] for f in rows]
            curves[width] = np.stack([np.stack(f[2:]) for f in rows])
    narrow, wide = config.widths[0], config.widths[-1]
    moved, off = (
        [float(np.mean(v[w])) for w in (narrow, wide)]
        for v in ({w: d[:, -1] for w, d in drift.items()}, distance)
    )
    most = [float(drift[w].max(1).mean()) for w in (narrow, wide)]
    bars = (0.15, 0.08) if config.widths == Config.widths else (0.4, 0.15)
    claims = (
        Claim(f"relative change of the kernel, width {narrow}", moved[0], "moves"),
        Claim(f"relative change of the kernel, width {wide}", moved[1], "hardly moves"),
        Claim("ratio of the two", moved[0] / moved[1], "> 1", low=2.0),
        Claim(f"the largest change over time, width {narrow}", most[0]),
        Claim(f"the largest change over time, width {wide}", most[1], "→ 0"),
        Claim("ratio of the largest changes", most[0] / most[1], "> 1", low=2.0),
        Claim(f"distance to the limit at the start, width {narrow}", off[0], high=bars[0]),
        Claim(f"distance to the limit at the start, width {wide}", off[1], high=bars[1]),
    )
    arrays = {f"drift {w}": d for w, d in drift.items()} | {"times": config.rate * np.array(looked)}
    arrays |= {"angles": np.linspace(-np.pi, np.pi, config.angles), "limit": limit_circle}
    arrays |= {f"width {w}": c for w, c in curves.items()}
    notes = (f"The wide network has width {wide} here, 10,000 in the paper.",) if wide < 10_000 else ()
    return Result(config, claims, arrays, {"distance": distance}, notes)


def figure(result: Result) -> Figures:
    """Draw the kernel on the circle before and after training, for each width."""
    a = result.arrays
    widths = [f"width {w}" for w in result.config.widths]
    drawn, axes = panels(4.5 * len(widths), 3.8, columns=len(widths), sharey=True, squeeze=False)
    for ax, name in zip(axes[0], widths, strict=True):
        for k, (color, label) in enumerate(((ORANGE, "before"), (BLUE, "after training"))):
            for i, curve in enumerate(a[name][:, k]):
                ax.plot(a["angles"], curve, color=color, lw=1, alpha=0.8, label=None if i else label)
        ax.plot(a["angles"], a["limit"], "--", color=INK, lw=1.5, label="limit")
        ax.set(title=name, xlabel="angle γ between x and x0")
        ax.grid(alpha=0.3)
    above(drawn, ax, 3)
    drawn.axes[0].set_ylabel("tangent kernel K(x0, x)")
    moved, ax = panels(5.5, 3.8)
    for width, color in zip(
        result.config.widths, (BLUE, ORANGE, *(f"C{i}" for i in range(2, 99))), strict=False
    ):
        for i, track in enumerate(a[f"drift {width}"]):
            ax.plot(a["times"], track, "o-", ms=3, color=color, lw=1, label=None if i else f"width {width}")
    finish(ax, xlabel="training time (steps × rate)", ylabel="change of the kernel (relative)")
    return {"The tangent kernel on the circle": drawn, "Change of the kernel over time": moved}
