"""Runs that stopped and go on in their folder, and folders that are used again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit
from ntkit.errors import NtkitError, RunFolderError

D = torch.float64
SLOW = pytest.mark.slow
X, Y = torch.randn(20, 3, generator=torch.Generator().manual_seed(3), dtype=D), torch.arange(20) % 2


def fresh():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2)
    ).double()
    return net, torch.optim.AdamW(net.parameters(), lr=0.05)


def train(folder, net, optimizer, first, last, stop=None, **options):
    with ntkit.record(folder, net, optimizer, train=(X, Y), **options) as run:
        for k in range(first, last):
            if k == stop:
                raise InterruptedError
            batch = torch.randperm(20, generator=torch.Generator().manual_seed(k))[:6]
            torch.manual_seed(100 + k)
            run.batch(batch)
            optimizer.zero_grad()
            F.cross_entropy(net(X[batch]), Y[batch]).backward()
            optimizer.step()
    return run


def account(folder, net):
    return ntkit.account(folder, net, F.cross_entropy, train=(X, Y), queries=X[:3])


def checkpoint(net, optimizer):
    copies = {k: v.clone() for k, v in net.state_dict().items()}
    return copies, torch.utils._pytree.tree_map(
        lambda v: v.clone() if isinstance(v, torch.Tensor) else v, optimizer.state_dict()
    )


@pytest.mark.parametrize(
    "every, lost", [(1, 3), (4, 0), pytest.param(1, 0, marks=SLOW), pytest.param(4, 3, marks=SLOW)]
)
def test_a_stopped_run_goes_on(tmp_path, every, lost):
    net, optimizer = fresh()
    train(tmp_path / "whole", net, optimizer, 0, 12, every=every)
    expected = account(tmp_path / "whole", net)
    net, optimizer = fresh()
    folder = tmp_path / "parts"
    train(folder, net, optimizer, 0, 7 - lost, every=every)
    states = checkpoint(net, optimizer)
    with pytest.raises(InterruptedError):  # what was made behind the checkpoint is lost with the process
        train(folder, net, optimizer, 7 - lost, 12, stop=7, every=every, resume=True)
    net, optimizer = fresh()
    net.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    run = train(folder, net, optimizer, 7 - lost, 12, every=every, resume=True)
    assert run.steps == 12
    found = account(folder, net)
    assert found.steps == 12 and found.converged
    for name in ("contributions", "by_step", "prediction", "buffers", "decay"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-12)


def test_a_run_that_resumes_from_nothing_begins(tmp_path):
    net, optimizer = fresh()
    assert train(tmp_path / "run", net, optimizer, 0, 3, resume=True).steps == 3


def test_other_weights_or_settings_are_no_continuation(tmp_path):
    net, optimizer = fresh()
    train(tmp_path, net, optimizer, 0, 3)
    before = (tmp_path / "steps.log").read_bytes()
    other = nn.Linear(3, 2).double()
    with pytest.raises(NtkitError, match=r"none of the 3 steps|another"):
        train(tmp_path, other, torch.optim.AdamW(other.parameters()), 3, 4, resume=True)
    with torch.no_grad():
        net[0].bias += 1
    with pytest.raises(RunFolderError, match="none of the 3 steps"):
        train(tmp_path, net, optimizer, 3, 4, resume=True)
    with torch.no_grad():
        net[0].bias -= 1
    again, _ = fresh()
    again.load_state_dict(net.state_dict())
    with pytest.raises(RunFolderError, match=r"another 'optimizer'|none of"):
        train(tmp_path, again, torch.optim.SGD(again.parameters(), 0.1), 3, 4, resume=True)
    assert (tmp_path / "steps.log").read_bytes() == before
    assert account(tmp_path, fresh()[0]).steps == 3


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda w, lr: torch.optim.SGD(w, lr, momentum=0.9)])
def test_an_optimizer_that_begins_again(tmp_path, kind):
    net, _ = fresh()
    train(tmp_path, net, kind(net.parameters(), lr=0.05), 0, 4)
    train(tmp_path, net, kind(net.parameters(), lr=0.05), 4, 7, resume=True)
    found = account(tmp_path, net)
    assert found.converged and found.steps == 7
    torch.testing.assert_close(found.prediction, net.eval()(X[:3]).detach())


def test_a_run_is_overwritten_only_when_that_is_said(tmp_path):
    for _ in range(2):  # a cell of a notebook, run twice
        net, optimizer = fresh()
        train(tmp_path / "run", net, optimizer, 0, 3, overwrite=True)
    assert account(tmp_path / "run", net).steps == 3
    with pytest.raises(RunFolderError, match="overwrite=True, or resume=True"):
        train(tmp_path / "run", net, optimizer, 0, 3)
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"notes\.txt"):
        train(tmp_path / "run", net, optimizer, 0, 3, overwrite=True)
    assert (tmp_path / "run" / "steps.log").exists()
    with pytest.raises(NtkitError, match="give one of them"):
        train(tmp_path / "run", net, optimizer, 0, 3, overwrite=True, resume=True)
    with pytest.raises(NtkitError, match="overwrite='yes'"):
        train(tmp_path / "run", net, optimizer, 0, 3, overwrite="yes")
