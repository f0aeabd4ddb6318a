"""Checkpoints every m steps: the steps between are replayed, bit for bit, or refused."""

from __future__ import annotations

import gc
import itertools
import os
import shutil
from weakref import WeakSet

import pytest
import torch
from runs import GRID, ball, batches, mlp, square
from torch import nn, optim

import ntkit
from ntkit.compute.threads import threads
from ntkit.errors import NtkitError, PathMismatchError
from ntkit.training.accounts.sweep import Sweep
from ntkit.training.folder.run import Run
from ntkit.training.replay.checkpointed import CheckpointedRun

COLUMNS = ("contributions", "initial", "decay", "start", "buffers", "rounding", "residual", "prediction")


def train(
    tmp_path,
    model,
    optimizer,
    data,
    indices,
    every,
    loss=square,
    clip=None,
    scheduler=None,
    scaler=None,
    **more,
):
    """Record the same training twice at once: each step, and checkpoints."""
    x, y = data
    full, sparse = tmp_path / "full", tmp_path / "sparse"
    with (
        ntkit.record(full, model, optimizer, scaler=scaler, **more) as one,
        ntkit.record(sparse, model, optimizer, scaler=scaler, every=every, **more) as two,
    ):
        for index in indices:
            one.batch(index)
            two.batch(index)
            optimizer.zero_grad()
            value = loss(model(x[index]), y[index])
            (value if scaler is None else scaler.scale(value)).backward()
            if scaler is not None:
                scaler.unscale_(optimizer)
            if clip is not None:
                clip(list(model.parameters()))
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            if scheduler is not None:
                scheduler.step()
    return full, sparse


def same(full, sparse, model, data, loss=square, queries=GRID[::9], **options):
    queries = queries.to(data[0].dtype)
    a, b = (ntkit.account(f, model, loss, train=data, queries=queries, **options) for f in (full, sparse))
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)
    assert b.converged
    return b


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: optim.AdamW(p, 0.01, amsgrad=True),
        lambda p: optim.RMSprop(p, torch.tensor(0.003), momentum=0.5, centered=True, foreach=False),
        lambda p: optim.Adafactor(p, 0.02),
    ],
)
def test_the_same_as_with_all_steps(make, dtype, tmp_path):
    model, data = mlp(dtype), ball(16, dtype)
    optimizer = make(model.parameters())
    folders = train(tmp_path, model, optimizer, data, batches(16, 5, 23), 6)
    same(*folders, model, data, tol=1e-6)
    with Run(folders[0]) as full, CheckpointedRun(folders[1], model, square, data, None) as run:
        assert run.steps == 23
        for k in (0, 23, 5, 17, 6, 12):  # in any order
            assert torch.equal(run.weights(k), full.weights(k))


@pytest.mark.parametrize("clip", ["norm", "value"])
def test_groups_schedules_clipping_and_parameters_without_gradients(clip, tmp_path):
    model, data = mlp(torch.float32), ball(16, torch.float32)
    groups = [
        {"params": [model[0].weight], "lr": 0.02},
        {"params": [*model[2].parameters(), *model[4].parameters()]},
    ]
    optimizer = optim.Adam(groups, 0.01, weight_decay=1e-3)
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)

    def clipped(parameters):
        model[2].bias.grad = None if scheduler.last_epoch % 4 == 1 else model[2].bias.grad
        if clip == "norm":
            nn.utils.clip_grad_norm_(parameters, 0.05)
        else:
            nn.utils.clip_grad_value_(parameters, 0.01)

    folders = train(
        tmp_path, model, optimizer, data, batches(16, 5, 20), 7, clip=clipped, scheduler=scheduler
    )
    same(*folders, model, data, tol=1e-6)


def test_batch_norm_dropout_and_a_scaler(tmp_path):
    torch.manual_seed(0)
    layers = nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1)
    model, data = nn.Sequential(*layers), ball(16, torch.float32)
    optimizer, scaler = optim.SGD(model.parameters(), 0.05, momentum=0.5), torch.amp.GradScaler("cpu", 1024.0)
    folders = train(tmp_path, model, optimizer, data, batches(16, 8, 20), 8, scaler=scaler)
    a = same(*folders, model, data, tol=1e-6)
    assert a.buffers.abs().max() > 0


def test_it_is_small_and_works_in_tiles(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkit.training.replay.checkpointed._OPEN", 0)  # as with large records
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(2, 300), nn.Tanh(), nn.Linear(300, 1)).double(), ball(16)
    folders = train(tmp_path, model, optim.Adam(model.parameters(), 1e-3), data, batches(16, 5, 60), 30)
    full, sparse = (os.path.getsize(f / "steps.log") for f in folders)
    assert sparse < full / 8
    a = ntkit.account(folders[1], model, square, train=data, queries=GRID[::9], memory=2**19)
    b = ntkit.account(folders[0], model, square, train=data, queries=GRID[::9], memory=2**19)
    assert all(torch.equal(getattr(a, name), getattr(b, name)) for name in COLUMNS)


def test_steps_that_cannot_be_made_again_are_refused(tmp_path):
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05)
    _, sparse = train(tmp_path, model, optimizer, (x, y), batches(16, 5, 20), 10)
    with pytest.raises(PathMismatchError, match=r"Step 0 of .* bit for bit"):
        ntkit.account(sparse, model, square, train=(x, y + 1e-9), queries=GRID)
    with pytest.raises(NtkitError, match="every is 0"):
        ntkit.record(tmp_path / "other", model, optimizer, every=0)


