"""Builders that are killed, disks that are full, builders that share a folder."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch
from torch import nn

import ntkit
from ntkit.compute.tiled.building import build
from ntkit.compute.tiled.claims import Claims
from ntkit.compute.tiled.executors import InProcess
from ntkit.compute.tiled.making import Maker
from ntkit.compute.tiled.status import status_of
from ntkit.compute.tiled.store import TileStore, open_store
from ntkit.compute.tiled.work import Work

N, TILE = 900, 100  # 45 tiles

SCRIPT = """
import sys, torch, ntkit
from torch import nn
def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
def kernel():
    return ntkit.infinite_width(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), draw(1, 6)).ntk
def tiled(folder, n=900, tile=100, **options):
    return ntkit.TiledKernel(kernel(), draw(n, 6), folder=folder, tile=tile, **options)
"""


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def tiled(folder, n=N, tile=TILE, **options):
    kernel = ntkit.infinite_width(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), draw(1, 6)).ntk
    return ntkit.TiledKernel(kernel, draw(n, 6), folder=folder, tile=tile, **options)


def started(code, *arguments):
    """A process that runs a script, having printed its first line."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT + textwrap.dedent(code), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    return process


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["process", "joblib"])
def test_killed_at_random_points_it_goes_on_with_what_is_missing(executor, tmp_path, monkeypatch):
    """Twenty builds, each killed between its first moment and its last, and gone on with."""
    who = "" if executor == "process" else ", executor=ntkit.JoblibExecutor(2)"
    code = f"""
        t = tiled(sys.argv[1], 3000, 200{who})
        print("ready", flush=True)
        t.build()
        print("done", flush=True)
    """
    truth = tiled(tmp_path / "whole", 3000, 200).build().dense()
    process = started(code, tmp_path / "timed")
    start = time.monotonic()
    assert process.stdout.readline().strip() == "done"
    length = time.monotonic() - start
    process.communicate()
    draws, made, points = random.Random(0), [], []
    make = Maker.make
    monkeypatch.setattr(Maker, "make", lambda self, tile: made.append(tile) or make(self, tile))
    for number in range(20 if executor == "process" else 3):
        folder = tmp_path / str(number)
        process = started(code, folder)
        if executor == "process":
            time.sleep(draws.random() * length)
        else:  # most of the time goes into the start of its workers
            count, files = draws.randrange(5, 100), folder / "tiles/c"
            while sum(file.name.isdigit() for file in files.glob("*/*")) < count:
                time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()  # workers of joblib that are left would keep it open
        again = tiled(folder, 3000, 200)
        made.clear()
        before = {tile for tile in again.tiles if again.store.has(tile)}
        start = time.monotonic()
        again.build()
        missing = set(again.tiles) - before
        assert set(made) <= missing and len(made) == len(set(made))
        assert set(made) == missing or executor == "joblib"  # whose workers finish what they are at
        assert time.monotonic() - start < 20  # a lease of a dead builder is not waited for
        assert torch.equal(again.dense(), truth)
        points.append(len(before))
    assert len(set(points)) > (5 if executor == "process" else 1), points  # it was killed in the middle


@pytest.mark.slow
def test_a_full_disk_is_told_and_nothing_is_lost(tmp_path):
    """A limit on the size of files stands for a disk that is full: a tile is larger than what is left."""
    code = """
        import resource
        t = tiled(sys.argv[1])
        for j in range(4):
            t.block(0, j)
        print("ready", flush=True)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            t.build()
        except ntkit.NtkitError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
    """
    process = started(code, tmp_path / "k")
    told, _ = process.communicate(timeout=120)
    assert re.search(r"TileError: .*k cannot be written \(.*[Ff]ile too large.*make room", told), told
    again = tiled(tmp_path / "k")
    assert again.progress.stored == 4
    assert not list((tmp_path / "k/claims").iterdir())
    assert torch.equal(again.build().dense(), tiled(tmp_path / "other").build().dense())


def test_too_little_room_is_told_before(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100_000})())
    with pytest.raises(
        ntkit.NtkitError, match=r"The 45 tiles that are missing take 1\.7 MiB, .* has 97\.7 KiB"
    ):
        tiled(tmp_path).build()


