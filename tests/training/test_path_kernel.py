"""The path kernel, and a network as a kernel machine with it, against Jacobians made by autograd."""

from __future__ import annotations

import pytest
import torch
from runs import GRID, ball, batches, mlp, square, train
from torch import nn, optim

import ntkit
from ntkit.errors import NtkitError
from ntkit.training.accounts.path_machine import PathMachine
from ntkit.training.folder.run import Run
from ntkit.training.integrals.gauss import LEFT, gauss

X = GRID[::16]


def two_outputs():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def two_squares(outputs, targets):
    return ((outputs - targets) ** 2).mean()


@pytest.fixture(scope="module", params=["SGD", "Adam"])
def run(request, tmp_path_factory):
    model, (x, _) = two_outputs(), ball(16)
    data = x, torch.cat([x.sin(), x.cos()[:, :1]], 1)[:, :2]
    kind = {"SGD": lambda p: optim.SGD(p, 0.1), "Adam": lambda p: optim.Adam(p, 0.01)}[request.param]
    folder = tmp_path_factory.mktemp("path") / "run"
    train(folder, model, kind(model.parameters()), data, batches(16, 5, 12), two_squares)
    return folder, model, data


def oracle(folder, model, x1, x2, rule, time):
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def jacobian(w, x):
        def f(w):
            parts = zip(names, w.split([s.numel() for s in shapes]), shapes, strict=True)
            return torch.func.functional_call(model, {n: p.view(s) for n, p, s in parts}, (x,))

        return torch.autograd.functional.jacobian(f, w)

    total = 0
    with Run(folder) as run:
        for k in range(run.steps):
            w, delta, c = run.weights(k), run.weights(k + 1) - run.weights(k), run.step(k).coefficients
            rate = c.scale * (c.a + c.nu * c.b) if time == "rate" else 1.0
            for node, share in zip(*rule, strict=True):
                left, right = (jacobian(w + node * delta, x) for x in (x1, x2))
                total = total + share * torch.einsum("nop,mqp->nmoq", left * rate, right)
    return total


@pytest.mark.parametrize("time", ["rate", "steps"])
@pytest.mark.parametrize("nodes", ["left", 2])
def test_against_jacobians(nodes, time, run):
    folder, model, _ = run
    truth = oracle(folder, model, X, X[:3], LEFT if nodes == "left" else gauss(2), time)
    wanted = {
        "full": truth,
        "diagonal": torch.diagonal(truth, dim1=2, dim2=3),
        "trace": torch.diagonal(truth, dim1=2, dim2=3).sum(-1),
        "mean": torch.diagonal(truth, dim1=2, dim2=3).mean(-1),
    }
    for outputs, value in wanted.items():
        k = ntkit.PathKernel(folder, model, outputs=outputs, time=time, nodes=nodes)
        assert (k(X, X[:3]) - value).abs().max() <= 1e-12 * value.abs().max()
        own = k(X)
        i = torch.arange(len(X))
        assert (k.diag(X) - own[i, i]).abs().max() <= 1e-12 * own.abs().max()


def test_it_is_a_kernel(run):
    folder, model, _ = run
    k = ntkit.PathKernel(folder, model)
    block = k(X)
    assert (block - block.T).abs().max() <= 1e-13 * block.abs().max()
    assert torch.linalg.eigvalsh(block).min() >= -1e-12 * block.abs().max()
    assert torch.allclose((k + 2.0 * k)(X), 3 * block)
    assert torch.allclose(k.normalized()(X).diagonal(), torch.ones(len(X), dtype=torch.float64))
    small = ntkit.PathKernel(folder, model, memory=8 * 4 * 32 * 2 * 2)
    assert torch.allclose(small(X), block, rtol=1e-13)
    other = k.__sklearn_clone__().set_params(nodes=1, outputs="trace")
    assert other.get_params()["nodes"] == 1 and torch.allclose(other(X), 2 * block, rtol=1e-2, atol=1e-2)


