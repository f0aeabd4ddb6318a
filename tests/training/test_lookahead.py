"""Lookahead: after each k-th step the weights go back to a part of the way that they came."""

from __future__ import annotations

import pytest
import torch
from runs import GRID, ball, batches, forward_oracle, mlp, square, worst
from torch import optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import ntkit
from ntkit.errors import NtkitError
from ntkit.training.accounts.averaged_account import Averages
from ntkit.training.folder.run import Run

QUERIES = GRID[::9]


class Lookahead:
    """As people write it: an optimizer in it, slow weights beside it."""

    def __init__(self, inner, k, alpha):
        self.inner, self.k, self.alpha, self.steps = inner, k, alpha, 0
        self.slow = [p.detach().clone() for g in inner.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self):
        self.inner.step()
        self.steps += 1
        if self.steps % self.k == 0:
            fast = (p for g in self.inner.param_groups for p in g["params"])
            for p, slow in zip(fast, self.slow, strict=True):
                slow += self.alpha * (p - slow)
                p.copy_(slow)


def train(folder, model, inner, data, k=5, alpha=0.5, steps=23, told=None, average=None, since=0):
    x, y = data
    optimizer = Lookahead(inner, k, alpha)
    indices = batches(len(x), 5, steps)

    def step(index):
        inner.zero_grad()
        square(model(x[index]), y[index]).backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

    for index in indices[:since]:
        step(index)
    with ntkit.record(folder, model, inner, train=data, average=average, lookahead=told or k) as run:
        for index in indices[since:]:
            run.batch(index)
            step(index)
    return run


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
    "AdamW": lambda p: optim.AdamW(p, 1e-2, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("since", [0, 10])
def test_the_account_of_lookahead(name, since, tmp_path):
    model, data = mlp(), ball(16)
    run = train(tmp_path / "run", model, OPTIMIZERS[name](model.parameters()), data, since=since)
    assert run.steps == 23 - since + (23 - since) // 5
    a = ntkit.account(tmp_path / "run", model, square, train=data, queries=QUERIES, nodes=6)
    columns = (a.initial, a.contributions.sum(-1), a.decay, a.start, a.rounding, a.residual)
    assert torch.allclose(sum(columns), a.prediction, rtol=0, atol=1e-13)
    assert torch.allclose(a.prediction, model(QUERIES).detach(), rtol=0, atol=1e-14)
    assert worst(a) <= 2e-14 and a.rounding.abs().max() <= 1e-13
    expected = forward_oracle(tmp_path / "run", model, data, QUERIES, 6)
    assert (a.contributions[:, 0] - expected).abs().max() <= 1e-10 * expected.abs().max()
    with Run(tmp_path / "run") as opened:
        kept = [opened.step(k).kept for k in range(opened.steps)]
    assert [k for k in kept if k is not None] == pytest.approx([0.5] * ((23 - since) // 5), abs=1e-12)
    assert ntkit.account(tmp_path / "run", model, square, train=data, queries=QUERIES).converged


def test_float32_an_average_beside_it_and_the_loss_of_every_fast_step(tmp_path):
    model, data = mlp(torch.float32), ball(16, torch.float32)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    train(tmp_path / "run", model, optim.Adam(model.parameters(), 1e-2), data, 4, 0.8, average=averaged)
    for average in (False, True):
        a = ntkit.account(
            tmp_path / "run", model, square, train=data, queries=QUERIES.float(), average=average
        )
        exact = (averaged if average else model)(QUERIES.float()).detach().double()
        assert a.converged and torch.allclose(a.prediction, exact, rtol=0, atol=1e-5)
        with Run(tmp_path / "run") as run:
            averages = Averages(run, 2**20) if average else None
        double = mlp()
        expected = forward_oracle(
            tmp_path / "run", double, tuple(t.double() for t in data), QUERIES, 6, averages
        )
        assert (a.contributions[:, 0] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_an_account_that_is_cut_into_pieces_and_its_kernel(tmp_path):
    model, data = mlp(), ball(16)
    train(tmp_path / "run", model, optim.SGD(model.parameters(), 0.1), data)
    whole = ntkit.account(tmp_path / "run", model, square, train=data, queries=QUERIES)
    small = ntkit.account(tmp_path / "run", model, square, train=data, queries=QUERIES, memory="1MiB")
    assert torch.allclose(whole.contributions, small.contributions, rtol=0, atol=1e-13)
    k = ntkit.PathKernel(tmp_path / "run", model, loss=square, train=data)(QUERIES)
    assert torch.allclose(k, k.T) and torch.linalg.eigvalsh(k)[0] >= -1e-10 * k.max()


def test_what_lookahead_is_not(tmp_path):
    model, data = mlp(), ball(16)
    sgd = optim.SGD(model.parameters(), 0.1)
    with pytest.raises(NtkitError, match="to a part"):  # the slow weights are those of two steps ago
        train(tmp_path / "late", model, sgd, data, since=2, told=3)
    with pytest.raises(NtkitError, match="by something other than"):
        train(tmp_path / "other", model, sgd, data, told=4)
    with pytest.raises(NtkitError, match="lookahead is 0, expected a number of steps"):
        ntkit.record(tmp_path / "none", model, sgd, lookahead=0)
    with pytest.raises(NtkitError, match="every=1"):
        ntkit.record(tmp_path / "sparse", model, sgd, lookahead=5, every=10)
