"""Tiles made elsewhere: by processes of joblib and by tasks of Ray, to the same bits."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import ntkit
from ntkit.compute.tiled.making import Maker
from ntkit.compute.tiled.turns import turn
from ntkit.kernel import Kernel

D = torch.float64
N, TILE = 330, 60  # 21 tiles


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    """A class that only this file knows."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


class Pairs(Dataset):
    def __init__(self, x):
        self.x = x

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return self.x[i], i


def limit():
    return ntkit.infinite_width(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1)), draw(1, 6)).ntk


class Deadly(Kernel):
    """A kernel that ends the process at some samples, as often as a file has lines left."""

    def __init__(self, at, folder, times):
        self.at, self.folder, self.times = at, folder, times

    def __call__(self, x1, x2=None):
        a = torch.as_tensor(x1)
        b = a if x2 is None else torch.as_tensor(x2)
        if float(a[0, 0]) == self.at and len(a) == len(b) and torch.equal(a, b):
            deaths = len(os.listdir(self.folder))
            if deaths < self.times:
                open(f"{self.folder}/{deaths}", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        return a @ b.T

    def diag(self, x):
        return torch.as_tensor(x).square().sum(1)


class Failing(Kernel):
    def __call__(self, x1, x2=None):
        if len(x1) > 10 and x2 is None:
            raise ValueError("no such luck")
        return torch.as_tensor(x1) @ torch.as_tensor(x1 if x2 is None else x2).T

    def diag(self, x):
        return torch.as_tensor(x).square().sum(1)


@pytest.fixture(scope="module")
def cluster():
    """Ray on this machine, with four processors of which it may be told what it likes."""
    ray = pytest.importorskip("ray", reason="Ray is an extra of its own: pip install 'ntkit[ray]'")
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20)
    yield ray
    ray.shutdown()


def executors(request):
    name = request.param
    if name.startswith("ray"):
        request.getfixturevalue("cluster")
        return ntkit.RayExecutor(shared=name.endswith("shared"))
    return ntkit.JoblibExecutor(int(name[-1]))


@pytest.fixture(params=["joblib 2", "ray", "ray shared"])
def executor(request):
    return executors(request)


def equal(one, two):
    return all(torch.equal(one.block(*tile), two.block(*tile)) for tile in one.tiles)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_every_executor_gives_the_same_bits(executor, tmp_path):
    model, x = Net(), draw(N, 6)
    np.save(tmp_path / "x.npy", x.numpy())
    shift = 0.5
    cases = {
        "limit": (limit(), x),
        "mean, mapped": (ntkit.EmpiricalNTK(model), np.load(tmp_path / "x.npy", mmap_mode="r")),
        "full": (ntkit.EmpiricalNTK(model, outputs="full"), x.numpy()),
        "sum, of a dataset": (
            ntkit.EmpiricalNTK(model, inputs=0) + 2 * ntkit.EmpiricalNTK(model, inputs=0),
            Pairs(x),
        ),
        "composed with what only this test knows": (limit().compose(lambda t: t + shift), x),
    }
    for number, (kernel, data) in enumerate(cases.values()):
        here = ntkit.TiledKernel(kernel, data, folder=tmp_path / f"{number}here", tile=TILE).build()
        folder = tmp_path / f"{number}there"
        there = ntkit.TiledKernel(kernel, data, folder=folder, tile=TILE, executor=executor).build()
        assert there.progress.share == 1 and equal(here, there)
        assert not list((folder / "claims").iterdir()) and not list((folder / "builders").iterdir())


