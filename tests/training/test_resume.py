"""Killed while accounting, and opened again: nothing finished is lost, and the result is the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import GRID, ball, batches, mlp, square, train
from torch import optim

import ntkit
from ntkit.errors import NtkitError, RunFolderError
from ntkit.training.accounts import sweep, tiles

SCRIPT = """
import sys, torch, ntkit
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from runs import GRID, ball, mlp, square
from ntkit.training.accounts import sweep, tiles
tiles.PAUSE, sweep.BLOCK = 0.0, 2**12
folder, kept, memory = sys.argv[2:]
ntkit.account(folder, mlp(), square, train=ball(32), queries=GRID, keep=kept, memory=int(memory))
"""
COLUMNS = ("contributions", "initial", "decay", "start", "buffers", "rounding", "residual", "prediction")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr("ntkit.training.accounts.sweep.BLOCK", 2**12)
    model, data = mlp(), ball(32)
    optimizer = optim.AdamW(model.parameters(), 1e-2)
    folder = train(tmp_path / "run", model, optimizer, data, batches(32, 8, 60))

    def account(**more):
        return ntkit.account(folder, mlp(), square, train=data, queries=GRID, **more)

    return folder, account


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in COLUMNS) and a.nodes == b.nodes


@pytest.mark.parametrize(
    ("memory", "wait"),
    [(2**30, "snapshot-000000"), pytest.param(2**18, "tile-000001", marks=pytest.mark.slow)],
)
def test_killed_while_accounting(memory, wait, run, tmp_path):
    folder, account = run
    kept = tmp_path / "kept"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parent), str(folder), str(kept), str(memory)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    begin = time.monotonic()
    while not (kept / f"{wait}.safetensors").exists():
        assert process.poll() is None and time.monotonic() - begin < 100
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = sorted(p.name for p in kept.iterdir() if not p.name.startswith("."))
    before = {p.name: p.stat().st_mtime_ns for p in kept.iterdir() if p.name.startswith("tile")}
    assert f"{wait}.safetensors" in there
    a = account(keep=kept, memory=memory)
    assert all((kept / name).stat().st_mtime_ns == when for name, when in before.items())
    assert same(a, account(memory=memory))


def test_snapshots_are_gone_on_from(run, tmp_path, monkeypatch):
    _, account = run
    monkeypatch.setattr(tiles, "PAUSE", 0.0)
    monkeypatch.setattr(
        "ntkit.training.accounts.store.PartStore.save_finished",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        account(keep=tmp_path / "kept")
    monkeypatch.undo()
    monkeypatch.setattr("ntkit.training.accounts.sweep.BLOCK", 2**12)
    done = []
    blocks = tiles.Sweep.blocks
    monkeypatch.setattr(tiles.Sweep, "blocks", lambda self: (done.append(n) or n for n in blocks(self)))
    a = account(keep=tmp_path / "kept")
    assert 0 < sum(done) < 60
    assert same(a, account())


def test_parts_of_another_account_and_damaged_ones_are_refused(run, tmp_path):
    _, account = run
    kept = tmp_path / "kept"
    account(keep=kept)
    with pytest.raises(RunFolderError, match="part of another account"):
        account(keep=kept, tol=1e-6)
    (part,) = kept.iterdir()
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    with pytest.raises(RunFolderError, match="damaged"):
        account(keep=kept)
    part.write_bytes(content[: len(content) // 2])
    with pytest.raises(RunFolderError, match="damaged"):
        account(keep=kept)
    part.unlink()
    assert same(account(keep=kept), account())


@pytest.mark.slow
def test_tiles_in_parallel_are_the_same(run, tmp_path, monkeypatch):
    _, account = run
    monkeypatch.undo()  # the other processes have it as it is
    memory = 2**19
    one = account(memory=memory // 2)
    two = account(memory=memory, jobs=2, keep=tmp_path / "kept")
    assert len(list((tmp_path / "kept").iterdir())) > 1
    assert same(one, two)
    with pytest.raises(NtkitError, match="jobs=0"):
        account(jobs=0)


def test_an_interrupted_account_keeps_what_it_has(run, tmp_path, monkeypatch, request):
    _, account = run
    blocks = tiles.Sweep.blocks
    monkeypatch.setattr(sweep, "_FEW", 4)  # steps of a block: there are several blocks
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))

    def interrupted(self, *args):
        for number, count in enumerate(blocks(self, *args)):
            if number == 1:
                os.kill(os.getpid(), signal.SIGINT)
            yield count

    monkeypatch.setattr(tiles.Sweep, "blocks", interrupted)
    with pytest.raises(KeyboardInterrupt):
        account(keep=tmp_path / "kept")
    assert [p.name for p in (tmp_path / "kept").iterdir()] == ["snapshot-000000.safetensors"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with pytest.raises(KeyboardInterrupt):
        account()
    monkeypatch.setattr(tiles.Sweep, "blocks", blocks)
    assert same(account(keep=tmp_path / "kept"), account())
