"""Linear regression, where the discrete theorem has no error term.

The network is x -> <a, x>, trained by full-batch gradient descent on noisy linear data (Courtois, Morel,
Arias, Section 4.1). Its tangent kernel is <x, x'> whatever the weights, so Eq. 9 with the left end of each
step holds exactly, for minibatches too; the normalized kernel is the cosine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

import ntkit
from ntkit.display.axes import BLUE, ORANGE
from ntkit.studies.figures import Figures, finish, panels
from ntkit.studies.parts import scratch
from ntkit.studies.study import Claim, Result, StudyConfig, option
from ntkit.studies.training import loss_of, loss_option, optimizer_of, optimizer_option, train_recorded

QUICK = {"samples": 64, "steps": 50}


class Config(StudyConfig):
    """Noisy linear data, learned from zero."""

    optimizer: str = optimizer_option("SGD")
    loss: str = loss_option("mse_loss")
    samples: int = option(512, "Training points.", low=2, high=10**6)
    dimension: int = option(16, "Dimension of the inputs.", low=1, high=10_000)
    steps: int = option(500, "Steps of gradient descent.", low=1, high=10**6)
    rate: float = option(0.1, "Learning rate.", low=1e-6, high=10.0)
    batch: int = option(16, "Samples in a step of the run with minibatches.", low=1, high=10**6)
    noise: float = option(0.1, "Standard deviation of the labels' noise.", low=0.0)


def run(config: Config) -> Result:
    """Train on all points and on minibatches, account with the left rule, compare the kernel."""
    draw = torch.Generator().manual_seed(config.seed)
    d = config.dimension
    x, q = (torch.randn(n, d, generator=draw, dtype=torch.float64) for n in (config.samples, 64))
    truth = torch.randn(d, 1, generator=draw, dtype=torch.float64)
    y = x @ truth + config.noise * torch.randn(config.samples, 1, generator=draw, dtype=torch.float64)
    x, y, q = (t.to(config.device) for t in (x, y, q))
    errors, shares = {}, {}
    for name, size in (("all", config.samples), ("minibatches", min(config.batch, config.samples))):
        with scratch() as folder:
            a, model = _account(f"{folder}/run", x, y, q, size, draw, config)
        errors[name] = a.relative_residual
        most = (
            (q @ x.T).abs().argmax(0, keepdim=True)
        )  # the query by which a sample's coefficient is read off
        coefficient = a.contributions[:, 0].to(x).gather(0, most) / (q @ x.T).gather(0, most)
        shares[name] = torch.stack([(y - model(x).detach())[:, 0], coefficient[0]])
    kernel = ntkit.EmpiricalNTK(nn.Linear(d, 1, bias=False).double().to(config.device))
    cosine = cosine_similarity(q[:, None], x[None], dim=-1)
    off = float((kernel(q, x) - q @ x.T).abs().max())
    off_cosine = float((kernel.normalized()(q, x) - cosine).abs().max())
    claims = (
        Claim("error of Eq. 9 / movement, all points in a step", errors["all"], "0", high=1e-12),
        Claim("error of Eq. 9 / movement, minibatches", errors["minibatches"], high=1e-12),
        Claim("largest |K(x, x') - <x, x'>|", off, "0", high=1e-12),
        Claim("largest |normalized K - cosine|", off_cosine, "0", high=1e-12),
    )
    return Result(config, claims, shares)


def figure(result: Result) -> Figures:
    """Draw the coefficient of each sample in the sum for a prediction against the error left on it."""
    drawn, axes = panels(8.5, 3.8, columns=2, sharey=True)
    for ax, (name, text), color in zip(
        axes,
        {"all": "all points in a step", "minibatches": "minibatches"}.items(),
        (BLUE, ORANGE),
        strict=True,
    ):
        ax.plot(*result.arrays[name], ".", ms=4, color=color)
        finish(ax, title=text, xlabel="error left on the sample, y − f(x)")
    axes[0].set_ylabel("its coefficient: contribution / ⟨x, query⟩")
    return {"The coefficient of each sample": drawn}


def _account(
    folder: str, x: Tensor, y: Tensor, q: Tensor, size: int, draw: torch.Generator, config: Config
) -> tuple[ntkit.Account, nn.Module]:
    model = nn.Linear(x.shape[1], 1, bias=False).double().to(config.device)
    nn.init.zeros_(model.weight)
    optimizer = optimizer_of(config.optimizer, model.parameters(), config.rate)
    orders = (torch.randperm(len(x), generator=draw) for _ in range(config.steps))
    batches = (order[:size].sort().values for order in orders)
    train_recorded(folder, model, optimizer, loss_of(config.loss), (x, y), batches)
    return ntkit.account(folder, model, loss_of(config.loss), train=(x, y), queries=q, nodes="left"), model