@pytest.mark.slow
def test_what_is_missing_is_made_by_another_executor(executor, tmp_path):
    x = draw(N, 6)
    here = ntkit.TiledKernel(limit(), x, folder=tmp_path / "a", tile=TILE).build()
    other = ntkit.TiledKernel(limit(), x, folder=tmp_path / "b", tile=TILE)
    for tile in [(0, 0), (2, 4), (5, 5)]:
        other.block(*tile)
    times = {
        tile: os.stat(tmp_path / f"b/tiles/c/{tile[0]}/{tile[1]}").st_mtime_ns for tile in [(0, 0), (2, 4)]
    }
    again = ntkit.TiledKernel(limit(), x, folder=tmp_path / "b", executor=executor).build()
    assert equal(here, again)
    for tile, time_ in times.items():
        assert os.stat(tmp_path / f"b/tiles/c/{tile[0]}/{tile[1]}").st_mtime_ns == time_


@pytest.mark.slow
def test_a_process_that_dies_once_costs_its_tiles_only(executor, tmp_path):
    x, deaths = draw(N, 6), tmp_path / "deaths"
    deaths.mkdir()
    kernel = Deadly(float(x[TILE * 2, 0]), str(deaths), 1)
    tiled = ntkit.TiledKernel(kernel, x, folder=tmp_path / "k", tile=TILE, executor=executor).build()
    torch.testing.assert_close(tiled.dense(), x @ x.T)
    assert len(list(deaths.iterdir())) == 1


@pytest.mark.slow
def test_a_process_that_dies_each_time_is_told_with_the_samples(executor, tmp_path):
    x, deaths = draw(N, 6), tmp_path / "deaths"
    deaths.mkdir()
    kernel = Deadly(float(x[TILE * 2, 0]), str(deaths), 100)
    tiled = ntkit.TiledKernel(kernel, x, folder=tmp_path / "k", tile=TILE, executor=executor)
    with pytest.raises(
        ntkit.NtkitError, match=r"died 3 times at the tile \(2, 2\), of samples 120 to 179 by"
    ) as told:
        tiled.build()
    assert len(list(deaths.iterdir())) == 3, told.value
    kernel.times = 0  # the cause is gone
    assert ntkit.TiledKernel(kernel, x, folder=tmp_path / "other", tile=TILE).build().progress.share == 1


@pytest.mark.slow
def test_what_a_kernel_raises_there_is_raised_here(executor, tmp_path):
    tiled = ntkit.TiledKernel(Failing(), draw(N, 6), folder=tmp_path, tile=TILE, executor=executor)
    with pytest.raises(ValueError, match="no such luck") as told:
        tiled.build()
    notes = getattr(told.value, "__notes__", [])  # of whichever tile of the diagonal came first
    assert any(f"samples {i} to {min(i + TILE, N) - 1}" in note for i in range(0, N, TILE) for note in notes)
    assert not list((tmp_path / "claims").iterdir())


@pytest.mark.slow
def test_of_rays_store_at_most_half_is_taken(cluster, tmp_path, monkeypatch):
    executor = ntkit.RayExecutor()
    tiled = ntkit.TiledKernel(limit(), draw(64, 6), folder=tmp_path, executor=executor)
    from ntkit.compute.tiled.work import Work

    work = Work(tiled._checked_maker(), tiled.store)
    assert executor._most(work, writes=True) == 8
    monkeypatch.setattr(type(tiled.store.layout), "bytes", 60 * 2**20)
    assert executor._most(work, writes=False) == 1
    with pytest.raises(ValueError, match="Ask for less"):
        ntkit.RayExecutor(num_gpus=1)._most(work, writes=True)


def test_executors_are_refused_that_are_none(tmp_path):
    for given in ("dask", 3, "Joblib"):
        with pytest.raises((ValueError, TypeError), match="expected"):
            ntkit.TiledKernel(Failing(), draw(5, 6), folder=tmp_path, executor=given)
    with pytest.raises(ValueError, match="n_jobs"):
        ntkit.JoblibExecutor(0)
    with pytest.raises(ValueError, match="must need something"):
        ntkit.RayExecutor(num_cpus=0)
    assert repr(ntkit.JoblibExecutor(2)) == "JoblibExecutor(n_jobs=2)"