def test_linear_regression_is_exact_with_the_left_rule(tmp_path):
    """Section 4.1: one tangent kernel, and Eq. 9 without its remainder."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    x = torch.randn(10, 3, dtype=torch.float64)
    data = x, x.sum(1, keepdim=True) + 0.1
    folder = train(
        tmp_path / "run", model, optim.SGD(model.parameters(), 0.05), data, [torch.arange(10)] * 40
    )
    queries = torch.randn(4, 3, dtype=torch.float64)
    a = ntkit.account(folder, model, square, train=data, queries=queries, nodes="left")
    assert a.relative_residual <= 1e-14
    k = ntkit.PathKernel(folder, model, nodes="left")
    assert torch.allclose(k(queries, x), 40 * 0.05 * queries @ x.T, rtol=1e-13)
    e = PathMachine(k, square, data).expand(queries, nodes="left")
    assert torch.allclose((e.coefficients * e.kernel).sum(-1) + e.bias, model(queries).detach(), atol=1e-13)
    with Run(folder) as run:  # a_n is minus the average of c_n, the same for all queries
        weights = torch.stack([run.weights(k) for k in range(40)])
    average = 2 * (weights @ x.T - data[1].T).mean(0) / 10
    assert torch.allclose(e.coefficients[:, 0], -average.expand(4, -1), atol=1e-12)


def test_expansions_add_up_and_small_kernels_are_not_divided_by(run):
    folder, model, data = run
    machine = PathMachine(ntkit.PathKernel(folder, model), two_squares, data)
    e = machine.expand(X)
    total = (e.coefficients * e.kernel).sum(-1) + e.guarded + e.rest + e.bias
    assert torch.allclose(total, e.prediction, atol=1e-13) and e.guarded.abs().max() == 0
    assert torch.allclose(e.prediction, model(X).detach(), atol=1e-12)
    careful = PathMachine(machine.kernel, two_squares, data, guard=0.5).expand(X)
    assert careful.guarded.abs().max() > 0 and (careful.coefficients == 0).any()
    total = (careful.coefficients * careful.kernel).sum(-1) + careful.guarded + careful.rest + careful.bias
    assert torch.allclose(total, careful.prediction, atol=1e-13)


def test_checkpoints_are_replayed(tmp_path):
    model, data = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05)
    with (
        ntkit.record(tmp_path / "full", model, optimizer) as one,
        ntkit.record(tmp_path / "sparse", model, optimizer, every=5) as two,
    ):
        for index in batches(16, 5, 12):
            one.batch(index), two.batch(index)
            optimizer.zero_grad()
            square(model(data[0][index]), data[1][index]).backward()
            optimizer.step()
    full = ntkit.PathKernel(tmp_path / "full", model)(X)
    assert torch.equal(full, ntkit.PathKernel(tmp_path / "sparse", model, loss=square, train=data)(X))
    with pytest.raises(NtkitError, match="give loss= and train="):
        ntkit.PathKernel(tmp_path / "sparse", model)(X)


def test_refusals(run, tmp_path):
    folder, model, data = run
    for wrong in (
        {"outputs": "all"},
        {"time": "epochs"},
        {"nodes": 0},
        {"nodes": "auto"},
        {"memory": "lots"},
    ):
        with pytest.raises(NtkitError):
            ntkit.PathKernel(folder, model, **wrong)
    with pytest.raises(NtkitError, match="differs from the one"):
        ntkit.PathKernel(folder, mlp())(X)
    with pytest.raises(NtkitError, match="NaN"):
        ntkit.PathKernel(folder, model)(X * torch.nan)
    with pytest.raises(NtkitError, match="guard"):
        PathMachine(ntkit.PathKernel(folder, model), square, data, guard=1.0)
    up = mlp()
    train(tmp_path / "up", up, optim.SGD(up.parameters(), 0.01, maximize=True), ball(8), batches(8, 4, 2))
    with pytest.raises(NtkitError, match="climbs the loss"):
        ntkit.PathKernel(tmp_path / "up", up)(X)
    none = train(tmp_path / "none", up, optim.SGD(up.parameters(), 0.01), ball(8), [])
    with pytest.raises(NtkitError, match="no steps"):
        ntkit.PathKernel(none, up)(X)
