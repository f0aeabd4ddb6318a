"""Structured products in the sweep against gradients made whole, with little memory and with much."""

from __future__ import annotations

import pytest
import torch
from runs import batches, train
from torch import nn, optim
from torch.nn import functional

import ntkit
from ntkit.training.folder.run import Run
from ntkit.training.functional.structure import Structure
from ntkit.training.replay.sample_gradients import Samples
from ntkit.training.replay.steps import Replay


class Tied(nn.Module):
    """An embedding whose weight is the last layer's too, and an attention between."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 8)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)

    def forward(self, x):
        return functional.linear(self.mix(self.table(x)).mean(1), self.table.weight)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.read, self.last = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.read(x)[0][:, -1])


NETWORKS = {
    "MLP": lambda: nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4, bias=False)),
    "CNN": lambda: nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.GroupNorm(1, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 4)
    ),
    "tied": Tied,
    "LSTM": Recurrent,
    "weight norm": lambda: nn.Sequential(
        nn.utils.parametrizations.weight_norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4)
    ),
}
STRUCTURED = {"MLP": True, "CNN": True, "tied": True, "LSTM": True, "weight norm": False}


def inputs(name, n=13):
    draw = torch.Generator().manual_seed(2)
    if name == "tied":
        return torch.randint(0, 7, (n, 5), generator=draw)
    shape = {"CNN": (n, 1, 6, 6), "LSTM": (n, 5, 3)}.get(name, (n, 6))
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


@pytest.fixture(params=NETWORKS)
def run(request, tmp_path):
    torch.manual_seed(0)
    model, x = NETWORKS[request.param]().double(), inputs(request.param)
    data, loss = (x, torch.arange(13) % 4), nn.CrossEntropyLoss()
    folder = train(
        tmp_path / "run", model, optim.Adam(model.parameters(), 0.01), data, batches(13, 6, 4), loss
    )
    return request.param, folder, model, data, loss


def whole_gradients(model, data, step, loss):
    """Gradients of the batch's samples, from the network itself, one after the other."""
    x, y = data[0][step.batch], data[1][step.batch]
    outputs = model(x).detach().requires_grad_()
    c = torch.autograd.grad(loss(outputs, y), outputs)[0]
    rows = []
    for i in range(len(x)):
        gradients = torch.autograd.grad(model(x[i : i + 1])[0] @ c[i], list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows)


@pytest.mark.parametrize("budget", [2**30, 1])
@pytest.mark.parametrize("mixes", [False, True])
@pytest.mark.parametrize("forwards", [False, True])
def test_products_with_the_gradients_of_samples(budget, mixes, forwards, run, monkeypatch):
    monkeypatch.setattr(Samples, "_forward_costs_less", lambda *_: forwards)
    name, folder, model, data, loss = run
    with Run(folder) as recorded, torch.no_grad():
        replay = Replay(recorded, model, data, loss)
        w, step = recorded.weights(2), recorded.step(2)
        torch.nn.utils.vector_to_parameters(w, model.parameters())
        with torch.enable_grad():
            truth = whole_gradients(model, data, step, loss)
        a = torch.randn(3, len(w), dtype=torch.float64)
        samples = Samples(replay, budget)
        parts = list(samples.products(w, 2, step, mixes))
        found = torch.cat([product(a) for _, product in parts], 1)
        assert torch.equal(torch.cat([index for index, _ in parts]), step.batch)
        way = "structure" if STRUCTURED[name] and not mixes else "backward passes"
        if forwards:
            way = "forward mode" if STRUCTURED[name] else "backward twice"  # it has no forward derivative
        assert samples.way == way
    assert (found - a @ truth.T).abs().max() <= 1e-12 * (a @ truth.T).abs().max()


def test_what_has_a_structure(run):
    name, folder, model, data, loss = run
    with Run(folder) as recorded:
        structure = Replay(recorded, model, data, loss).net.structure(data[0])
    assert isinstance(structure, Structure) == STRUCTURED[name]


def test_accounts_with_and_without_structure(run, monkeypatch):
    name, folder, model, data, loss = run
    queries = inputs(name, 3)
    monkeypatch.setattr(
        "ntkit.training.accounts.sweep.BLOCK", 0
    )  # nothing is small: every product is structured
    monkeypatch.setattr("ntkit.training.integrals.quadrature._BLOCK", 0)
    a = ntkit.account(folder, model, loss, train=data, queries=queries, tol=1e-9)
    assert a.converged
    if name == "CNN":
        little = ntkit.account(folder, model, loss, train=data, queries=queries, tol=1e-9, memory=2**14)
        assert torch.allclose(little.contributions, a.contributions, rtol=1e-6, atol=1e-9)
        assert little.converged
    if name != "LSTM":  # whose fused operation runs only where it is written out
        monkeypatch.undo()
        monkeypatch.setattr(Structure, "of", classmethod(lambda *_: None))
        plain = ntkit.account(folder, model, loss, train=data, queries=queries, tol=1e-9)
        assert plain.converged
        assert torch.allclose(plain.contributions, a.contributions, rtol=1e-6, atol=1e-9)
