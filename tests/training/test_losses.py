"""Any batch loss, and any part of a prediction, against the gradients of samples one by one."""

from __future__ import annotations

import pytest
import torch
from runs import batches, train
from torch import nn, optim
from torch.nn import functional

import ntkit
from ntkit.errors import NtkitError
from ntkit.training.folder.run import Run
from ntkit.training.functional.losses import NAMED, loss_of
from ntkit.training.integrals.gauss import gauss

DRAW = torch.Generator().manual_seed(5)
N, RATE = 12, 0.05


def normal(*shape):
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def focal(outputs, targets):
    """A loss of the user's own, over the whole batch."""
    p = torch.log_softmax(outputs, 1).gather(1, targets[:, None])[:, 0]
    return -((1 - p.exp()) ** 2 * p).sum() / len(p) ** 0.5


def of_two(outputs, targets):
    """Targets in a dict, two heads in one output."""
    first = functional.mse_loss(outputs[:, :2], targets["value"])
    return first + 0.3 * functional.cross_entropy(outputs[:, 2:], targets["kind"])


class Sequence(nn.Module):
    """Outputs for each place of a sequence, ``[n, t, o]``."""

    def __init__(self):
        super().__init__()
        self.read, self.last = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(self.read(x)[0])


def over_places(outputs, targets):
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=-1)


CLASSES, WEIGHTS = torch.arange(N) % 4, torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)
PLACES = torch.where(torch.arange(N * 5) % 7 == 0, -1, torch.arange(N * 5) % 4).reshape(N, 5)
LOSSES = {
    "MSE": (nn.MSELoss(), normal(N, 4)),
    "MSE, sum": (nn.MSELoss(reduction="sum"), normal(N, 4)),
    "cross entropy": (nn.CrossEntropyLoss(), CLASSES),
    "smoothed": (nn.CrossEntropyLoss(label_smoothing=0.1), CLASSES),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), CLASSES),
    "soft targets": (nn.CrossEntropyLoss(), normal(N, 4).softmax(1)),
    "BCE": (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), (normal(N, 4) > 0).double()),
    "Huber": (nn.HuberLoss(delta=0.3), normal(N, 4)),
    "own": (focal, CLASSES),
    "two heads": (of_two, {"value": normal(N, 2), "kind": CLASSES % 2}),
}


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 4)).double()


def take(targets, index):
    return {k: v[index] for k, v in targets.items()} if isinstance(targets, dict) else targets[index]


