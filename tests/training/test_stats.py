"""What recording costs is said, and is little where checkpoints are few."""

import time

import pytest
import torch
from runs import ball, batches, mlp, square
from torch import nn, optim

import ntkit


def test_the_cost_is_said(tmp_path):
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.Adam(model.parameters(), 1e-2)
    begin = time.perf_counter()
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for index in batches(16, 4, 10):
            run.batch(index)
            optimizer.zero_grad()
            square(model(x[index]), y[index]).backward()
            time.sleep(0.01)
            optimizer.step()
        during = run.stats
    stats, whole = run.stats, time.perf_counter() - begin
    assert stats.steps == 10 and during.steps >= 9
    assert stats.bytes >= (tmp_path / "run" / "steps.log").stat().st_size > 0
    assert 0 < stats.seconds < stats.total - 0.1 <= whole
    assert stats.overhead == pytest.approx(stats.seconds / (stats.total - stats.seconds))
    assert stats.total == run.stats.total  # it has ended
    assert "10 steps recorded" in repr(stats) and "on top of training" in repr(stats)


@pytest.mark.slow
def test_checkpoints_cost_a_fifth_of_a_step_at_most(tmp_path):
    """A million parameters, batch 128, a checkpoint each 50 steps, against the loop alone, interleaved."""
    torch.manual_seed(0)
    x, y = torch.randn(1024, 784), torch.randint(10, (1024,))
    model = nn.Sequential(nn.Linear(784, 700), nn.ReLU(), nn.Linear(700, 640), nn.ReLU(), nn.Linear(640, 10))
    assert sum(p.numel() for p in model.parameters()) > 1e6
    optimizer = optim.AdamW(model.parameters(), 1e-3)

    def steps(run=None, count=100):
        begin = time.perf_counter()
        for k in range(count):
            index = torch.arange(128) + 128 * (k % 8)
            if run is not None:
                run.batch(index)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index]), y[index]).backward()
            optimizer.step()
        return time.perf_counter() - begin

    steps()
    ratios = []
    for i in range(5):
        alone = steps()
        with ntkit.record(tmp_path / str(i), model, optimizer, every=50) as run:
            recorded = steps(run)
        ratios.append(recorded / alone)
    assert sorted(ratios)[2] <= 1.2, (ratios, run.stats)
