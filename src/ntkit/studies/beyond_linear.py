"""A network in training beside its Taylor polynomials in the weights.

The linearized network is what the tangent kernel at the start describes; the quadratic one lets the kernel
move once (Giancola, Section VI.1, Figure 10, after Bai and Lee). All three are trained by the same steps of
gradient descent from the same weights: the quadratic one stays with the network for longer.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import ntkit
from ntkit.data.digits import digits
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.studies import regression
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.study import Claim, Result, array, option
from ntkit.studies.training import mlp

QUICK = {"width": 64, "steps": 120, "samples": 60}


class Config(regression.DescentConfig):
    """Even against odd digits, as a regression."""

    width: int = option(128, "Width of the two hidden layers.", low=2, high=10_000)
    samples: int = option(200, "Training digits.", low=10, high=1347)
    steps: int = option(300, "Steps of gradient descent.", low=10, high=10**5)
    rate: float = option(0.5, "Learning rate.", low=1e-6, high=100.0)
    far: float = option(0.05, "Distance from the network, of its size, that counts as off.", low=1e-6)


def run(config: Config) -> Result:
    """Train the network, the linear and the quadratic model by the same steps."""
    data = digits(config.samples, seed=config.seed)
    x, q = (t.to(config.device) for t in (data.train_x * 2 - 1, data.held_out_x * 2 - 1))
    y = (data.train_y % 2 * 2.0 - 1.0).to(config.device, torch.float64)[:, None]
    truth = (data.held_out_y % 2 * 2.0 - 1.0).to(config.device)[:, None]
    plain = mlp(64, config.width, config.width, 1, activation=nn.GELU).double().to(config.device)
    model = ntkit.ntk_parametrize(plain, 2**0.5, 0.1, seed=config.seed)
    models = {"network": model, "linear": ntkit.linearize(model), "quadratic": ntkit.taylor(model, order=2)}
    losses: dict[str, list[float]] = {name: [] for name in models}
    outputs: dict[str, list[np.ndarray]] = {name: [] for name in models}
    every = max(1, config.steps // 60)
    for name, each in models.items():

        def look(step: int, name=name, each=each) -> None:
            if step % every == 0:
                with torch.no_grad():
                    outputs[name].append(array(each(q))[:, 0])
                    losses[name].append(float(((each(x) - y) ** 2).mean() / 2))

        regression.descend(config, each, x, y, config.steps, config.rate, look)
    times = np.arange(0, config.steps + 1, every) * config.rate
    curves = {name: np.array(values) for name, values in outputs.items()}
    target = curves["network"]
    off = {name: np.sqrt(((curves[name] - target) ** 2).mean(1)) for name in ("linear", "quadratic")}
    size = np.sqrt((target**2).mean())
    until = {name: _until(times, distance, config.far * size) for name, distance in off.items()}
    end, off_by = float(times[-1]), f"{config.far:.0%} off"
    longer = min(until["quadratic"], end) / until["linear"]
    right = {name: float(((o[-1] > 0) == array(truth > 0)[:, 0]).mean()) for name, o in curves.items()}
    claims = (
        Claim(f"time until the linear model is {off_by}, of all", until["linear"] / end, high=0.75),
        Claim("the same for the quadratic model over that for the linear one", longer, low=1.3),
        Claim("distance from the network at the end: linear", float(off["linear"][-1])),
        Claim("distance from the network at the end: quadratic", float(off["quadratic"][-1])),
        *(Claim(f"held-out accuracy: {name}", value) for name, value in right.items()),
    )
    arrays = {f"loss of {name}": v for name, v in losses.items()}
    arrays |= {f"distance of {name}": v for name, v in off.items()}
    stayed = "The quadratic model stays that near until the end: its time is at least so much longer."
    notes = (stayed,) if np.isinf(until["quadratic"]) else ()
    return Result(config, claims, {"times": times, **arrays}, {"until": until}, notes)


def figure(result: Result) -> Figures:
    """Draw the losses, and the distances from the network."""
    a = result.arrays
    drawn, (left, right) = panels(9, 3.8, columns=2)
    for name, color in (("network", BLUE), ("linear", ORANGE), ("quadratic", GREEN)):
        left.semilogy(a["times"], a[f"loss of {name}"], color=color, label=name)
        if name != "network":
            right.semilogy(a["times"][1:], a[f"distance of {name}"][1:], color=color, label=name)
    finish(left, xlabel="time (steps × rate)", ylabel="training loss (half mean square)")
    finish(right, xlabel="time (steps × rate)", ylabel="distance from the network, held out (rms)")
    return {"The network and its Taylor polynomials in training": drawn}


def _until(times: np.ndarray, distance: np.ndarray, far: float) -> float:
    """Return the first time at which the distance is larger; infinity if it never is."""
    beyond = np.flatnonzero(distance > far)
    return float(times[beyond[0]]) if len(beyond) else float("inf")
