"""The tolerance is a promise: rules along steps, for smooth networks and for those with kinks."""

from __future__ import annotations

import time

import pytest
import torch
from runs import GRID, ball, batches, mlp, square, train
from torch import nn, optim

import ntkit
from ntkit.training.accounts.checks import query_network
from ntkit.training.integrals.adaptive import query_rule
from ntkit.training.integrals.along_step import AlongStep
from ntkit.training.integrals.kinks import find_kinks


class Folded(nn.Module):
    """A kink that no table knows: the larger half of sorted values."""

    def forward(self, x):
        return x.sort(1).values[:, x.shape[1] // 2 :]


def maxout():
    return nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3, padding=1), nn.MaxPool2d(2), nn.Flatten()
    )


KINKED = {
    "ReLU": lambda: nn.Sequential(
        nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 2)
    ),
    "leaky ReLU": lambda: nn.Sequential(nn.Linear(16, 12), nn.LeakyReLU(0.1), nn.Linear(12, 2)),
    "hardtanh": lambda: nn.Sequential(nn.Linear(16, 12), nn.Hardtanh(-0.3, 0.3), nn.Linear(12, 2)),
    "max pool": lambda: nn.Sequential(maxout(), nn.Linear(12, 2)),
    "max pool and ReLU, in place": lambda: nn.Sequential(maxout(), nn.ReLU(inplace=True), nn.Linear(12, 2)),
    "sorted": lambda: nn.Sequential(nn.Linear(16, 8), Folded(), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("name", KINKED)
def test_kinked_networks_reach_the_tolerance(name, tmp_path):
    torch.manual_seed(0)
    model = KINKED[name]().double()
    data = torch.randn(24, 16, dtype=torch.float64), torch.arange(24) % 2
    loss = nn.CrossEntropyLoss()
    optimizer = optim.Adam(model.parameters(), 0.01)
    folder = train(tmp_path / "run", model, optimizer, data, batches(24, 8, 30), loss)
    queries = torch.randn(7, 16, dtype=torch.float64)
    a = ntkit.account(folder, model, loss, train=data, queries=queries, tol=1e-6)
    fixed = ntkit.account(folder, model, loss, train=data, queries=queries, nodes=3)
    print(
        f"{name}: {a.relative_residual:.1e} with {a.spent}, {fixed.relative_residual:.1e} with {fixed.spent}"
    )
    assert a.converged and a.relative_residual <= 1e-6 < fixed.relative_residual
    assert len(a.nodes) > 1 and sum(a.nodes.values()) == 30  # steps differ
    assert fixed.spent == 30 * 7 * 3


def test_smooth_steps_of_unlike_length_take_unlike_numbers_of_nodes(tmp_path):
    model, data = mlp(), ball(32)
    optimizer = optim.SGD(model.parameters(), 0.2)
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
    folder = train(tmp_path / "run", model, optimizer, data, batches(32, 8, 40), scheduler=scheduler)
    a = ntkit.account(folder, model, square, train=data, queries=GRID)
    assert a.converged and len(a.nodes) >= 3


def along_a_step(kind=nn.ReLU, size=0.5):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 9), kind(), nn.Linear(9, 9), kind(), nn.Linear(9, 2)).double()

    class Start:
        device, start, trained = "cpu", {}, {name: p.shape for name, p in model.named_parameters()}
        shapes = trained

    net = query_network(Start, model)
    w = torch.cat([p.detach().flatten() for p in model.parameters()])
    delta = size * torch.randn_like(w) * w.abs().mean()
    x = torch.randn(6, 2, dtype=torch.float64)
    return net, w, delta, x


@pytest.mark.parametrize("structured", [True, False])
def test_rule_of_a_step_against_a_very_fine_one(structured):
    net, w, delta, x = along_a_step()
    structure = net.structure(x) if structured else None
    assert structured == (structure is not None)
    along = AlongStep(net, structure, x, w, delta, 2**24)
    first, last = net.outputs(w, x), net.outputs(w + delta, x)
    rule = query_rule(along, first, last, 1e-9)
    out = torch.empty(6, 2, net.total, dtype=torch.float64)
    along.averaged(rule.rows, rule.s, rule.shares, out)
    assert (out @ delta - (last - first)).abs().max() <= 1e-9
    fine = 1000
    middle = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine
    truth = sum(
        torch.func.vmap(torch.func.jacrev(lambda w, x: net.sample(net.unflatten(w), x)), (None, 0))(
            w + s * delta, x
        )
        for s in middle
    )
    assert (out - truth / fine).abs().max() <= 8e-3 * truth.abs().max() / fine
    assert rule.total < 6 * 100 if structured else rule.total < 6 * 2000


def test_kinks_are_where_gradients_jump():
    net, w, delta, x = along_a_step(size=0.4)
    along = AlongStep(net, net.structure(x), x, w, delta, 2**24)
    rows, s = find_kinks(along.switches, torch.arange(6), 1000)
    assert len(s) >= 5
    before, after, further = (along.slopes(rows, s + h) for h in (-1e-7, 1e-7, 3e-7))
    jump, smooth = (after - before).abs().amax(1), (further - after).abs().amax(1)
    assert (jump > 1e3 * smooth).all()
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
    for row in range(6):  # and nowhere else
        slopes = along.slopes(torch.full_like(grid, row, dtype=torch.long), grid)
        bend = (slopes[2:] - 2 * slopes[1:-1] + slopes[:-2]).abs().amax(1)
        places = grid[1:-1][bend > 1e-5 * slopes.abs().max()]
        own = s[rows == row]
        assert all((own - place).abs().min() <= 1.01e-4 for place in places)


@pytest.mark.slow
def test_relu_network_on_mnist_in_five_minutes(tmp_path):
    from ntkit.data.mnist import mnist

    digits = mnist(1000, held_out=20)
    x, y, queries = digits.train_x, digits.train_y, digits.held_out_x
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)).double()
    draw, indices = torch.Generator().manual_seed(0), []
    while len(indices) < 500:
        indices += torch.randperm(1000, generator=draw).split(32)
    optimizer, loss, data = optim.Adam(model.parameters(), 1e-3), nn.CrossEntropyLoss(), (x, y)
    folder = train(tmp_path / "run", model, optimizer, data, indices[:500], loss)
    begin = time.perf_counter()
    a = ntkit.account(folder, model, loss, train=data, queries=queries, tol=1e-4)
    seconds = time.perf_counter() - begin
    print(f"{seconds:.0f} s, residual {a.relative_residual:.1e}, gradients {a.spent}, nodes {a.nodes}")
    assert a.converged and a.relative_residual <= 1e-4 and seconds <= 300
