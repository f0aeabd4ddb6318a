"""What of the data goes in, and which of several outputs counts: the same accounts as of a plain network."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from runs import batches, square
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import ntkit
from ntkit.training.accounts.path_machine import PathMachine

D = torch.float64


@dataclass
class Scores:
    scores: Tensor
    loss: Tensor | None = None


WRAPS = {
    "dict": (lambda y, h: {"scores": y, "hidden": h}, "scores"),
    "tuple": (lambda y, h: (h, y), 1),
    "object": (lambda y, h: Scores(y), "scores"),
}
COLUMNS = ("initial", "contributions", "decay", "start", "buffers", "rounding", "prediction")


class Net(nn.Module):
    """A network that returns its outputs alone, or with others besides them."""

    def __init__(self, wrap=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.n, self.b, self.wrap = nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 2), wrap
        self.double()

    def forward(self, x):
        h = self.n(self.a(x)).tanh()
        return self.b(h) if self.wrap is None else self.wrap(self.b(h), h)


def data():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(1), dtype=D)
    return x, torch.stack([x[:, 0] * x[:, 1], x.sin().sum(1)], 1)


def run(folder, model, part=lambda out: out, train=None, every=1, **given):
    (x, y), optimizer = data(), torch.optim.Adam(model.parameters(), 0.05)
    with ntkit.record(
        folder, model, optimizer, (x, y) if train is None else train, every=every, **given
    ) as r:
        for index in batches(9, 4, 6):
            r.batch(index)
            optimizer.zero_grad()
            square(part(model(x[index])), y[index]).backward()
            optimizer.step()
    return folder


def assert_equal(a, b):
    for name in COLUMNS:
        assert torch.allclose(getattr(a, name), getattr(b, name), rtol=0, atol=1e-9), name
    assert a.converged and (a.residual.abs().max() < 1e-8 * (a.prediction - a.initial).abs().max())


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("target", ["outputs", "loss"])
def test_accounts_of_one_of_several_outputs(wrap, every, target, tmp_path):
    wrap, select = WRAPS[wrap]
    (x, y), plain, model = data(), Net(), Net(wrap)
    how = {"train": (x, y), "queries": x[:3] / 2, "target": target, "labels": y[:3]}
    expected = ntkit.account(run(tmp_path / "plain", plain), plain, square, **how)

    def part(out):
        return getattr(out, select) if isinstance(out, Scores) else out[select]

    folder = run(tmp_path / "several", model, part, every=every)
    assert_equal(ntkit.account(folder, model, square, select=select, **how), expected)
    k = ntkit.PathKernel(folder, model, loss=square, train=(x, y), select=select)
    assert torch.allclose(k(x[:3]), ntkit.PathKernel(tmp_path / "plain", plain)(x[:3]), rtol=1e-9)
    with pytest.raises(TypeError, match="Say with select="):
        ntkit.account(run(tmp_path / "again", model, part), model, square, **how)
    with pytest.raises(ValueError, match="Name one of its parts"):
        ntkit.account(tmp_path / "again", model, square, select="nothing", **how)


def test_watching_one_of_several_outputs():
    (x, y), plain = data(), Net()
    wrap, select = WRAPS["dict"]
    found = []
    for model, how in ((plain, {}), (Net(wrap), {"select": select})):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        with ntkit.watch(model, optimizer, square, (x, y), x[:2] / 2, **how) as r:
            for index in batches(9, 4, 6):
                r.batch(index)
                optimizer.zero_grad()
                out = model(x[index])
                square(out[select] if how else out, y[index]).backward()
                optimizer.step()
        found.append(r.account)
    assert_equal(*found)


class Items(Dataset):
    """Samples by name."""

    def __init__(self, *more):
        self.parts = dict(zip(("pixels", "label"), data(), strict=True)) | dict.fromkeys(more, data()[0])

    def __len__(self):
        return 9

    def __getitem__(self, i):
        return {name: part[i] for name, part in self.parts.items()}


SOURCES = {
    "pairs": (lambda: TensorDataset(*data()), {}),
    "shuffled": (lambda: DataLoader(TensorDataset(*data()), batch_size=2, shuffle=True), {}),
    "a batch left out": (lambda: DataLoader(TensorDataset(*data()), batch_size=4, drop_last=True), {}),
    "a place": (lambda: TensorDataset(*data(), data()[0]), {"inputs": 0, "targets": 1}),
    "turned round": (lambda: TensorDataset(*data()[::-1]), {"inputs": -1}),
    "a name": (lambda: DataLoader(Items(), batch_size=4), {"inputs": "pixels"}),
    "names": (lambda: Items("more"), {"inputs": "pixels", "targets": "label"}),
    "functions": (Items, {"inputs": lambda i: i["pixels"], "targets": lambda i: i["label"]}),
    "a pair of loaders": (
        lambda: (DataLoader(Items()), DataLoader(Items())),
        {"inputs": "pixels", "targets": "label"},
    ),
}


@pytest.mark.parametrize("source", SOURCES)
def test_training_data_from_datasets_and_loaders(source, tmp_path):
    make, how = SOURCES[source]
    (x, y), model = data(), Net()
    expected = ntkit.account(run(tmp_path / "run", model), model, square, train=(x, y), queries=x)
    queries = make()[0] if isinstance(make(), tuple) else make()
    if isinstance(queries, DataLoader):
        queries = queries.dataset
    how_queries = how if how else {"inputs": 0}
    model = Net()
    folder = run(tmp_path / "of data", model, train=make(), **how)
    a = ntkit.account(folder, model, square, train=make(), queries=queries, **how_queries)
    assert_equal(a, expected)
    machine = PathMachine(ntkit.PathKernel(folder, model, **how_queries), square, make())
    parts = machine.expand(queries)
    assert torch.allclose(parts.prediction, expected.prediction, rtol=0, atol=1e-12)
    assert torch.allclose(
        parts.kernel.permute(0, 2, 1), ntkit.PathKernel(folder, model, outputs="diagonal")(x)
    )


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(*data(), strict=True)


@pytest.mark.parametrize(
    ("train", "how", "match"),
    [
        (Items(), {}, r"must not reach the network\. Say with inputs="),
        (Items("more"), {"inputs": "pixels"}, r"leaves \['label', 'more'\]\. Say with targets="),
        (TensorDataset(data()[0]), {}, "leaves no targets"),
        (Items(), {"inputs": lambda i: i["pixels"]}, "Say with targets="),
        (Items(), {"inputs": "image"}, "image"),
        (Items(), {"inputs": "pixels", "targets": "labels"}, "Did you mean 'label'"),
        (Stream(), {}, "whose samples have no numbers"),
        (DataLoader(TensorDataset(*data()), batch_size=None), {}, "batch_size=None"),
        (TensorDataset(*(t[:0] for t in data())), {}, "is an empty TensorDataset"),
        (data()[0], {}, "must be a pair"),
    ],
)
def test_training_data_that_say_too_little_are_refused(train, how, match, tmp_path):
    model = Net()
    with pytest.raises(ntkit.NtkitError, match=match):
        run(tmp_path / "no", model, train=train, **how)
    folder = run(tmp_path / "run", model)
    with pytest.raises(ntkit.NtkitError, match=match):
        ntkit.account(folder, model, square, train=train, queries=data()[0], **how)


def test_data_of_another_order_are_not_those_of_the_run(tmp_path):
    (x, y), model = data(), Net()
    folder = run(tmp_path / "run", model)
    with pytest.raises(ntkit.errors.PathMismatchError, match="sha256 differs"):
        ntkit.account(folder, model, square, train=TensorDataset(x.flip(0), y.flip(0)), queries=x)
