"""Accounts at loose tolerances: nodes for the whole account, float32 where its rounding is little."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit
from ntkit.errors import PathMismatchError
from ntkit.training.accounts import request
from ntkit.training.integrals import along_step, whole
from ntkit.training.integrals.gauss import NESTED, nested
from ntkit.training.replay.checkpointed import CheckpointedRun


def recorded(folder, act=nn.ReLU, dtype=torch.float32, steps=12, lr=0.1, scale=1.0, training=True, every=1):
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Unflatten(1, (1, 6, 6)), nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), act()),
        *(nn.Conv2d(4, 6, 3, padding=1), act(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 3)),
    ).to(dtype)
    net.train(training)
    x, y = torch.randn(40, 36, dtype=dtype), torch.arange(40) % 3
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=1e-3)
    with ntkit.record(folder, net, optimizer, every=every) as run:
        for _ in range(steps):
            batch = torch.randperm(40)[:10]
            run.batch(batch)
            optimizer.zero_grad()
            (scale * F.cross_entropy(net(x[batch]), y[batch])).backward()
            optimizer.step()
    return net, x, y


def account(folder, net, x, y, tol, **options):
    return ntkit.account(folder, net, F.cross_entropy, train=(x, y), queries=x[:4], tol=tol, **options)


@pytest.mark.parametrize("level", range(len(NESTED)))
def test_nested_rules_are_exact_and_keep_their_nodes(level):
    nodes, shares = (torch.tensor(v, dtype=torch.float64) for v in nested(level))
    assert len(nodes) == NESTED[level] and (shares > 0).all()
    for degree in range(2 if level == 0 else (3 * NESTED[level] + 1) // 2 + 1):
        assert abs(float(shares @ nodes**degree) * (degree + 1) - 1) <= 1e-13
    if 0 < level:
        assert nested(level)[0][: NESTED[level - 1]] == pytest.approx(nested(level - 1)[0], abs=1e-14)


def each(act, tol, large):
    quick = (act, tol, large) in ((nn.ReLU, 1e-3, True), (nn.GELU, 1e-2, True), (nn.ReLU, 1e-2, False))
    return pytest.param(act, tol, large, marks=() if quick else pytest.mark.slow)


@pytest.mark.parametrize(
    "act, tol, large",
    [
        each(act, tol, large)
        for act in (nn.ReLU, nn.GELU)
        for tol in (1e-2, 1e-3, 1e-4)
        for large in (True, False)
    ],
)
def test_the_residual_is_within_the_tolerance_and_the_columns_are_those_of_float64(
    tmp_path, monkeypatch, act, tol, large
):
    if large:  # as networks that are, whose nodes are chosen for the whole account
        monkeypatch.setattr(request, "SMALL", 0)
    net, x, y = recorded(tmp_path, act)
    exact = account(tmp_path, net, x, y, 1e-8)
    found = account(tmp_path, net, x, y, tol)
    assert found.converged
    moved = (exact.prediction - exact.initial).abs().max()
    assert (found.residual.abs() <= found.unsigned + 1e-4 * moved).all()
    assert (found.contributions - exact.contributions).abs().max() <= max(2 * tol, 1e-3) * moved
    assert (found.buffers - exact.buffers).abs().max() <= 1e-5 * moved
    assert (found.decay - exact.decay).abs().max() <= 2 * tol * moved
    assert large or found.spent <= exact.spent


def test_fewer_nodes_than_with_equal_shares(tmp_path, monkeypatch):
    net, x, y = recorded(tmp_path)
    monkeypatch.setattr(request, "SMALL", 0)
    loose, tight = (account(tmp_path, net, x, y, tol) for tol in (3e-2, 1e-3))
    assert loose.spent < tight.spent
    assert loose.unsigned.max() > tight.unsigned.max()
    assert (loose.unsigned >= loose.residual.abs() - 1e-5).all()


def test_float32_where_its_rounding_is_little_else_float64(tmp_path, monkeypatch):
    seen = []
    precision = request.Request._precision
    monkeypatch.setattr(
        request.Request, "_precision", lambda *args: seen.append(precision(*args)) or seen[-1]
    )
    monkeypatch.setattr(request, "SMALL", 0)
    net, x, y = recorded(tmp_path / "moves", steps=6)
    account(tmp_path / "moves", net, x, y, 1e-3)
    net, x, y = recorded(tmp_path / "hardly", nn.GELU, steps=6, lr=1e-7, training=False)
    hardly = account(tmp_path / "hardly", net, x, y, 1e-3)
    assert seen == [torch.float32, torch.float64]
    assert hardly.converged
    account(tmp_path / "moves", *recorded(tmp_path / "again", steps=6), 1e-6)
    assert len(seen) == 2  # never asked for at a tight tolerance


@pytest.mark.parametrize("factor", [3.0, 1.01])
def test_another_loss_is_refused_at_a_loose_tolerance(tmp_path, factor):
    net, x, y = recorded(tmp_path, scale=factor)
    with pytest.raises(PathMismatchError, match="Step 0"):
        account(tmp_path, net, x, y, 1e-2)


def test_a_changed_label_is_refused_at_a_loose_tolerance(tmp_path):
    net, x, y = recorded(tmp_path)
    y = y.clone()
    y[:5] = (y[:5] + 1) % 3
    with pytest.raises(PathMismatchError):
        account(tmp_path, net, x, y, 1e-2)


def test_steps_of_many_kinks_are_halved_not_cut_at_each(tmp_path, monkeypatch):
    monkeypatch.setattr(request, "SMALL", 0)
    monkeypatch.setattr(along_step, "_FEW", 0)
    monkeypatch.setattr(whole, "NESTED", (1, 3))

    def cut(*_):
        raise AssertionError("cut at its kinks")

    monkeypatch.setattr(whole, "_cut", cut)
    net, x, y = recorded(tmp_path, steps=4, lr=0.3)
    found = account(tmp_path, net, x, y, 1e-3)
    assert found.converged
    assert max(found.nodes) >= 6  # two pieces of three


@pytest.mark.slow
def test_steps_between_checkpoints_are_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(request, "SMALL", 0)
    made = []
    make = CheckpointedRun._make
    monkeypatch.setattr(CheckpointedRun, "_make", lambda run, *a: (made.append(a[0]), make(run, *a)))
    net, x, y = recorded(tmp_path / "all", lr=0.3, steps=8)
    net2, *_ = recorded(tmp_path / "some", lr=0.3, every=2, steps=8)
    found = account(tmp_path / "some", net2, x, y, 1e-3)
    truth = account(tmp_path / "all", net, x, y, 1e-3)
    assert found.converged and sorted(made) == [0, 2, 4, 6]
    moved = (truth.prediction - truth.initial).abs().max()
    assert (found.contributions - truth.contributions).abs().max() <= 2e-3 * moved
    assert torch.equal(found.prediction, truth.prediction)

    monkeypatch.setattr(CheckpointedRun, "_has_room", lambda run: False)
    made.clear()
    again = account(tmp_path / "some", net2, x, y, 1e-3)
    assert torch.equal(again.contributions, found.contributions)
    assert set(made) == {0, 2, 4, 6} and len(made) <= 40  # best first goes back and forth: 50
