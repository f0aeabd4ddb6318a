"""Averages of the weights: EMA and SWA of torch, and modules of one's own."""

from __future__ import annotations

import copy

import pytest
import torch
from runs import GRID, ball, batches, forward_oracle, mlp, square, worst
from torch import optim
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

import ntkit
from ntkit.errors import NtkitError
from ntkit.training.accounts.averaged_account import Averages
from ntkit.training.folder.manifest import read_manifest, write_manifest
from ntkit.training.folder.run import Run

QUERIES = GRID[::9]


def train(folder, model, averaged, data, steps=25, when=lambda k: True, scheduler=False, optimizer=None):
    x, y = data
    optimizer = optimizer or optim.AdamW(model.parameters(), 1e-2)
    swa = SWALR(optimizer, 2e-2, anneal_epochs=10) if scheduler else None
    with ntkit.record(folder, model, optimizer, average=averaged) as run:
        for k, index in enumerate(batches(len(x), 5, steps)):
            run.batch(index)
            optimizer.zero_grad()
            square(model(x[index]), y[index]).backward()
            optimizer.step()
            if when(k):
                averaged.update_parameters(model)
                if swa is not None:
                    swa.step()
    return folder


def check(folder, model, averaged, data, dtype=torch.float64):
    a = ntkit.account(folder, model, square, train=data, queries=QUERIES.to(dtype), nodes=6, average=True)
    columns = (a.initial, a.contributions.sum(-1), a.decay, a.start, a.rounding, a.residual)
    assert torch.allclose(sum(columns), a.prediction, rtol=0, atol=1e-13)
    exact = averaged(QUERIES.to(dtype)).detach().double()
    assert torch.allclose(a.prediction, exact, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-5)
    assert worst(a) <= 2e-14
    assert a.rounding.abs().max() <= (1e-12 if dtype == torch.float64 else 1e-4)
    with Run(folder) as run:
        averages = Averages(run, 2**20)
    if dtype == torch.float64:
        expected = forward_oracle(folder, model, data, QUERIES, 6, averages)
        assert (a.contributions[:, 0] - expected).abs().max() <= 1e-10 * expected.abs().max()
    return a, averages


@pytest.mark.parametrize(
    "when", [lambda k: True, lambda k: k % 7 == 6, lambda k: k >= 15], ids=["always", "epochs", "late"]
)
@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_ema_and_swa(kind, when, tmp_path):
    model, data = mlp(), ball(16)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9) if kind == "ema" else None)
    folder = train(tmp_path / "run", model, averaged, data, when=when, scheduler=kind == "swa")
    a, averages = check(folder, model, averaged, data)
    plain = ntkit.account(folder, model, square, train=data, queries=QUERIES)
    assert plain.converged and (plain.prediction - a.prediction).abs().max() > 1e-3
    count = sum(when(k) for k in range(25))
    if kind == "swa":
        expected = [1 / n for n in range(1, count + 1)]
    else:
        expected = [1.0] + [0.1] * (count - 1)
    found = [tau for k, tau in enumerate(averages.taus[1:]) if when(k)]
    assert torch.allclose(torch.tensor(found), torch.tensor(expected), rtol=1e-9)


def test_an_average_from_before_the_recording_and_float32(tmp_path):
    for dtype in (torch.float64, torch.float32):
        model, data = mlp(dtype), ball(16, dtype)
        averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
        optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
        train(tmp_path / f"first{dtype}", model, averaged, data, 10, optimizer=optimizer)
        folder = train(tmp_path / f"then{dtype}", model, averaged, data, 20, optimizer=optimizer)
        a, _ = check(folder, model, averaged, data, dtype)
        assert a.start.abs().max() > 1e-3


def test_a_killed_recording_has_the_average_of_its_steps(tmp_path):
    model, data = mlp(), ball(16)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))

    class Stop(Exception):
        pass

    def when(k):
        if k == 12:
            raise Stop
        return True

    with pytest.raises(Stop):
        train(tmp_path / "run", model, averaged, data, when=when)
    a, _ = check(tmp_path / "run", model, averaged, data)
    assert a.steps == 13
    log = tmp_path / "run" / "steps.log"
    open_again = read_manifest(tmp_path / "run") | {"steps": None, "log_bytes": None, "status": "recording"}
    write_manifest(tmp_path / "run", open_again)
    for steps, cut in ((13, 7), (13, 3000), (12, 0)):
        b = ntkit.account(tmp_path / "run", model, square, train=data, queries=QUERIES, average=True)
        assert b.steps == steps and b.converged
        log.write_bytes(log.read_bytes()[: -cut or None])


def test_averages_that_cannot_be_accounted_for(tmp_path):
    model, data = mlp(), ball(16)
    other = torch.nn.Linear(2, 2).double()
    for average, message in (
        (3, "expected a module"),
        (other, "other parameters"),
        (model, "shares its weights"),
    ):
        with pytest.raises(NtkitError, match=message):
            ntkit.record(tmp_path / "none", model, optim.SGD(model.parameters(), 0.1), average=average)
    averaged = copy.deepcopy(model)

    def noisy(k):
        if k == 5:
            averaged[0].weight.data.add_(1e-3)
        return False

    with pytest.raises(NtkitError, match="part of the way"):
        train(tmp_path / "run", model, averaged, data, when=noisy)
    folder = tmp_path / "plain"
    with ntkit.record(folder, model, optim.SGD(model.parameters(), 0.1)):
        pass
    with pytest.raises(NtkitError, match="without an average"):
        ntkit.account(folder, model, square, train=data, queries=QUERIES, average=True)
