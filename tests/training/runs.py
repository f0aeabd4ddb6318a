"""Small real runs, recorded: what the tests of this room are fed from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

import ntkit
from ntkit.data.toy import ball_sphere
from ntkit.training.folder.run import Run

GRID = torch.cartesian_prod(*2 * (torch.linspace(-1.2, 1.2, 9, dtype=torch.float64),))


def square(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean()


def mlp(
    dtype: torch.dtype = torch.float64, activation: type[nn.Module] = nn.GELU, seed: int = 4
) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(2, 10), activation(), nn.Linear(10, 10), activation(), nn.Linear(10, 1))
    return nn.Sequential(*layers).to(dtype)


def batches(n: int, size: int, steps: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randperm(n, generator=draw)[:size] for _ in range(steps)]


def train(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: tuple[Tensor, Tensor],
    indices: Iterable[Tensor],
    loss: Callable[[Tensor, Tensor], Tensor] = square,
    hashed: bool = True,
    scheduler: torch.optim.lr_scheduler.LRScheduler | None = None,
    clip: Callable[[list[nn.Parameter]], object] | None = None,
) -> Path:
    x, y = data
    with ntkit.record(folder, model, optimizer, train=data if hashed else None) as run:
        for index in indices:
            run.batch(index)
            optimizer.zero_grad()
            loss(model(x[index]), y[index]).backward()
            if clip is not None:
                clip(list(model.parameters()))
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
    return folder


def ball(n: int = 64, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return ball_sphere(n, seed=0, dtype=dtype)


def worst(account: ntkit.Account) -> float:
    return float(account.residual.abs().max() / account.prediction.abs().max())


def forward_oracle(
    folder: Path, model: nn.Module, data: tuple[Tensor, Tensor], queries: Tensor, nodes: int, average=None
) -> Tensor:
    """Contributions ``[q, n]`` by carrying each sample's gradients and momentum along, mean square loss.

    ``average`` are the Averages of the run, if they are to its averaged network.
    """
    from ntkit.training.integrals.quadrature import gauss

    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def f(w: Tensor, x: Tensor) -> Tensor:
        parts = w.split([s.numel() for s in shapes])
        weights = {name: p.view(s) for name, p, s in zip(names, parts, shapes, strict=True)}
        return torch.func.functional_call(model, weights, (x,))[:, 0]

    x, y = data
    with Run(folder) as run:
        momentum = torch.zeros(len(x), run.weights(0).numel(), dtype=torch.float64)
        lag, way = torch.zeros_like(momentum), torch.zeros_like(momentum)
        contributions = torch.zeros(len(queries), len(x), dtype=torch.float64)
        for k in range(run.steps):
            w, step = run.weights(k), run.step(k)
            c, batch = step.coefficients, step.batch
            rows = torch.zeros_like(momentum)
            if len(batch):  # none where Lookahead goes back
                jacobian = torch.autograd.functional.jacobian(lambda w, b=batch: f(w, x[b]), w)
                error = 2 * (f(w, x[batch]) - y[batch, 0]).detach() / len(batch)
                rows.index_add_(0, batch, error[:, None] * jacobian)
            rows = c.scale * rows
            momentum = c.mu * momentum + c.nu * rows
            delta = -step.multiplied(c.a * rows + c.b * momentum)
            if step.kept is None:
                way = way + delta
            else:  # Lookahead goes back on each sample's part of the way
                delta, way = (step.kept - 1) * way, torch.zeros_like(way)
            if average is not None:  # each sample's part of w - v, of which v takes tau
                tau, w = average.taus[k + 1], average.weights(k)
                delta, lag = tau * (lag + delta), (1 - tau) * (lag + delta)
            move = (run if average is None else average).weights(k + 1) - w
            d = sum(
                share * torch.autograd.functional.jacobian(lambda w: f(w, queries), w + s * move)
                for s, share in zip(*gauss(nodes), strict=True)
            )
            contributions += d @ delta.T
    return contributions
