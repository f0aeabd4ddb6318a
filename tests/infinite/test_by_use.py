"""A weight is what the network does with it, whatever module holds it: limit and draws agree."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit

D = torch.float64
W, B = 1.3, 0.4


def parameter(*shape):
    return nn.Parameter(torch.randn(*shape) * 0.02)


class Dense(nn.Module):
    """A linear layer of somebody else's."""

    def __init__(self, a, b, kind):
        super().__init__()
        self.kind, self.nf = kind, b
        turned = kind in ("linear", "transposed", "view", "class with another use")
        self.kernel = parameter(b, a) if turned else parameter(a, b)
        self.shift = nn.Parameter(torch.zeros(b))

    def forward(self, x):
        w, b = self.kernel, self.shift
        match self.kind:
            case "linear":
                return F.linear(x, w, b)
            case "transposed":
                return x @ w.T + b
            case "view":
                return torch.matmul(x, w.transpose(0, 1).contiguous()).add(b)
            case "conv1d":  # of GPT-2
                return torch.addmm(b, x.view(-1, x.size(-1)), w).view(*x.shape[:-1], self.nf)
            case "right":
                return b + x @ w
            case "mm":
                return torch.mm(x, w) + b.view(1, -1)
        raise AssertionError(self.kind)


class Subclass(nn.Linear):
    """A subclass of a layer of torch's, whose weight lies the other way round."""

    def __init__(self, a, b):
        super().__init__(b, a, bias=False)

    def forward(self, x):
        return x @ self.weight


def plain(width):
    return nn.Sequential(
        nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2)
    )


def foreign(width, kind):
    return nn.Sequential(
        Dense(3, width, kind), nn.ReLU(), Dense(width, width, kind), nn.ReLU(), Dense(width, 2, kind)
    )


KINDS = ["linear", "transposed", "view", "conv1d", "right", "mm"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_that_of_linear_layers(kind):
    x = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    one, two = (ntkit.infinite_width(m.double(), x[:1], W, B) for m in (plain(8), foreign(8, kind)))
    torch.testing.assert_close(two.nngp(x), one.nngp(x), rtol=1e-13, atol=0)
    torch.testing.assert_close(two.ntk(x), one.ntk(x), rtol=1e-13, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_those_of_linear_layers(kind):
    x = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    limit = ntkit.infinite_width(foreign(8, kind).double(), x[:1], W, B).ntk(x)
    for width in (32, 256):
        drawn = ntkit.monte_carlo(foreign(width, kind).double(), 24, x, sigma_w=W, sigma_b=B)
        bias = 2 / width * limit.abs().max()
        assert ((drawn.ntk - limit).abs() <= 4.5 * drawn.ntk_error + bias).all()


@pytest.mark.parametrize("kind", KINDS)
def test_the_parametrization_is_the_layer_by_hand(kind):
    x = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(0))
    model = foreign(16, kind).double()
    copy = ntkit.ntk_parametrize(model, W, B, seed=0, example=x)
    h = x
    for i, fan_in in ((0, 3), (2, 16), (4, 16)):
        w = copy[i].parametrizations.kernel.original
        b = copy[i].parametrizations.shift.original
        assert 0.6 < w.std() < 1.4
        h = h @ (w if w.shape[0] == fan_in and kind not in ("linear", "transposed", "view") else w.T)
        h = W / fan_in**0.5 * h + B * b
        h = torch.relu(h) if i < 4 else h
    torch.testing.assert_close(copy(x), h)


def test_a_subclass_is_read_from_what_it_does():
    x = torch.randn(3, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    model = nn.Sequential(Subclass(4, 600), nn.Tanh(), Subclass(600, 1)).double()
    copy = ntkit.ntk_parametrize(model, W, seed=0, example=x)
    weight = copy[0].parametrizations.weight.original
    torch.testing.assert_close(copy[0](x), W / 4**0.5 * x @ weight)
    limit = ntkit.infinite_width(model, x[:1], W).ntk(x)
    drawn = ntkit.monte_carlo(model, 40, x, sigma_w=W)
    assert ((drawn.ntk - limit).abs() <= 4.5 * drawn.ntk_error + 0.005 * limit.max()).all()


def test_einsum_heads_tables_and_convolutions_of_raw_parameters():
    class Raw(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.table, self.heads = parameter(11, w), parameter(w, 2, w // 2)
            self.kernel, self.out = parameter(w, w, 3), parameter(w, 1)
            self.scale = nn.Parameter(torch.ones(w))

        def forward(self, i):
            h = F.embedding(i, self.table)
            h = torch.einsum("btc,chd->bthd", torch.tanh(h), self.heads).flatten(-2) * self.scale
            return F.conv1d(torch.relu(h).mT, self.kernel).mean(-1).tanh() @ self.out

    i = torch.randint(11, (4, 6), generator=torch.Generator().manual_seed(1))
    copy = ntkit.ntk_parametrize(Raw(128).double(), W, B, seed=0, example=i)
    factors = {name: float(p[0].factor) for name, p in copy.parametrizations.items()}
    want = {"table": W, "heads": W / 128**0.5, "kernel": W / 384**0.5, "out": W / 128**0.5}
    assert factors == pytest.approx(want)
    one, two = (ntkit.monte_carlo(Raw(w).double(), 24, i, sigma_w=W) for w in (64, 256))
    error = (one.ntk_error**2 + two.ntk_error**2).sqrt()
    assert ((one.ntk - two.ntk).abs() <= 4.5 * error + 0.05 * two.ntk.max()).all()


def test_a_graph_convolution_of_its_own_kind():
    """A shared weight behind an adjacency matrix, the bias behind the sum over neighbors."""

    class Convolution(nn.Module):
        def __init__(self, a, b):
            super().__init__()
            self.lin, self.bias = Dense(a, b, "linear"), nn.Parameter(torch.zeros(b))
            self.lin.shift = None

        def forward(self, x, adjacency):
            return adjacency @ F.linear(x, self.lin.kernel) + self.bias

    class Graph(nn.Module):
        def __init__(self, w):
            super().__init__()
            self.a, self.b, self.o = Convolution(3, w), Convolution(w, w), nn.Linear(w, 1)

        def forward(self, x, adjacency):
            return self.o(torch.relu(self.b(torch.relu(self.a(x, adjacency)), adjacency)).mean(1))

    draw = torch.Generator().manual_seed(2)
    x, a = torch.randn(3, 5, 3, dtype=D, generator=draw), torch.rand(3, 5, 5, dtype=D, generator=draw) / 2
    limit = ntkit.infinite_width(Graph(8).double(), (x[:1], a[:1]), W, B)
    assert limit.layers  # bias behind the sum: sigma_b^2 at each node, once
    for width in (64, 256):
        drawn = ntkit.monte_carlo(Graph(width).double(), 24, (x, a), sigma_w=W, sigma_b=B)
        assert (
            (drawn.ntk - limit.ntk((x, a))).abs() <= 4.5 * drawn.ntk_error + 2 / width * drawn.ntk.max()
        ).all()


def test_one_weight_with_two_factors_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = parameter(4, 8)

        def forward(self, i):
            return torch.tanh(F.embedding(i, self.table)).mean(1) @ self.table.T

    i = torch.randint(4, (3, 5))
    with pytest.raises(ntkit.NtkitError, match="one factor cannot serve both"):
        ntkit.ntk_parametrize(Twice(), seed=0, example=i)


class Read(nn.Module):
    """Words with attention, a norm, and a read-out."""

    def __init__(self):
        super().__init__()
        self.words, self.norm, self.out = nn.Embedding(6, 32), nn.LayerNorm(32), nn.Linear(32, 1)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, words):
        h = self.words(words)
        return self.out(self.norm(h + self.attention(h, h, h)[0]).mean(1))


def dense():
    return nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))


def pictures():
    layers = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), nn.GELU(), nn.Conv2d(8, 8, 3, groups=8)
    return nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