def oracle(folder, model, x, y, loss, queries, nodes):
    """Contributions of plain gradient descent, sample by sample with autograd."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]

    def f(w, x):
        parts = zip(names, w.split([s.numel() for s in shapes]), shapes, strict=True)
        return torch.func.functional_call(model, {name: p.view(s) for name, p, s in parts}, (x,))

    jacobian = torch.autograd.functional.jacobian
    with Run(folder) as run:
        total = torch.zeros(len(queries), f(run.weights(0), queries)[0].numel(), N, dtype=torch.float64)
        for k in range(run.steps):
            w, batch = run.weights(k), run.step(k).batch
            outputs = f(w, x[batch]).detach().requires_grad_()
            c = torch.autograd.grad(loss(outputs, take(y, batch)), outputs)[0]
            move = run.weights(k + 1) - w
            d = sum(
                share * jacobian(lambda w: f(w, queries).flatten(1), w + s * move)
                for s, share in zip(*gauss(nodes), strict=True)
            )
            for i, n in enumerate(batch.tolist()):
                g = c[i].flatten() @ jacobian(lambda w, n=n: f(w, x[n : n + 1]).flatten(), w)
                total[:, :, n] -= RATE * d @ g
    return total


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, tmp_path):
    loss, y = LOSSES[name]
    model, x, queries = plain(), normal(N, 6), normal(3, 6)
    indices = batches(N, 5, 6)
    with ntkit.record(tmp_path / "run", model, optim.SGD(model.parameters(), RATE)) as run:
        for index in indices:
            run.batch(index)
            model.zero_grad()
            loss(model(x[index]), take(y, index)).backward()
            for p in model.parameters():
                p.grad.clamp_(-1e3, 1e3)
            run._optimizers[0].step()
    a = ntkit.account(tmp_path / "run", model, loss, train=(x, y), queries=queries, nodes=4)
    truth = oracle(tmp_path / "run", model, x, y, loss, queries, 4)
    assert (a.contributions - truth).abs().max() <= 1e-10 * truth.abs().max()
    assert torch.allclose(a.prediction, model(queries).detach(), atol=1e-12)
    assert a.relative_residual <= 1e-8 and a.rounding.abs().max() < 1e-13


def test_sequence_outputs(tmp_path):
    """Theorem 3 of "Can neural networks extrapolate?", for outputs at each place of a sequence."""
    torch.manual_seed(0)
    model, x, queries = Sequence().double(), normal(N, 5, 3), normal(2, 5, 3)
    optimizer = optim.SGD(model.parameters(), RATE)
    folder = train(tmp_path / "run", model, optimizer, (x, PLACES), batches(N, 5, 4), over_places)
    a = ntkit.account(folder, model, over_places, train=(x, PLACES), queries=queries, nodes=3)
    assert a.contributions.shape == (2, 20, N)
    truth = oracle(folder, model, x, PLACES, over_places, queries, 3)
    assert (a.contributions - truth).abs().max() <= 1e-10 * truth.abs().max()
    assert torch.allclose(a.prediction, model(queries).flatten(1).detach(), atol=1e-12)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    model, x = plain(), normal(N, 6)
    data, loss = (x, CLASSES), nn.CrossEntropyLoss(weight=WEIGHTS)
    folder = tmp_path_factory.mktemp("losses") / "run"
    train(folder, model, optim.Adam(model.parameters(), RATE), data, batches(N, 5, 20), loss)
    queries = normal(5, 6)
    whole = ntkit.account(folder, model, loss, train=data, queries=queries, tol=1e-10)
    return folder, model, loss, data, queries, whole


def test_targets_that_are_parts_of_the_outputs(trained):
    folder, model, loss, data, queries, whole = trained
    best = whole.prediction.topk(2, dim=1).indices
    rows = torch.arange(5)

    def account(target, **more):
        return ntkit.account(
            folder, model, loss, train=data, queries=queries, target=target, tol=1e-10, **more
        )

    for target, truth in (
        ("predicted", whole.contributions[rows, best[:, 0]][:, None]),
        (2, whole.contributions[:, 2:3]),
        ([0, -1], whole.contributions[:, [0, 3]]),
        (("margin", 3, 1), whole.contributions[:, 3:] - whole.contributions[:, 1:2]),
        ("margin", (whole.contributions[rows, best[:, 0]] - whole.contributions[rows, best[:, 1]])[:, None]),
    ):
        a = account(target)
        assert a.converged and a.contributions.shape == truth.shape
        assert (a.contributions - truth).abs().max() <= 1e-8 * truth.abs().max(), target


def test_loss_as_target(trained):
    folder, model, loss, data, queries, _ = trained
    labels = torch.tensor([0, 3, 2, 2, 1])
    a = ntkit.account(folder, model, loss, train=data, queries=queries, target="loss", labels=labels)
    single = [loss(model(q[None]), label[None]) for q, label in zip(queries, labels, strict=True)]
    assert torch.allclose(a.prediction[:, 0], torch.stack(single).detach(), atol=1e-12)
    assert a.converged and a.contributions.shape == (5, 1, N)


@pytest.mark.parametrize(
    ("target", "more", "message"),
    [
        ("logits", {}, "is not one of the 4 outputs"),
        (4, {}, "is not one of the 4 outputs"),
        ([], {}, "is not one of"),
        (("margin", 0, 9), {}, "is not one of"),
        (True, {}, "is not one of"),
        ("loss", {}, "give labels="),
        ("loss", {"labels": torch.tensor([1])}, "5 queries but 1 labels"),
    ],
)
def test_targets_that_are_none(target, more, message, trained):
    folder, model, loss, data, queries, _ = trained
    with pytest.raises(NtkitError, match=message):
        ntkit.account(folder, model, loss, train=data, queries=queries, target=target, **more)


@pytest.mark.parametrize("name", NAMED)
def test_losses_by_name(name):
    torch.manual_seed(0)
    outputs, targets = torch.randn(4, 3).double().sigmoid().log(), torch.rand(4, 3).double()
    targets = torch.arange(4) % 3 if name in ("cross_entropy", "nll") else targets
    value = loss_of(name)(outputs, targets)
    assert value.ndim == 0 and torch.isfinite(value)


def test_an_account_with_a_loss_by_name(tmp_path):
    torch.manual_seed(0)
    net, x = torch.nn.Linear(2, 3).double(), torch.randn(6, 2).double()
    y, optimizer = torch.arange(6) % 3, torch.optim.SGD(net.parameters(), 0.1)
    with ntkit.record(tmp_path, net, optimizer) as run:
        run.batch(range(6))
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    given = {"train": (x, y), "queries": x[:2]}
    named = ntkit.account(tmp_path, net, "cross_entropy", **given)
    unnamed = ntkit.account(tmp_path, net, torch.nn.CrossEntropyLoss(), **given)
    assert torch.equal(named.contributions, unnamed.contributions)
    with pytest.raises(ntkit.NtkitError, match="Did you mean 'cross_entropy'"):
        ntkit.account(tmp_path, net, "crossentropy", **given)
    with pytest.raises(ntkit.NtkitError, match="Step 0"):
        ntkit.account(tmp_path, net, "nll", **given)
