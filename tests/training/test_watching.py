"""Accounts made while training, against those made afterwards."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import torch
from runs import GRID, ball, batches, mlp, square
from torch import nn, optim

import ntkit
from ntkit.errors import NtkitError, PathMismatchError

COLUMNS = ("contributions", "decay", "start", "buffers", "rounding")


def loop(model, optimizer, data, indices, loss, *runs):
    x, y = data
    for index in indices:
        for run in runs:
            run.batch(index)
        optimizer.zero_grad()
        loss(model(x[index]), y[index]).backward()
        optimizer.step()


def both(folder, model, optimizer, data, indices, queries, loss=square, **options):
    """Watch and record at the same time; return both accounts."""
    with (
        ntkit.record(folder, model, optimizer) as recorded,
        ntkit.watch(model, optimizer, loss, data, queries, **options) as watched,
    ):
        loop(model, optimizer, data, indices, loss, recorded, watched)
    return ntkit.account(folder, model, loss, train=data, queries=queries, **options), watched.account


OPTIMIZERS = {
    "SGD": (lambda p: optim.SGD(p, 0.05, weight_decay=1e-3), 0),
    "momentum": (lambda p: optim.SGD(p, 0.02, momentum=0.7), 1e-9),
    "AdamW": (lambda p: optim.AdamW(p, 0.01, betas=(0.8, 0.99)), 1e-9),
    "RMSprop": (lambda p: optim.RMSprop(p, 0.003), 0),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_same_as_afterwards(name, tmp_path):
    make, _ = OPTIMIZERS[name]
    model, data = mlp(), ball(16)
    afterwards, watched = both(
        tmp_path / "run", model, make(model.parameters()), data, batches(16, 5, 230), GRID[::9], nodes=4
    )
    size = afterwards.contributions.abs().max()
    for column in COLUMNS:
        assert (getattr(watched, column) - getattr(afterwards, column)).abs().max() <= 1e-9 * size, column
    assert torch.equal(watched.prediction, afterwards.prediction) and watched.steps == 230
    assert watched.nodes == afterwards.nodes and watched.converged == afterwards.converged


def test_it_reaches_its_tolerance_with_momentum_from_before(tmp_path):
    model, data = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.02, momentum=0.8)
    loop(model, optimizer, data, batches(16, 5, 5), square)
    afterwards, watched = both(
        tmp_path / "run", model, optimizer, data, batches(16, 5, 300, seed=1), GRID[::9]
    )
    assert watched.converged and watched.start.abs().max() > 1e-4
    assert (watched.start - afterwards.start).abs().max() <= 1e-8 * afterwards.start.abs().max()


def test_batch_norm_and_dropout(tmp_path):
    torch.manual_seed(0)
    layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
    model, data = nn.Sequential(*layers).double(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.5)
    afterwards, watched = both(tmp_path / "run", model, optimizer, data, batches(16, 8, 60), GRID[::20])
    assert watched.converged
    for column in COLUMNS:
        assert torch.allclose(getattr(watched, column), getattr(afterwards, column), rtol=1e-7, atol=1e-9)


def test_targets_and_memory(tmp_path):
    model, data = mlp(torch.float32), ball(16, torch.float32)
    labels = torch.ones(len(GRID[::9]), 1)
    optimizer = optim.Adam(model.parameters(), 0.01, betas=(0.6, 0.9))
    afterwards, watched = both(
        tmp_path / "run", model, optimizer, data, batches(16, 8, 60), GRID[::9].float(), target="loss",
        labels=labels, memory=2**18, tol=1e-6,
    )  # fmt: skip
    assert watched.converged and watched.contributions.shape == (9, 1, 16)
    assert torch.allclose(watched.contributions, afterwards.contributions, rtol=1e-5, atol=1e-7)


def test_little_is_stored_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    model, data = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.5)
    most = 0
    with ntkit.watch(model, optimizer, square, data, GRID[:4], tol=1e-6) as run:
        for index in batches(16, 5, 200):
            loop(model, optimizer, data, [index], square, run)
            stored = [p for p in Path(tmp_path).rglob("steps.log")]
            most = max(most, sum(os.path.getsize(p) for p in stored))
    assert most < 200 * 151 * 8 / 2
    assert list(tmp_path.iterdir()) == [] and run.account.steps == 200


def test_refusals():
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05)
    with pytest.raises(NtkitError, match="only when training is over"):
        ntkit.watch(model, optimizer, square, (x, y), GRID, target="predicted")
    with pytest.raises(NtkitError, match="tol"):
        ntkit.watch(model, optimizer, square, (x, y), GRID, tol=0)
    with pytest.raises(PathMismatchError, match="Step 0"):
        with ntkit.watch(model, optimizer, square, (x, -y), GRID) as run:
            for _ in range(20):
                run.batch(range(4))
                optimizer.zero_grad()
                square(model(x[:4]), y[:4]).backward()
                optimizer.step()
    run = ntkit.watch(model, optimizer, square, (x, y), GRID)
    with pytest.raises(NtkitError, match="no account before"):
        _ = run.account