@pytest.mark.slow
def test_two_builders_share_the_work(tmp_path):
    """Two processes on one folder: each tile is made by one of them, none is torn, both end with all."""
    code = """
        from ntkit.compute.tiled.making import Maker
        made, make = [], Maker.make
        Maker.make = lambda self, tile: made.append(tile) or make(self, tile)
        t = tiled(sys.argv[1], 3000, 200)
        print("ready", flush=True)
        sys.stdin.readline()
        made.clear()
        t.build()
        assert t.progress.share == 1
        print(made, flush=True)
    """
    both = []
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT + textwrap.dedent(code), str(tmp_path / "k")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        both.append(process)
    for process in both:
        assert process.stdout is not None and process.stdout.readline().strip() == "ready"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    made = [eval(process.communicate(timeout=120)[0]) for process in both]
    assert sorted(made[0] + made[1]) == list(tiled(tmp_path / "k", 3000, 200).tiles)  # each once
    assert min(len(one) for one in made) >= 10
    assert not list((tmp_path / "k/claims").iterdir()) and not list((tmp_path / "k/builders").iterdir())
    truth = tiled(tmp_path / "other", 3000, 200).build().dense()
    assert torch.equal(tiled(tmp_path / "k", 3000, 200).dense(), truth)


def store(folder):
    return TileStore(open_store(folder))


def test_a_claim_ends_with_its_builder(tmp_path):
    with Claims(store(tmp_path)) as one, Claims(store(tmp_path)) as two:
        assert one.take((0, 1)) and not two.take((0, 1)) and two.take((0, 2)) and not one.take((0, 2))
        one.release((0, 1))
        two.release((0, 1))  # not its own
        assert two.take((0, 1)) and one.others() == two.others() == 1
    assert not list((tmp_path / "claims").iterdir()) and not list((tmp_path / "builders").iterdir())


DEAD = {
    "it was killed on this machine": {"pid": 2**22 + 1},
    "its number is another process's now": {"pid": os.getpid(), "began": "1"},
    "it was silent elsewhere for longer than its lease": {"host": "elsewhere", "until": 1.0},
}


@pytest.mark.parametrize("how", [*DEAD, "it left no sign of life", "its sign of life is torn"])
def test_what_a_dead_builder_claimed_is_taken(how, tmp_path):
    (tmp_path / "claims").mkdir()
    (tmp_path / "builders").mkdir()
    (tmp_path / "claims/0.1").write_text("dead")
    sign = {"host": socket.gethostname(), "pid": 1, "began": "x", "until": time.time() + 1e4}
    if how in DEAD:
        (tmp_path / "builders/dead").write_text(json.dumps(sign | DEAD[how]))
    elif "torn" in how:
        (tmp_path / "builders/dead").write_text('{"host": "els')
    with Claims(store(tmp_path)) as claims:
        assert claims.take((0, 1))
        claims.sweep()
        assert not (tmp_path / "builders/dead").exists()


@pytest.mark.slow
def test_what_a_builder_elsewhere_claims_is_waited_for(tmp_path):
    """It lives for as long as its sign of life is fresh; then its tile is made here."""
    begun = tiled(tmp_path, 300)
    (tmp_path / "claims").mkdir()
    (tmp_path / "builders").mkdir()
    (tmp_path / "claims/0.1").write_text("other")
    sign = {"host": "elsewhere", "pid": 1, "began": "x", "until": time.time() + 0.5}
    (tmp_path / "builders/other").write_text(json.dumps(sign))
    assert any("process 1 on elsewhere" in value for _, value in status_of(begun))
    start = time.monotonic()
    begun.build()
    assert begun.progress.share == 1 and time.monotonic() - start > 0.2


@pytest.mark.slow
def test_a_builder_that_works_long_keeps_its_claims(tmp_path):
    begun = tiled(tmp_path, 300)
    lease, seen = 0.2, []

    class Slow(InProcess):
        def run(self, work, tiles):
            for made in super().run(work, tiles):
                time.sleep(2 * lease)
                with Claims(store(tmp_path), lease) as other:
                    seen.append([other.take(tile) for tile in [(1, 1), (2, 2)] if not begun.store.has(tile)])
                yield made

    work = Work(begun._checked_maker(), begun.store)
    thread = threading.Thread(target=build, args=(work, Slow(), [(1, 1), (2, 2)], lease))
    thread.start()
    thread.join(30)
    assert begun.store.has((1, 1)) and seen[0] in ([False], [])


def test_half_written_files_of_the_dead_are_removed(tmp_path):
    begun = tiled(tmp_path, 300).build()
    old, new = (tmp_path / f"tiles/c/0/1.{name}.partial" for name in ("a", "b"))
    for file in (old, new):
        file.write_bytes(b"half")
    os.utime(old, (1, 1))
    (tmp_path / "tiles/c/0/2").unlink()
    begun.build()
    assert not old.exists() and new.exists() and begun.progress.share == 1


def test_interrupted_it_gives_up_its_claims(tmp_path):
    begun = tiled(tmp_path, 300)

    class Interrupted(InProcess):
        def run(self, work, tiles):
            for made in super().run(work, tiles):
                yield made
                raise KeyboardInterrupt

    begun.executor = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        begun.build()
    assert begun.progress.stored >= 1 and not list((tmp_path / "claims").iterdir())
    begun.executor = InProcess()
    assert begun.build().progress.share == 1
