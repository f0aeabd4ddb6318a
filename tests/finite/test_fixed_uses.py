"""Weights whose use is the same for all samples: positions, tables of biases, learned keys and inputs."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn

import ntkit

D = torch.float64
T, W = 5, 4  # positions, features


class Positions(nn.Module):
    """Adds embeddings of the place and of one kind, by a buffer and by numbers made in forward."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.kinds = nn.Embedding(7, W), nn.Embedding(T, W), nn.Embedding(2, W)
        self.norm, self.out = nn.LayerNorm(W), nn.Linear(W, 3)
        self.register_buffer("ids", torch.arange(T)[None])

    def forward(self, x):
        h = self.words(x) + self.places(self.ids) + self.kinds(torch.zeros_like(self.ids))
        return self.out(torch.tanh(self.norm(h))).mean(1)


class Biases(nn.Module):
    """Attention with a bias looked up in a table by distance."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(W, 3 * W), nn.Linear(W, 2)
        self.table = nn.Parameter(torch.randn(2 * T - 1, 2))
        place = torch.arange(T)
        self.register_buffer("distance", place[:, None] - place + T - 1)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, W // 2)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT + self.table[self.distance].permute(2, 0, 1)
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).flatten(2)).mean(1)


class Coordinates(nn.Module):
    """A network of a grid of coordinates makes the biases."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = nn.Linear(2, 6), nn.Linear(6, T * W), nn.Linear(T * W, 2)
        self.register_buffer("grid", torch.randn(1, 2))

    def forward(self, x):
        bias = torch.sigmoid(self.second(torch.relu(self.first(self.grid))))
        return self.out(torch.tanh(x.flatten(1) + bias))


class Prefix(nn.Module):
    """Keys and values before the others, as a network of an embedding."""

    def __init__(self):
        super().__init__()
        self.prefix, self.deep = nn.Embedding(2, 3), nn.Sequential(nn.Linear(3, W), nn.Tanh())
        self.qkv, self.out = nn.Linear(W, 3 * W), nn.Linear(W, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        first = self.deep(self.prefix(torch.arange(2))).expand(len(x), -1, -1)
        k, v = torch.cat([first, k], 1), torch.cat([first, v], 1)
        return self.out(nn.functional.scaled_dot_product_attention(q, k, v)).mean(1)


class Sinusoids(nn.Module):
    """Projects constant vectors of the distance, and multiplies queries with them, head by head."""

    def __init__(self):
        super().__init__()
        self.q, self.out = nn.Linear(W, 2 * W), nn.Linear(2 * T, 2)
        self.r = nn.Parameter(torch.randn(W, 2, W))

    def forward(self, x):
        waves = torch.arange(T * W, dtype=x.dtype).reshape(T, W).sin()
        keys = torch.einsum("td,dhe->the", waves, self.r)
        scores = torch.einsum("nthe,she->ntsh", self.q(x).unflatten(2, (2, W)), keys)
        return self.out(torch.tanh(scores).sum(1).flatten(1))


def words():
    return torch.randint(0, 7, (4, T), generator=torch.Generator().manual_seed(1))


def vectors():
    return torch.randn(4, T, W, dtype=D, generator=torch.Generator().manual_seed(1))


def made(kind):
    torch.manual_seed(0)
    return kind().double()


@pytest.mark.parametrize("kind", [Positions, Biases, Coordinates, Prefix, Sinusoids])
def test_they_keep_their_structure(kind):
    model, x = made(kind), words() if kind is Positions else vectors()
    k = ntkit.EmpiricalNTK(model)
    assert_kernel(k(x), mean_kernel(model, x))
    ways = {row.parameter: row.way for row in k.explain(x).rows}
    assert set(ways.values()) == {"structure"}, ways


class Low(nn.Module):
    """A matrix of low rank, made before the data is there."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(W, 1)), nn.Parameter(torch.randn(1, W))

    def forward(self, x):
        return nn.functional.linear(x, self.a @ self.b).flatten(1)


class Filters(nn.Module):
    """Filters chosen from a table, each of them twice."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(3, T, 2))
        self.register_buffer("which", torch.tensor([0, 2, 0, 1, 2, 1]))

    def forward(self, x):
        return nn.functional.conv1d(x, self.table[self.which]).tanh().flatten(1)


class Basis(nn.Module):
    """A matrix as a product with a fixed basis."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 2))
        self.register_buffer("basis", torch.randn(2, W))

    def forward(self, x):
        return (x @ (self.w @ self.basis).t()).square().flatten(1)


@pytest.mark.parametrize("kind", [Low, Filters, Basis])
def test_what_becomes_a_weight_is_made_once_for_all_samples(kind):
    model, x = made(kind), vectors()
    k = ntkit.EmpiricalNTK(model)
    assert_kernel(k(x), mean_kernel(model, x))
    assert {row.way for row in k.explain(x).rows} == {"formed"}


class Learned(nn.Module):
    """A linear map of a learned input; ``by`` makes its matrix, if it depends on the data."""

    def __init__(self, shape, by=None):
        super().__init__()
        self.start = nn.Parameter(torch.randn(*shape, W))
        self.map, self.by = nn.Linear(W, 3), by

    def forward(self, x):
        matrix = self.map.weight if self.by is None else self.map.weight * self.by(x)
        return nn.functional.linear(self.start, matrix, self.map.bias).sum(0).tanh() * x.mean((1, 2))[:, None]


@pytest.mark.parametrize(
    "model",
    [
        lambda: Learned((2,)),
        lambda: Learned((2,), lambda x: x.sum()),
        lambda: Learned((3,), lambda x: x[0, :1].exp()),
    ],
)
def test_a_linear_map_of_a_learned_input(model):
    model, x = made(model), vectors()
    k = ntkit.EmpiricalNTK(Alone(model))
    assert_kernel(k(x), mean_kernel(model, x))
    assert {row.way for row in k.explain(x).rows} == {"structure"}


class Alone(nn.Module):
    """Runs a module on one sample after the other."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return torch.cat([self.module(one) for one in x.split(1)])
