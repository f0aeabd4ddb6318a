"""What of the data goes in, and which of several outputs counts: limits are those of the plain network."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from sklearn.base import clone
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import ntkit

D = torch.float64


@dataclass
class Scores:
    scores: Tensor
    loss: Tensor | None = None


class Net(nn.Module):
    """A network that returns its outputs alone, or with others besides them."""

    def __init__(self, wrap=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.wrap = nn.Linear(3, 64), nn.Linear(64, 2), nn.Linear(64, 3), wrap
        self.double()

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(h) if self.wrap is None else self.wrap(self.b(h), self.c(h.relu()))


WRAPS = {
    "dict": (lambda y, h: {"scores": y, "other": h}, "scores"),
    "tuple": (lambda y, h: (h.softmax(1), y), 1),
    "object": (lambda y, h: Scores(y, h.sum()), "scores"),
}
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=D)


@pytest.mark.parametrize("wrap", WRAPS)
def test_limits_of_one_of_several_outputs(wrap):
    wrap, select = WRAPS[wrap]
    model = Net(wrap)
    for how in ({"sigma_b": 0.3}, {"parameterization": "standard"}):
        plain = ntkit.infinite_width(Net(), X, **how)
        limit = ntkit.infinite_width(model, X, select=select, **how)
        for a, b in ((limit.nngp, plain.nngp), (limit.ntk, plain.ntk), (clone(limit.ntk), plain.ntk)):
            assert torch.equal(a(X, X[:2]), b(X, X[:2])) and torch.equal(a.diag(X), b.diag(X))
    with pytest.raises(TypeError, match="Say with select="):
        ntkit.infinite_width(model, X)
    with pytest.raises(ValueError, match="Name one of its parts"):
        ntkit.infinite_width(model, X, select="nothing")


@pytest.mark.parametrize("wrap", WRAPS)
def test_estimates_of_one_of_several_outputs(wrap):
    wrap, select = WRAPS[wrap]
    a, b = ntkit.monte_carlo(Net(wrap), 200, X, select=select), ntkit.infinite_width(Net(), X)
    for mean, error, truth in ((a.ntk, a.ntk_error, b.ntk(X)), (a.nngp, a.nngp_error, b.nngp(X))):
        assert ((mean - truth).abs() < 5 * error + 0.03 * truth.abs().max()).all()


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda x: TensorDataset(x), None),
        (lambda x: TensorDataset(x, x), 0),
        (lambda x: DataLoader(TensorDataset(x, x.sum(1)), batch_size=2), lambda item: item[0]),
        (lambda x: {"pixels": 2 * x}, lambda batch: batch["pixels"] / 2),
    ],
)
def test_limits_on_datasets_and_loaders(make, inputs):
    plain, limit = ntkit.infinite_width(Net(), X), ntkit.infinite_width(Net(), make(X), inputs=inputs)
    for k, truth in ((limit.ntk, plain.ntk), (limit.nngp, plain.nngp), (clone(limit.ntk), plain.ntk)):
        assert torch.equal(k(make(X), make(X[:2])), truth(X, X[:2]))
        assert torch.equal(k.diag(make(X)), truth.diag(X))
    assert torch.equal(limit.layers["h1"].nngp(make(X)), plain.layers["h1"].nngp(X))
    a, b = (ntkit.monte_carlo(Net(), 3, x, inputs=i) for x, i in ((make(X), inputs), (X, None)))
    assert torch.equal(a.ntk, b.ntk) and torch.equal(a.nngp, b.nngp)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(2, 8), nn.Linear(8, 1)
        self.double()

    def forward(self, x, z):
        return self.c((self.a(x) + self.b(z)).relu())


def test_several_parts_of_items_go_in():
    model, z = Two(), X[:, :2] ** 2
    items = TensorDataset(X, torch.zeros(5), z)
    limit = ntkit.infinite_width(model, items, inputs=[0, 2])
    assert torch.equal(limit.ntk(items), ntkit.infinite_width(model, (X, z)).ntk((X, z)))
    with pytest.raises(ValueError, match=r"must not reach the network\. Say with inputs="):
        ntkit.infinite_width(model, items)
