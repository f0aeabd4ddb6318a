"""As many threads as there are free processors, for as long as a call lasts."""

import os
import subprocess
import sys
import time
from typing import ClassVar

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

import ntkit
from ntkit.compute import threads as module
from ntkit.compute.threads import fitting_threads, free_processors, lapack_threads, threads

X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def load(monkeypatch):
    """Threads of other processes that run: a list to be changed."""
    others = [0]
    monkeypatch.setattr(module, "_running_elsewhere", lambda: others[0])
    monkeypatch.setattr(module, "_seen", {})
    monkeypatch.setattr(module, "_FRESH", -1.0)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    with threads(3):
        yield others


@pytest.mark.parametrize(("others", "expected"), [(0, 3), (1, 3), (2, 2), (3, 1), (9, 1)])
def test_the_free_processors(load, others, expected):
    load[0] = others
    with threads(3), fitting_threads() as count:
        assert count == torch.get_num_threads() == expected
    assert torch.get_num_threads() == 3


def test_little_work_is_of_one_thread(load):
    with fitting_threads(1e3) as count:
        assert count == 1
    with fitting_threads(1e12) as count:
        assert count == 3


def test_within_a_call_they_follow_the_load_and_never_exceed_what_was_given(load):
    load[0] = 3
    with fitting_threads():
        assert torch.get_num_threads() == 1
        load[0] = 0
        with fitting_threads():
            assert torch.get_num_threads() == 3
        with threads(2), fitting_threads():
            assert torch.get_num_threads() == 2
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


class Watched(nn.Linear):
    """Notes how many threads it computes in."""

    seen: ClassVar[list[int]] = []

    def forward(self, x):
        self.seen.append(torch.get_num_threads())
        return super().forward(x)


def test_every_phase_asks(load):
    load[0] = 3
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), Watched(4, 1)).double()
    Watched.seen.clear()
    ntkit.EmpiricalNTK(model)(X)
    assert set(Watched.seen) == {1} and torch.get_num_threads() == 3
    Watched.seen.clear()
    ntkit.infinite_width(model, X)
    assert set(Watched.seen) == {1} and torch.get_num_threads() == 3

    def kernel(a, b):
        Watched.seen.append(torch.get_num_threads())
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1))

    Watched.seen.clear()
    x, y = X.numpy(), X[:, 0].numpy()
    ntkit.KernelRidge(kernel).fit(x, y).predict(x)
    assert set(Watched.seen) == {1} and torch.get_num_threads() == 3


def test_after_an_error_they_are_as_before(load):
    load[0] = 3
    with pytest.raises(ValueError, match="a fault"), fitting_threads():
        raise ValueError("a fault")
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(not os.path.exists("/proc/loadavg"), reason="read from Linux's /proc")
def test_a_busy_process_is_seen():
    free = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"
    busy = [subprocess.Popen([sys.executable, "-c", free]) for _ in range(2)]
    try:
        time.sleep(0.3)
        seen = [module._running_elsewhere() for _ in range(5)]
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert max(seen) >= 2


def test_elsewhere_than_on_linux_all_are_free(monkeypatch):
    monkeypatch.setattr(module, "_seen", {})
    monkeypatch.setattr(module, "Path", lambda *_: (_ for _ in ()).throw(OSError()))
    assert free_processors() == os.cpu_count()


def test_scipys_lapack_takes_as_many_threads_as_torch():
    def taken():
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    with threadpool_limits(2, user_api="blas"):
        with threads(1), lapack_threads():
            assert taken() == {1}
        assert taken() == {2}