FROZEN = {
    "dense": (dense, lambda: torch.randn(3, 3).double()),
    "pictures": (pictures, lambda: torch.randn(2, 2, 5, 5).double()),
    "words": (Read, lambda: torch.randint(6, (3, 4))),
}


@pytest.mark.parametrize("parameterization", [pytest.param("ntk", marks=pytest.mark.slow), "standard"])
@pytest.mark.parametrize("name", FROZEN)
def test_frozen_weights_add_nothing(name, parameterization):
    """The NTK is the sum of those with one weight trained, all others frozen; the NNGP has all of them."""
    torch.manual_seed(0)
    make, data = FROZEN[name]
    model, x = make().double().eval(), data()

    def limit():
        return ntkit.infinite_width(model, x, parameterization=parameterization, samples=64, sigma_b=0.5)

    whole = limit()
    parts = []
    for one in model.parameters():
        model.requires_grad_(False)
        one.requires_grad_(True)
        part = limit()
        assert torch.allclose(part.nngp(x), whole.nngp(x), rtol=1e-12)
        parts.append(part.ntk(x))
    assert torch.allclose(sum(parts), whole.ntk(x), rtol=1e-10, atol=1e-12)
    model.requires_grad_(False)  # to infer: the limit of the network as if it were trained
    assert torch.equal(limit().ntk(x), whole.ntk(x))


@pytest.mark.parametrize("kept", ["0", "2", "4"])
def test_frozen_weights_against_wide_draws(kept):
    torch.manual_seed(0)
    model, x = dense().double(), torch.randn(3, 3).double()
    for layer in (model[0], model[2]):
        layer.weight = nn.Parameter(torch.randn(1024, 3 if layer is model[0] else 1024).double())
        layer.bias = nn.Parameter(torch.randn(1024).double())
    model[4].weight = nn.Parameter(torch.randn(1, 1024).double())
    model.requires_grad_(False)
    model.get_submodule(kept).requires_grad_(True)
    drawn = ntkit.monte_carlo(model, 8, x, sigma_b=0.5)
    off = (drawn.ntk - ntkit.infinite_width(model, x, sigma_b=0.5).ntk(x)).abs()
    assert bool((off <= 4 * drawn.ntk_error + 8 / 1024 * drawn.ntk.abs().max()).all())
