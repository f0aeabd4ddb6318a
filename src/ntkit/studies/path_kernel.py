"""A trained network as a sum over its training samples: Theorem 1 with all its terms.

Along the gradient flow dw/dt = -grad (1/N) sum_n L(f(x_n), y_n),

    f(x; w(t)) = sum_n a_n(x) K(x, x_n; t) + b(x),    K(x, x_n; t) = integral of the tangent kernel over time,
    a_n(x) = -(1/N) times the mean of dL/df(x_n) over time, weighted by the tangent kernel,    b = f(.; w(0))

(Courtois, Morel, Arias, Section 3, after Domingos), with L = (f - y)^2 / 2, or half of another loss. The flow
is integrated by Runge-Kutta, with both integrals; gradient descent, its recorded account and path kernel tend
to it as the learning rate falls. The coefficients depend on x: the sum with their means over x, which do not,
is a kernel machine proper, and is measured beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import ntkit
from ntkit.compute.progress import progress
from ntkit.data.toy import ball_sphere
from ntkit.display.axes import BLUE, GREEN, ORANGE
from ntkit.errors import BadValueError
from ntkit.studies.figures import Figures, finish, panels, ticks
from ntkit.studies.parts import part, scratch
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, mlp, seeded, slope, train_recorded

QUICK = {"samples": 16, "time": 10.0, "flow_steps": 120, "rates": (0.1, 0.2), "queries": 6}


class Config(StudyConfig):
    """The circle and the disk of Section 5.1, few points."""

    loss: str = loss_option("mse_loss")
    samples: int = option(32, "Training points.", low=2, high=10_000)
    width: int = option(10, "Units in each of the two hidden layers.", low=1, high=1000)
    time: float = option(100.0, "Training time.", low=0.1, high=10**4)
    flow_steps: int = option(1000, "Steps of Runge-Kutta for the flow.", low=1, high=10**6)
    rates: tuple[float, ...] = option(
        (0.03, 0.042, 0.06),
        "Learning rates of gradient descent, up to whole steps in the time.",
        low=1e-5,
        least=2,
    )
    queries: int = option(12, "Points whose predictions are written as sums.", low=2, high=10_000)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "rates", tuple(sorted(self.rates)))
        if self.rates[-1] > self.time:
            raise BadValueError(
                f"rates holds {self.rates[-1]:g}, and time is {self.time:g}, less than one step of it. "
                "Expected smaller rates, or more time."
            )


@dataclass(frozen=True)
class Terms:
    """Of each query: contributions a_n K and path kernels K ``[q, N]``, start b and end ``[q]``."""

    contributions: Tensor
    kernel: Tensor
    start: Tensor
    end: Tensor

    @property
    def residual(self) -> float:
        """The largest error of the sum, over the largest prediction."""
        return float((self.start + self.contributions.sum(1) - self.end).abs().max() / self.end.abs().max())


def run(config: Config) -> Result:
    """Integrate the flow with its sums, train by gradient descent beside it, and compare."""
    x, y = (t.to(config.device) for t in ball_sphere(config.samples, config.seed))
    draw = torch.Generator().manual_seed(config.seed + 1)
    q = (2.4 * torch.rand(config.queries, 2, generator=draw, dtype=torch.float64) - 1.2).to(config.device)
    flow = Terms(*part("flow", lambda: _flow(config, x, y, q)))
    found: dict[str, list[float]] = {name: [] for name in ("residual", "left", "function", "sums", "kernel")}
    rates = [
        config.time / round(config.time / rate) for rate in config.rates
    ]  # whole steps end at the same time
    for rate in rates:
        terms, left = part(f"rate {rate}", lambda rate=rate: _descent(config, x, y, q, rate))
        descent = Terms(*terms)
        found["residual"].append(descent.residual)
        found["left"].append(left)
        found["function"].append(_relative(descent.end, flow.end))
        found["sums"].append(_relative(descent.contributions, flow.contributions))
        found["kernel"].append(_relative(descent.kernel, flow.kernel))
    a = flow.contributions / flow.kernel
    fixed = a.mean(0)
    machine = _relative(flow.start + flow.kernel @ fixed, flow.end)
    vary = float((a.std(0) / a.abs().mean(0)).median())
    negative = float((flow.kernel < 0).double().mean())
    right = float(((flow.end > 0) == (q.norm(dim=1) > 0.75)).double().mean())
    with torch.no_grad():
        opposite = float((torch.sign(a) != torch.sign(y[:, 0])).double().mean())
    sums, kernel, function = (slope(rates, found[n]) for n in ("sums", "kernel", "function"))
    claims = (
        Claim("flow: error of the sum of Theorem 1 / max |f|", flow.residual, "0", high=1e-6),
        Claim("gradient descent: error of the exact account / max |f|", max(found["residual"]), high=1e-8),
        Claim("gradient descent: error of Eq. 9 / max |f|, largest rate", found["left"][-1]),
        Claim("gradient descent off the flow, function: slope in the rate", function, low=0.8, high=1.2),
        Claim("gradient descent off the flow, a_n K: slope in the rate", sums, low=0.8, high=1.2),
        Claim("gradient descent off the flow, K: slope in the rate", kernel, low=0.8, high=1.2),
        Claim("share of the a_n(x) whose sign is not the label's", opposite, "not necessarily positive"),
        Claim("share of the path kernels that are negative", negative),
        Claim("how much a_n(x) varies with x: deviation / mean size, median of n", vary, "depends on x"),
        Claim("the sum with a_n averaged over x: relative error", machine),
        Claim("queries on the right side of the radius 0.75", right),
    )
    arrays = {"rates": rates, "a": a, "fixed": fixed, "labels": y[:, 0], "kernel": flow.kernel}
    arrays |= {"end": flow.end, "machine": flow.start + flow.kernel @ fixed, "start": flow.start}
    arrays |= {"sum": flow.start + flow.contributions.sum(1), "radius": q.norm(dim=1)}
    return Result(config, claims, arrays | found, {"time": config.time})


def figure(result: Result) -> Figures:
    """Draw the coefficients, the sums against the network, and gradient descent against the flow."""
    a = result.arrays
    drawn, (left, middle, right) = panels(13, 4, columns=3)
    order = np.argsort(a["fixed"])
    low, high = np.quantile(a["a"][:, order], [0.1, 0.9], axis=0)
    left.vlines(np.arange(len(order)), low, high, color=BLUE, alpha=0.4, label="10-90 % of the queries")
    left.plot(a["fixed"][order], ".", color=BLUE, label="mean over the queries")
    finish(left, xlabel="training sample, in order of the mean", ylabel="coefficient aₙ(x)")
    bounds = [float(f(np.r_[a["end"], a["machine"]])) for f in (np.min, np.max)]
    middle.plot(bounds, bounds, ":", color="0.4")
    middle.plot(a["end"], a["machine"], "o", ms=4, color=ORANGE, label="aₙ averaged over x")
    middle.plot(a["end"], a["sum"], "s", ms=4, color=BLUE, label="aₙ(x): Theorem 1")
    middle.set(xscale="symlog", yscale="symlog")
    finish(middle, xlabel="network f(x; w(t))", ylabel="sum over training samples + b(x)")
    for name, text, color in (
        ("function", "function", GREEN),
        ("sums", "aₙ(x) K(x, xₙ)", BLUE),
        ("kernel", "K(x, xₙ)", ORANGE),
    ):
        right.loglog(a["rates"], a[name], "o-", color=color, label=text)
    right.loglog(a["rates"], a["kernel"][0] * a["rates"] / a["rates"][0], ":", color="0.4", label="∝ rate")
    finish(right, xlabel="learning rate, at equal time", ylabel="gradient descent off the flow (relative)")
    ticks(right.xaxis, result.config.rates)
    return {"Coefficients, the sum, and gradient descent beside the flow": drawn}


def _network(config: Config) -> nn.Module:
    with seeded(config.seed):
        return mlp(2, config.width, config.width, 1, activation=nn.GELU).to(config.device, torch.float64)


def _flow(config: Config, x: Tensor, y: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Integrate weights, contributions and path kernel by the classical rule of Runge-Kutta."""
    model = _network(config)
    parameters = list(model.parameters())
    kernel, loss = ntkit.EmpiricalNTK(model), _half(config)

    def change(w: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nn.utils.vector_to_parameters(w, parameters)
        predicted = model(x)
        mean = loss(predicted, y)
        gradients = torch.autograd.grad(mean, (predicted, *parameters))
        block = kernel(q, x)
        return -nn.utils.parameters_to_vector(gradients[1:]), -block * gradients[0][:, 0], block

    with torch.no_grad():
        start = model(q)[:, 0]
    w = nn.utils.parameters_to_vector(parameters).detach().clone()
    sums, path, h = q.new_zeros(len(q), len(x)), q.new_zeros(len(q), len(x)), config.time / config.flow_steps
    with progress("integrating the flow (steps)", config.flow_steps) as done:
        for _ in range(config.flow_steps):
            first = change(w)
            second = change(w + h / 2 * first[0])
            third = change(w + h / 2 * second[0])
            last = change(w + h * third[0])
            w, sums, path = (
                v + h / 6 * (a + 2 * b + 2 * c + d)
                for v, a, b, c, d in zip((w, sums, path), first, second, third, last, strict=True)
            )
            done(1)
    nn.utils.vector_to_parameters(w, parameters)
    with torch.no_grad():
        return sums, path, start, model(q)[:, 0]


def _descent(
    config: Config, x: Tensor, y: Tensor, q: Tensor, rate: float
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], float]:
    """Train by gradient descent; return its terms by account and path kernel, and the error of Eq. 9."""
    model = _network(config)
    with torch.no_grad():
        start = model(q)[:, 0]
    optimizer = torch.optim.SGD(model.parameters(), rate)
    half = _half(config)
    with scratch() as folder:
        run = f"{folder}/run"
        batches = (torch.arange(len(x)) for _ in range(round(config.time / rate)))
        train_recorded(run, model, optimizer, half, (x, y), batches)
        exact, left = (
            ntkit.account(run, model, half, train=(x, y), queries=q, nodes=nodes) for nodes in (3, "left")
        )
        path = ntkit.PathKernel(run, model)(q, x)
    with torch.no_grad():
        end = model(q)[:, 0]
    off = float(left.residual.abs().max() / left.prediction.abs().max())
    return (exact.contributions[:, 0].to(path), path, start, end), off


def _half(config: Config) -> Callable[[Tensor, Tensor], Tensor]:
    """Return half the loss: (1/N) sum (f - y)^2 / 2."""
    whole = loss_of(config.loss)
    return lambda predicted, y: whole(predicted, y) / 2


def _relative(found: Tensor, exact: Tensor) -> float:
    return float((found.cpu() - exact.cpu()).norm() / exact.cpu().norm())
