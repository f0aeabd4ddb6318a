"""Networks with state and noise: batch norm in training mode, dropout, augmentation, mixed precision."""

from __future__ import annotations

import pytest
import torch
from runs import batches, train
from torch import nn, optim
from torch.nn import functional

import ntkit
from ntkit.errors import PathMismatchError
from ntkit.training.folder.run import Run

LOSS = nn.CrossEntropyLoss()


def digits(n=24, dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    return torch.randn(n, 6, generator=draw, dtype=torch.float64).to(dtype), torch.arange(n) % 3


def normed(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).to(dtype)


class Dropped(nn.Module):
    """Dropout as a module and as a function, and noise of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(6, 9), nn.Linear(9, 3), nn.Dropout(0.4)

    def forward(self, x):
        h = self.drop(torch.tanh(self.first(x)))
        if self.training:
            h = h + 0.1 * torch.randn_like(h)
        return self.last(functional.dropout(h, 0.2, self.training))


def check(a, model, x, tol=1e-8):
    total = a.initial + a.contributions.sum(-1) + a.decay + a.start + a.buffers + a.rounding + a.residual
    assert torch.allclose(total, a.prediction, rtol=0, atol=1e-12)
    assert a.converged and a.relative_residual <= tol
    model.eval()
    assert torch.allclose(a.prediction, model(x).detach().double(), rtol=1e-5, atol=1e-5)


def test_batch_norm_in_training_mode(tmp_path):
    model, data = normed(), digits()
    before = {name: b.clone() for name, b in model.named_buffers()}
    folder = train(
        tmp_path / "run", model, optim.Adam(model.parameters(), 0.02), data, batches(24, 7, 25), LOSS
    )
    x = digits(5)[0] * 2
    a = ntkit.account(folder, model, LOSS, train=data, queries=x)
    check(a, model, x)
    assert torch.allclose(a.prediction, model.eval()(x).detach(), atol=1e-12)
    assert a.buffers.abs().max() > 1e-3 and a.rounding.abs().max() < 1e-12
    with Run(folder) as run:
        assert all(torch.equal(run.buffers(0)[name], b) for name, b in before.items())
        assert all(torch.equal(run.buffers(25)[name], b) for name, b in model.named_buffers())


def test_rows_of_a_batch_against_its_jacobian(tmp_path):
    """With SGD, a sample's contribution is D_k times row n of the batch's Jacobian."""
    model, data = normed(), digits()
    index = torch.tensor([1, 4, 9, 4, 20])
    names = [name for name, _ in model.named_parameters()]
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    folder = train(tmp_path / "run", model, optim.SGD(model.parameters(), 0.05), data, [index], LOSS)
    x = digits(4)[0]
    a = ntkit.account(folder, model, LOSS, train=data, queries=x, nodes="left")

    def batch(*w):
        model.train()
        given = {**{k: b.clone() for k, b in buffers.items()}, **dict(zip(names, w, strict=True))}
        return torch.func.functional_call(model, given, (data[0][index],))

    def query(*w):
        model.eval()
        after = {name: b for name, b in model.named_buffers()}
        return torch.func.functional_call(model, {**after, **dict(zip(names, w, strict=True))}, (x,))

    rows = torch.autograd.functional.jacobian(batch, tuple(weights))
    slopes = torch.autograd.functional.jacobian(query, tuple(weights))
    outputs = batch(*weights).detach().requires_grad_()
    c = torch.autograd.grad(LOSS(outputs, data[1][index]), outputs)[0]
    rows = torch.cat([r.flatten(2) for r in rows], 2)
    slopes = torch.cat([s.flatten(2) for s in slopes], 2)
    truth = torch.zeros(4, 3, 24, dtype=torch.float64)
    truth.index_add_(2, index, -0.05 * torch.einsum("qop,nip,ni->qon", slopes, rows, c))
    assert (a.contributions - truth).abs().max() <= 1e-12 * truth.abs().max()


def test_statistics_that_change_after_the_last_step_count(tmp_path):
    model, (x, y) = normed(), digits()
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with ntkit.record(tmp_path / "run", model, optimizer) as run:
        for index in batches(24, 8, 6):
            run.batch(index)
            optimizer.zero_grad()
            LOSS(model(x[index]), y[index]).backward()
            optimizer.step()
        model(100 * x)
    a = ntkit.account(tmp_path / "run", model, LOSS, train=(x, y), queries=x[:3])
    check(a, model, x[:3])


def test_modes_that_change_and_validation_in_between(tmp_path):
    model, (x, y) = nn.Sequential(normed(), nn.Dropout(0.3)), digits()
    optimizer = optim.Adam(model.parameters(), 0.01)
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for k, index in enumerate(batches(24, 8, 12)):
            model.train(k % 3 != 2)
            run.batch(index)
            optimizer.zero_grad()
            LOSS(model(x[index]), y[index]).backward()
            optimizer.step()
            with torch.no_grad():
                model(x)
    a = ntkit.account(tmp_path / "run", model, LOSS, train=(x, y), queries=x[:3])
    check(a, model, x[:3])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_dropout_and_noise_are_drawn_again(dtype, tmp_path):
    torch.manual_seed(1)
    model, data = Dropped().to(dtype), digits(dtype=dtype)
    folder = train(
        tmp_path / "run", model, optim.Adam(model.parameters(), 0.01), data, batches(24, 7, 25), LOSS
    )
    state = torch.get_rng_state()
    a = ntkit.account(folder, model, LOSS, train=data, queries=data[0][:4])
    assert torch.equal(state, torch.get_rng_state())
    check(a, model, data[0][:4])
    assert a.rounding.abs().max() < (1e-12 if dtype == torch.float64 else 1e-4)
    assert a.buffers.abs().max() == 0


def test_accumulated_batches_with_norms_and_dropout(tmp_path):
    torch.manual_seed(1)
    model, (x, y) = nn.Sequential(normed(), nn.Dropout(0.3)), digits()
    optimizer = optim.AdamW(model.parameters(), 0.01)
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for index in batches(24, 12, 8):
            optimizer.zero_grad()
            for part in index.split(5):
                run.batch(part, weight=len(part) / 12)
                (LOSS(model(x[part]), y[part]) * len(part) / 12).backward()
            optimizer.step()
    a = ntkit.account(tmp_path / "run", model, LOSS, train=(x, y), queries=x[:3])
    check(a, model, x[:3])


def noisy(x, y):
    return x + 0.1 * torch.randn_like(x), y


def test_augmentation(tmp_path):
    model, (x, y) = (
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 3)).double(),
        digits(),
    )
    optimizer = optim.SGD(model.parameters(), 0.1)
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for index in batches(24, 8, 12):
            run.batch(index)
            xb, yb = noisy(x[index], y[index])
            optimizer.zero_grad()
            LOSS(model(xb), yb).backward()
            optimizer.step()
    a = ntkit.account(tmp_path / "run", model, LOSS, train=(x, y), queries=x[:3], augment=noisy)
    check(a, model, x[:3])
    with pytest.raises(PathMismatchError, match=r"Step 0 .*augment="):
        ntkit.account(tmp_path / "run", model, LOSS, train=(x, y), queries=x[:3])


def test_bfloat16_and_autocast_have_their_precision_in_one_column(tmp_path):
    torch.manual_seed(0)
    model, data = (
        nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).bfloat16(),
        digits(dtype=torch.bfloat16),
    )
    folder = train(
        tmp_path / "bf", model, optim.SGD(model.parameters(), 0.05), data, batches(24, 8, 20), LOSS
    )
    a = ntkit.account(folder, model, LOSS, train=data, queries=data[0][:4])
    assert a.converged and 1e-4 < a.rounding.abs().max() < 0.3

    model, (x, y) = (
        nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Tanh(), nn.Linear(8, 3)),
        digits(dtype=torch.float32),
    )
    optimizer = optim.Adam(model.parameters(), 0.01)
    with ntkit.record(tmp_path / "cast", model, optimizer, train=(x, y)) as run:
        for index in batches(24, 8, 20):
            run.batch(index)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = LOSS(model(x[index]), y[index])
            loss.backward()
            optimizer.step()
    a = ntkit.account(tmp_path / "cast", model, LOSS, train=(x, y), queries=x[:4])
    check(a, model, x[:4])
    assert 1e-6 < a.rounding.abs().max() < 0.1


def test_spectral_norm_whose_power_iteration_goes_on(tmp_path):
    torch.manual_seed(0)
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 8))
    model, data = nn.Sequential(layer, nn.Tanh(), nn.Linear(8, 3)).double(), digits()
    folder = train(
        tmp_path / "run", model, optim.Adam(model.parameters(), 0.01), data, batches(24, 8, 10), LOSS
    )
    a = ntkit.account(folder, model, LOSS, train=data, queries=data[0][:4])
    check(a, model, data[0][:4])
    assert a.buffers.abs().max() > 0


def test_attention_across_samples_in_training_only(tmp_path):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(6, 3)

        def forward(self, x):
            y = torch.tanh(self.linear(x))
            return y - y.mean(0) if self.training else y

    model, data = Centred().double(), digits()
    folder = train(
        tmp_path / "run", model, optim.SGD(model.parameters(), 0.1), data, batches(24, 8, 10), LOSS
    )
    check(ntkit.account(folder, model, LOSS, train=data, queries=data[0][:4]), model, data[0][:4])