@pytest.mark.slow
def test_work_goes_to_another_process_with_its_samples_mapped(tmp_path):
    import cloudpickle
    import joblib

    x = draw(50, 6)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for data in (x, x.numpy(), mapped, {"x": x}["x"], Pairs(x)):
        kernel = ntkit.EmpiricalNTK(Net(), inputs=0 if isinstance(data, Pairs) else None)
        maker = ntkit.TiledKernel(kernel, data, folder=tmp_path / "k", tile=20)._checked_maker()
        joblib.dump(maker, tmp_path / "maker")
        again = joblib.load(tmp_path / "maker", mmap_mode="r")
        assert torch.equal(again.make((0, 1)), maker.make((0, 1)))
        assert isinstance(cloudpickle.loads(cloudpickle.dumps(maker)), Maker)
        (tmp_path / "k/manifest.json").unlink()
    size = len(cloudpickle.dumps(ntkit.TiledKernel(kernel, mapped[:], folder=tmp_path / "m")._maker))
    assert size < 20_000  # a memory map goes by its name


@pytest.mark.slow
def test_threads_are_refused(tmp_path):
    import joblib

    tiled = ntkit.TiledKernel(limit(), draw(50, 6), folder=tmp_path, executor=ntkit.JoblibExecutor())
    with joblib.parallel_config(backend="threading"), pytest.raises(ValueError, match="computes in threads"):
        tiled.build()


@pytest.mark.slow
def test_two_machines_of_which_one_is_lost(tmp_path):
    """A local cluster of two nodes; one is killed when a few tiles are there."""
    ray = pytest.importorskip("ray", reason="Ray is an extra of its own: pip install 'ntkit[ray]'")
    from ray.cluster_utils import Cluster

    ray.shutdown()
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False)
        x = draw(1200, 6)
        here = ntkit.TiledKernel(limit(), x, folder=tmp_path / "a", tile=100).build()
        executor = ntkit.RayExecutor(address=nodes.address)
        there = ntkit.TiledKernel(limit(), x, folder=tmp_path / "b", tile=100, executor=executor)
        made, killed = [], []
        run = executor.run

        def watched(work, tiles):
            for one in run(work, tiles):
                made.append(one)
                if len(made) == 10:
                    nodes.remove_node(second, allow_graceful=False)
                    killed.append(time.monotonic())
                yield one

        executor.run = watched
        there.build()
        assert killed and there.progress.share == 1 and equal(here, there)
        finished = [one.tile for one in made if one.death is None]
        assert len(set(finished)) == len(finished) == 78  # none was made twice that came back
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_processes_of_dask_give_the_same_bits(tmp_path):
    distributed = pytest.importorskip("distributed", reason="Dask comes by itself: pip install distributed")
    x = draw(N, 6)
    here = ntkit.TiledKernel(limit(), x, folder=tmp_path / "here", tile=TILE).build()
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        distributed.Client(cluster),
        joblib.parallel_config(backend="dask"),
    ):
        executor = ntkit.JoblibExecutor()
        there = ntkit.TiledKernel(limit(), x, folder=tmp_path / "there", tile=TILE, executor=executor).build()
    assert there.progress.share == 1 and equal(here, there)


def test_tasks_take_turns_and_a_killed_one_gives_its_place_back(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with turn(2), ThreadPoolExecutor(1) as pool:

        def enter():
            with turn(2):
                return time.monotonic()

        pool.submit(enter).result(5)  # there are two places
        with turn(2):
            late = pool.submit(enter)
            time.sleep(0.05)
            assert not late.done()
            left = time.monotonic()
        assert late.result(5) >= left
    code = "from ntkit.compute.tiled.turns import turn\nwith turn(1): print('in', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert other.stdout.readline() == b"in\n"
        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(lambda: turn(1).__enter__())
            time.sleep(0.05)
            assert not late.done()
            other.kill()
            late.result(5)
    finally:
        other.kill()
        other.communicate()
