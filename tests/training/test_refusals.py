from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import GRID, ball, batches, mlp, square, train
from torch import nn, optim

import ntkit
from ntkit.errors import NotPerSampleError, NtkitError, PathMismatchError, RunFolderError
from ntkit.training.optimizers import Coefficients


@pytest.fixture
def setup(tmp_path):
    model = mlp()
    return tmp_path / "run", model, optim.SGD(model.parameters(), 0.1, momentum=0.9), ball(16)


class OwnStep(optim.SGD):
    pass


@pytest.mark.parametrize("kind", [optim.LBFGS, optim.SparseAdam, OwnStep])
def test_unknown_optimizers_by_name_at_the_start(kind, setup):
    folder, model, _, data = setup
    with pytest.raises(NtkitError, match=kind.__name__):
        ntkit.record(folder, model, kind(model.parameters(), lr=0.1), train=data)
    assert not folder.exists()


def test_step_without_batch_is_named(setup):
    folder, model, optimizer, (x, y) = setup
    with (
        pytest.raises(NtkitError, match=r"No run\.batch.* step 1"),
        ntkit.record(folder, model, optimizer) as run,
    ):
        run.batch([0, 1])
        for _ in range(2):
            optimizer.zero_grad()
            square(model(x[:2]), y[:2]).backward()
            optimizer.step()
    assert run.steps == 1


@pytest.mark.parametrize(
    "indices", [[16], [-1], [], [0.5], [[1]], "ab", torch.ones(3, dtype=torch.bool), np.array([1 + 1j])]
)
def test_bad_indices(indices, setup):
    folder, model, optimizer, data = setup
    with ntkit.record(folder, model, optimizer, train=data) as run, pytest.raises(NtkitError, match="step 0"):
        run.batch(indices)


@pytest.mark.parametrize(
    "indices",
    [
        slice(2, 5),
        [2, 3, 4],
        range(2, 5),
        np.array([2, 3, 4]),
        (torch.arange(16) > 1) & (torch.arange(16) < 5),
    ],
)
def test_good_indices(indices, setup):
    folder, model, optimizer, data = setup
    with ntkit.record(folder, model, optimizer, train=data) as run:
        run.batch(indices)
        assert run._gradients.parts()[0].batch.tolist() == [2, 3, 4]


def test_slice_needs_train(setup):
    folder, model, optimizer, _ = setup
    with ntkit.record(folder, model, optimizer) as run, pytest.raises(NtkitError, match="slice"):
        run.batch(slice(3))


class Twice(optim.SGD):
    def step(self, closure):
        closure()
        return super().step(closure)


def test_a_closure_is_called_once_in_a_step(setup):
    folder, model, optimizer, (x, y) = setup
    ntkit.register_optimizer(Twice)(lambda made: Coefficients(b=made.group["lr"]))
    optimizer = Twice(model.parameters(), 0.1)
    with ntkit.record(folder, model, optimizer) as run, pytest.raises(NtkitError, match="called twice"):
        run.batch([0])
        optimizer.step(lambda: square(model(x[:1]), y[:1]).backward())


def test_sparse_gradients(tmp_path):
    table = nn.Sequential(nn.Embedding(3, 2, sparse=True), nn.Flatten(), nn.Linear(2, 1))
    optimizer = optim.SGD(table.parameters(), 0.1)
    with ntkit.record(tmp_path / "b", table, optimizer) as run, pytest.raises(NtkitError, match="sparse"):
        run.batch([0])
        table(torch.tensor([[1]])).sum().backward()
        optimizer.step()


def test_foreign_changes_of_weights(tmp_path, setup):
    folder, model, optimizer, (x, y) = setup
    with pytest.raises(NtkitError, match="changed between step 0 and step 1"):
        with ntkit.record(folder, model, optimizer) as run:
            for _ in range(2):
                run.batch([0])
                optimizer.zero_grad()
                square(model(x[:1]), y[:1]).backward()
                optimizer.step()
                model[0].weight.data.mul_(1.01)
    frozen = mlp()
    rest = optim.SGD(frozen[2:].parameters(), 0.1)
    with (
        pytest.raises(NtkitError, match=r"'0\.weight', a frozen"),
        ntkit.record(tmp_path / "b", frozen, rest),
    ):
        frozen[0].weight.data += 1


def test_models_that_cannot_be_recorded(tmp_path):
    optimizer = optim.SGD(nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.5)).parameters(), 0.1)
    with pytest.raises(NtkitError, match="none of the model's"):
        ntkit.record(tmp_path / "c", mlp(), optimizer)
    mixed = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
    with pytest.raises(NtkitError, match="mixed dtype"):
        ntkit.record(tmp_path / "d", mixed, optim.SGD(mixed.parameters(), 0.1))
    assert list(tmp_path.iterdir()) == []


def test_folders_that_cannot_be_used(tmp_path, setup):
    folder, model, optimizer, data = setup
    train(folder, model, optimizer, data, batches(16, 4, 2))
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(RunFolderError, match="not empty"), ntkit.record(folder, model, optimizer):
        pass
    assert before == {p.name: p.read_bytes() for p in folder.iterdir()}
    blocker = tmp_path / "file"
    blocker.write_text("")
    for target in (blocker, blocker / "run"):
        with pytest.raises(RunFolderError, match="cannot be written"), ntkit.record(target, model, optimizer):
            pass
    with pytest.raises(RunFolderError, match="not a run folder"):
        ntkit.account(tmp_path / "none", model, square, train=data, queries=GRID)


