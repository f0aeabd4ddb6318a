"""Networks that torch.func cannot transform, or transforms wrongly; the account is as right as any."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from runs import batches, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import ntkit

RATE = 0.2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.read, self.last = nn.Linear(4, 3), nn.Linear(3, 2)


class Branches(Net):
    """Looks at each sample's values."""

    def forward(self, x):
        rows = [self.read(r).tanh() if r[0] > 0 else self.read(r).sin() for r in x]
        return self.last(torch.stack(rows))


class LooksAtWeights(Net):
    def forward(self, x):
        h = self.read(x)
        return self.last(h.tanh() if bool((h > 1e6).any()) else h.sin())


class ReadsOut(Net):
    def forward(self, x):
        positive = torch.as_tensor((x.detach().numpy() > 0) * 1.0)
        return self.last(self.read(x * positive.to(x)).tanh())


class _Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.saved_tensors[0].cos()


class OldFunction(Net):
    def forward(self, x):
        return self.last(_Sine.apply(self.read(x)))


class Distances(Net):
    """The batched backward pass of cdist gives wrong numbers in jacrev."""

    def forward(self, x):
        return self.last((-(torch.cdist(x, self.read.weight) ** 2) / 8).exp() + self.read.bias)


class KeepsFeatures(Net):
    def forward(self, x):
        self.features = [self.read(x).tanh()]
        return self.last(self.features[0])


class Recomputes(Net):
    def __init__(self):
        super().__init__()
        self.gradient_checkpointing = True

    def forward(self, x):
        if self.gradient_checkpointing:
            return self.last(checkpoint(self.read, x, use_reentrant=False).tanh())
        return self.last(self.read(x).tanh())


class Differentiates(Net):
    """Returns a derivative of itself."""

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            h = self.last(self.read(x).tanh())
            return h * torch.autograd.grad(h.sum(), x, create_graph=True)[0][:, :2]


class Packs(Net):
    """Reads sequences whose lengths it tells from the data."""

    def __init__(self):
        super().__init__()
        self.read = nn.GRU(1, 3, batch_first=True)

    def forward(self, x):
        lengths = 1 + (x > 0).sum(1).clamp(max=3)
        packed = pack_padded_sequence(x[..., None], lengths, batch_first=True, enforce_sorted=False)
        return self.last(self.read(packed)[1][0])


def oracle(model: nn.Module, data: tuple[Tensor, Tensor], index: list[Tensor], queries: Tensor) -> Tensor:
    """Contributions of plain SGD, ``[q, o, n]``, by one backward pass for each number that it takes."""
    model, (x, y) = copy.deepcopy(model), data
    parameters = list(model.parameters())

    def gradient(value: Tensor) -> Tensor:
        grads = torch.autograd.grad(value, parameters, retain_graph=True)
        return torch.cat([g.reshape(-1) for g in grads])

    def move(w: Tensor) -> None:
        nn.utils.vector_to_parameters(w, parameters)

    nodes, shares = (v / 2 for v in np.polynomial.legendre.leggauss(12))
    found = torch.zeros(len(queries), 2, len(x), dtype=torch.float64)
    w = nn.utils.parameters_to_vector(parameters).detach()
    for batch in index:
        move(w)
        outputs = model(x[batch]).detach().requires_grad_()
        c = torch.autograd.grad(cross_entropy(outputs, y[batch]), outputs)[0]
        steps = [-RATE * gradient((model(x[n : n + 1]) * c[i]).sum()) for i, n in enumerate(batch.tolist())]
        delta = torch.stack(steps).sum(0)
        for node, share in zip(nodes + 0.5, shares, strict=True):
            move(w + float(node) * delta)
            for q in range(len(queries)):
                rows = torch.stack([gradient(v) for v in model(queries[q : q + 1])[0]])
                found[q][:, batch] += float(share) * rows @ torch.stack(steps).T
        w = w + delta
    return found


@pytest.mark.parametrize(
    "kind",
    [
        *(Branches, LooksAtWeights, ReadsOut, OldFunction, Distances, KeepsFeatures, Recomputes),
        *(Differentiates, Packs),
    ],
)
@pytest.mark.parametrize("memory", ["1GiB", "1KiB"])
def test_contributions_are_those_of_single_backward_passes(kind, memory, tmp_path):
    model = kind().double()
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data, index = (x, (x.sum(1) > 0).long()), batches(9, 4, 4)
    begun = kind().double()
    begun.gradient_checkpointing = False
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    folder = train(tmp_path / "run", model, optimizer, data, index, loss=cross_entropy)
    a = ntkit.account(folder, model, cross_entropy, train=data, queries=x[:2], tol=1e-9, memory=memory)
    expected = oracle(begun, data, index, x[:2])
    assert a.converged
    assert (a.contributions - expected).abs().max() < 1e-8 * expected.abs().max()


class AlwaysRecomputes(Net):
    def forward(self, x):
        return self.last(checkpoint(self.read, x, use_reentrant=False).tanh())


def test_checkpoints_without_a_switch_are_refused_with_what_to_do(tmp_path):
    model = AlwaysRecomputes().double()
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = (x, (x.sum(1) > 0).long())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    folder = train(tmp_path / "run", model, optimizer, data, batches(9, 4, 2), loss=cross_entropy)
    with pytest.raises(ntkit.NtkitError, match="Switch that off"):
        ntkit.account(folder, model, cross_entropy, train=data, queries=x[:2])


def test_queries_that_the_network_does_not_take_are_refused(tmp_path):
    model = Branches().double()
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = (x, (x.sum(1) > 0).long())
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    folder = train(tmp_path / "run", model, optimizer, data, batches(9, 4, 2), loss=cross_entropy)
    for queries in (x[0], x[:, :3], {"inputs": x}):
        with pytest.raises(ntkit.NtkitError, match="does not take the queries"):
            ntkit.account(folder, model, cross_entropy, train=data, queries=queries)
    with pytest.raises(ntkit.NtkitError, match="tol is None"):
        ntkit.account(folder, model, cross_entropy, train=data, queries=x, tol=None)