def test_what_a_kill_leaves_is_an_account_of_the_finished_steps(tmp_path):
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.Adam(model.parameters(), 0.01)
    with ntkit.record(tmp_path / "sparse", model, optimizer, every=6) as run:
        for k, index in enumerate(batches(16, 5, 20)):
            if k == 15:  # a killed process leaves these files, and perhaps a part of a record
                shutil.copytree(tmp_path / "sparse", tmp_path / "killed")
                with open(tmp_path / "killed" / "steps.log", "ab") as log:
                    log.write(b"NTK1 torn")
                there = [p.detach().clone() for p in model.parameters()]
            run.batch(index)
            optimizer.zero_grad()
            square(model(x[index]), y[index]).backward()
            optimizer.step()
    a = ntkit.account(tmp_path / "killed", model, square, train=(x, y), queries=GRID[::9])
    assert a.steps == 15 and a.converged
    torch.nn.utils.vector_to_parameters(torch.cat([p.flatten() for p in there]), model.parameters())
    assert torch.allclose(a.prediction, model(GRID[::9]).detach(), atol=1e-12)


@pytest.mark.parametrize("count", [1, 2])
def test_steps_are_replayed_in_as_many_threads_as_they_were_made_in(count, tmp_path):
    """Sums of a long batch are divided among the threads, and rounded otherwise in another number of them."""
    x, y = torch.randn(60_000, 3), torch.randn(60_000, 1)
    model = nn.Linear(3, 1)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    ends = []
    for threads_of_training in (3 - count, count):
        model.load_state_dict(start)
        optimizer = optim.SGD(model.parameters(), 0.1)
        with (
            threads(threads_of_training),
            ntkit.record(tmp_path / "run", model, optimizer, every=3, overwrite=True) as run,
        ):
            for _ in range(4):
                run.batch(range(len(x)))
                optimizer.zero_grad()
                square(model(x), y).backward()
                optimizer.step()
        ends.append(model.weight.detach().clone())
    assert not torch.equal(*ends)  # else nothing is tested here
    with threads(3 - count):
        a = ntkit.account(tmp_path / "run", model, square, train=(x, y), queries=x[:2], tol=1e-3)
        assert a.converged and torch.get_num_threads() == 3 - count


def test_nodes_are_added_in_few_passes_over_the_steps(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 1)).double(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.2, momentum=0.9)
    full, sparse = train(tmp_path, model, optimizer, data, batches(16, 5, 60), 20)
    monkeypatch.setattr("ntkit.training.accounts.request.NARROW", 0)  # as in large networks
    a = ntkit.account(full, model, square, train=data, queries=GRID[::9], tol=1e-3)
    read = []
    weights = CheckpointedRun.weights

    def counted(self, k):
        read.append(k)
        return weights(self, k)

    plan = Sweep.plan
    monkeypatch.setattr(CheckpointedRun, "weights", counted)

    def planned(self, done):
        read.clear()
        plan(self, done)
        back = sum(later < earlier for earlier, later in itertools.pairwise(read))
        passes.append(back + 1)

    passes = []
    monkeypatch.setattr(Sweep, "plan", planned)
    b = ntkit.account(sparse, model, square, train=data, queries=GRID[::9], tol=1e-3)
    assert a.converged
    assert b.converged
    moved = (b.prediction - b.initial).abs().max()
    assert (a.contributions.sum(-1) - b.contributions.sum(-1)).abs().max() <= 2e-3 * moved
    assert max(passes) <= 4, passes  # one refinement in each would take 6


def test_of_large_networks_few_weights_are_held_at_a_time(tmp_path, monkeypatch):
    """Bytes bound the records that are held, and a segment that is closed holds none.

    That the collector of cycles is off sees that nothing waits for it: its next turn may be far away.
    """
    torch.manual_seed(0)
    norms = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.Flatten()
    model = nn.Sequential(*norms, nn.Linear(256, 1))
    data = torch.randn(24, 1, 6, 6), torch.randn(24, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    indices = [torch.randperm(24)[:8] for _ in range(16)]
    _, sparse = train(tmp_path, model, optimizer, data, indices, every=4)
    size = 4 * sum(p.numel() for p in model.parameters())
    monkeypatch.setattr("ntkit.training.folder.run._KEPT", size)
    monkeypatch.setattr("ntkit.training.replay.checkpointed._OPEN", size // 2)
    most, open_, read = 0, WeakSet(), Run._record

    def seen(run, number):
        nonlocal most
        found = read(run, number)
        open_.add(run)
        most = max(most, len(open_))
        assert run._bytes <= max(size, 2 * (2 * size + 2**14))  # a checkpoint holds the momentum, too
        return found

    gc.collect()
    before = alive(size)
    gc.disable()
    monkeypatch.setattr(Run, "_record", seen)
    try:
        with torch.no_grad():
            a = ntkit.account(sparse, model, square, train=data, queries=data[0][:2], tol=1e-2)
        assert a.converged
        assert alive(size) == before
    finally:
        gc.enable()
    assert most == 2  # the run, and the segment that is open


def alive(size):
    """Count what is as large as all weights together."""
    found = {}
    for o in gc.get_objects():
        if type(o) is torch.Tensor and o.layout == torch.strided:
            found[o.untyped_storage().data_ptr()] = o.untyped_storage().nbytes()
    return sum(bytes_ >= size for bytes_ in found.values())
