"""A recorded run trained again: bit by bit where nothing is left out, and as a loop without the samples."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from trained_again import OPTIMIZERS, STEPS, N, network, recorded

import ntkit
from ntkit.errors import BadValueError, NotSeparableError, NtkitError

MORE = {
    "ASGD": lambda p: optim.ASGD(p, 0.01),
    "Rprop": lambda p: optim.Rprop(p, 0.01),
    "Adafactor": lambda p: optim.Adafactor(p, 0.01),
}
EVERY = {**OPTIMIZERS, **{k: v for k, v in MORE.items() if hasattr(optim, k)}}


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_left_out_is_the_run_itself(name, dtype, tmp_path):
    net, x, y = recorded(tmp_path, EVERY[name], dtype=dtype, clip=0.3, every=3 if name == "Adam" else 1)
    again = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=[])
    assert again.difference == 0
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in again.state_dict().items())


def test_without_samples_it_is_a_loop_without_their_terms(tmp_path):
    net, x, y = recorded(tmp_path, OPTIMIZERS["SGD"], network(norm=False), schedule=False)
    left = [0, 4, 11]
    torch.manual_seed(0)
    other = network(norm=False).double()
    torch.randn(N, 5, dtype=torch.float64)
    other.load_state_dict(_start(tmp_path, other))
    optimizer = OPTIMIZERS["SGD"](other.parameters())
    keep = torch.ones(N, dtype=torch.float64)
    keep[left] = 0
    for k in range(STEPS):
        batch = _batch(tmp_path, k)
        optimizer.zero_grad()
        losses = F.cross_entropy(other(x[batch]), y[batch], reduction="none")
        ((keep[batch] * losses).sum() / len(batch)).backward()
        optimizer.step()
    again = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=left)
    for name, value in again.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[name], rtol=1e-12, atol=1e-14)
    mask = keep == 0
    for same in (left, torch.tensor(left), mask):
        again = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=same)
        assert again.weights.eq(0).nonzero().flatten().tolist() == left
    assert "without 3 of 30" in repr(again)
    several = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without_each=[[], left])
    assert several[0].difference == 0 and torch.equal(several[1].outputs(x), again.outputs(x))


def _start(folder, net):
    from ntkit.training.folder.run import Run

    with Run(folder) as run:
        return {name: run.start[f"w/{name}"] for name, _ in net.named_parameters()}


def _batch(folder, k):
    from ntkit.training.folder.run import Run

    with Run(folder) as run:
        return run.batch(k)


def test_bad_requests_are_refused(tmp_path):
    net, x, y = recorded(tmp_path, OPTIMIZERS["SGD"])
    ask = {"train": (x, y)}
    with pytest.raises(BadValueError, match="expected one"):
        ntkit.retrain(tmp_path, net, F.cross_entropy, **ask)
    with pytest.raises(BadValueError, match="expected one"):
        ntkit.retrain(tmp_path, net, F.cross_entropy, **ask, without=[1], weights=torch.ones(N))
    with pytest.raises(BadValueError, match="indices from 0 to 30"):
        ntkit.retrain(tmp_path, net, F.cross_entropy, **ask, without=[0, 30])
    with pytest.raises(BadValueError, match="30 finite numbers"):
        ntkit.retrain(tmp_path, net, F.cross_entropy, **ask, weights=torch.ones(4))


def test_a_loss_that_compares_samples_is_refused(tmp_path):
    def contrast(outputs, _):
        return F.cross_entropy(outputs @ outputs.T, torch.arange(len(outputs)))

    net, x, y = recorded(tmp_path, OPTIMIZERS["SGD"], loss=contrast)
    with pytest.raises(NotSeparableError, match="no sum of terms"):
        ntkit.retrain(tmp_path, net, contrast, train=(x, y), without=[1])


def test_gradients_clipped_by_value_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", nn.utils.clip_grad_value_)
    net, x, y = recorded(tmp_path, OPTIMIZERS["SGD"], clip=0.01)
    with pytest.raises(NtkitError, match="clip_grad_norm_ over all parameters"):
        ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=[1])


def test_lookahead_is_repeated(tmp_path):
    torch.manual_seed(0)
    net, x, y = network(norm=False), torch.randn(N, 5), torch.arange(N) % 3
    optimizer, slow = optim.SGD(net.parameters(), 0.1), None
    slow = [p.detach().clone() for p in net.parameters()]
    with ntkit.record(tmp_path, net, optimizer, train=(x, y), lookahead=3) as run:
        for k in range(7):
            run.batch(torch.arange(k, k + 8))
            optimizer.zero_grad()
            F.cross_entropy(net(x[k : k + 8]), y[k : k + 8]).backward()
            optimizer.step()
            if k % 3 == 2:
                with torch.no_grad():
                    for p, s in zip(net.parameters(), slow, strict=True):
                        s.add_(p - s, alpha=0.5)
                        p.copy_(s)
    again = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=[])
    assert again.difference <= 1e-7