def test_data_other_than_recorded(tmp_path, setup):
    folder, model, optimizer, (x, y) = setup
    train(folder, model, optimizer, (x, y), batches(16, 4, 5))
    for wrong in ((x + 1e-9, y), (x, -y), (x[:-1], y[:-1])):
        with pytest.raises(PathMismatchError, match="sha256"):
            ntkit.account(folder, model, square, train=wrong, queries=GRID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_wrong_label_or_loss_is_refused_at_its_first_step(kind, dtype, tmp_path):
    model, (x, y) = mlp(dtype), ball(16, dtype)
    indices = [torch.arange(8), torch.arange(8), torch.tensor([1, 9, 2, 3])]
    train(tmp_path / "run", model, kind(model.parameters(), 0.01), (x, y), indices, hashed=False)
    wrong = y.clone()
    wrong[9] *= -1
    with pytest.raises(PathMismatchError, match=r"^Step 2 "):
        ntkit.account(tmp_path / "run", model, square, train=(x, wrong), queries=x)
    for loss in (lambda p, t: ((p - t) ** 2).sum(), lambda p, t: (p - t).abs().mean()):
        with pytest.raises(PathMismatchError, match=r"^Step 0 "):
            ntkit.account(tmp_path / "run", model, loss, train=(x, y), queries=x)
    with pytest.raises(PathMismatchError, match="sample 9"):
        ntkit.account(tmp_path / "run", model, square, train=(x[:9], y[:9]), queries=x)
    other = mlp(dtype, nn.Tanh)
    with pytest.raises(PathMismatchError, match=r"^Step 0 "):
        ntkit.account(tmp_path / "run", other, square, train=(x, y), queries=x)


@pytest.mark.parametrize("change", [lambda g: g.add_(1e-6), lambda g: g.sub_(g.mean()), lambda g: g.abs_()])
def test_gradients_changed_by_more_than_a_factor(change, setup):
    folder, model, optimizer, (x, y) = setup
    with (
        pytest.raises(NtkitError, match=r"'0\.weight' was changed after the backward pass"),
        ntkit.record(folder, model, optimizer) as run,
    ):
        run.batch(range(4))
        square(model(x[:4]), y[:4]).backward()
        change(model[0].weight.grad)
        optimizer.step()


def test_bad_arguments_of_account(setup):
    folder, model, optimizer, (x, y) = setup
    train(folder, model, optimizer, (x, y), batches(16, 4, 3))
    nan = GRID.clone()
    nan[3, 1] = torch.nan
    other = nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)).double()
    good = {"model": model, "loss": square, "train": (x, y), "queries": GRID}
    for change, message in (
        ({"queries": nan}, r"NaN.*\[3\]"),
        ({"queries": GRID.float()}, "float32"),
        ({"queries": GRID[:0]}, "empty"),
        ({"train": (x.float(), y)}, "float32"),
        ({"train": x}, "pair"),
        ({"train": (x, y[:3])}, "16 inputs but 3"),
        ({"model": other}, r"0\.weight: recorded \(10, 2\), given \(3, 2\)"),
        ({"model": mlp(torch.float32), "train": (x, y)}, "float32"),
        ({"loss": lambda p, t: (p - t) ** 2}, "one number"),
        ({"loss": lambda p, t: nn.functional.nll_loss(p, t)}, "loss"),
        ({"tol": 0}, "tol"),
        ({"nodes": 0}, "nodes"),
        ({"nodes": "right"}, "nodes"),
        ({"memory": "lots"}, "memory"),
    ):
        with pytest.raises(NtkitError, match=message):
            ntkit.account(folder, **{**good, **change})


def test_samples_that_mix_are_refused(tmp_path):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(2, 1).double()

        def forward(self, x):
            y = self.linear(x)
            return torch.tanh(y) - y.mean(0)

    model, data = Centred(), ball(16)
    folder = train(tmp_path / "run", model, optim.SGD(model.parameters(), 0.1), data, batches(16, 4, 2))
    with pytest.raises(NotPerSampleError, match="depends on the others"):
        ntkit.account(folder, model, square, train=data, queries=GRID)


def test_diverged_run_is_refused(setup):
    folder, model, _, data = setup
    train(folder, model, optim.SGD(model.parameters(), 1e6), data, batches(16, 4, 30))
    with pytest.raises(NtkitError, match="NaN or inf"):
        ntkit.account(folder, model, square, train=data, queries=GRID)


def test_queries_that_a_batch_norm_mixes(tmp_path):
    model, data = (
        nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False)).double(),
        ball(16),
    )
    folder = train(tmp_path / "run", model, optim.SGD(model.parameters(), 0.1), data, batches(16, 4, 2))
    with pytest.raises(NotPerSampleError, match="no running statistics"):
        ntkit.account(folder, model, square, train=data, queries=GRID)
