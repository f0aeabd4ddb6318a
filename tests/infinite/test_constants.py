"""Constants and index buffers of any batch size: the kernel of a batch is that of its samples one by one."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit

D, T = torch.float64, 5
NETWORKS = {}


def network(build):
    NETWORKS[build.__name__] = build
    return build


class Net(nn.Module):
    def __init__(self, of, tokens=False, **parts):
        super().__init__()
        self.of, self.tokens = of, tokens
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x):
        return self.of(self, x)


def mean(s, h):
    return s.o(torch.relu(s.a(h)).mean(1))


def parts(w, **more):
    return {"e": nn.Embedding(9, w), "a": nn.Linear(w, w), "o": nn.Linear(w, 1), **more}


@network
def indices_in_a_buffer(w):
    tables = parts(w, p=nn.Embedding(T, w), pos=torch.arange(T)[None])
    return Net(lambda s, x: mean(s, s.e(x) + s.p(s.pos)), True, **tables)


@network
def indices_without_a_batch(w):
    tables = parts(w, p=nn.Embedding(T, w), pos=torch.arange(T))
    return Net(lambda s, x: mean(s, s.e(x) + s.p(s.pos)), True, **tables)


@network
def indices_that_are_expanded(w):
    tables = parts(w, p=nn.Embedding(T, w), pos=torch.arange(T)[None])
    return Net(lambda s, x: mean(s, s.e(x) + s.p(s.pos.expand(x.shape[0], -1))), True, **tables)


@network
def indices_made_in_place(w):
    tables = parts(w, p=nn.Embedding(T, w))
    return Net(lambda s, x: mean(s, s.e(x) + s.p(torch.arange(x.shape[1]))), True, **tables)


@network
def a_table_of_positions(w):
    return Net(lambda s, x: mean(s, s.e(x) + s.t), True, **parts(w, t=nn.Parameter(torch.randn(1, T, w))))


@network
def a_mask_in_a_buffer(w):
    def of(s, x):
        h = s.e(x)
        scores = s.q(h) @ s.k(h).mT / w
        return mean(s, scores.masked_fill(s.mask, float("-inf")).softmax(-1) @ h)

    mask = torch.ones(T, T, dtype=torch.bool).triu(1)
    return Net(of, True, **parts(w, q=nn.Linear(w, w), k=nn.Linear(w, w), mask=mask))


@network
def a_matrix_over_positions(w):
    return Net(lambda s, x: mean(s, s.m @ s.e(x)), True, **parts(w, m=torch.rand(T, T, dtype=D)))


@network
def fixed_queries(w):
    """A constant batch of one goes through the same layer as the data."""
    return Net(lambda s, x: s.o(torch.relu(s.f(x)) + torch.tanh(s.f(s.q))).mean(1), **fixed(w, 1))


@network
def fixed_queries_that_are_expanded(w):
    return Net(lambda s, x: s.o(torch.relu(s.f(x) + s.g(s.q.expand(len(x), -1, -1)))).mean(1), **fixed(w, 1))


@network
def a_picture_of_coordinates(w):
    def of(s, x):
        h = F.relu(s.c(x.mT[..., None].expand(-1, -1, -1, 3)) + s.d(s.xy))
        return s.o(h.mean((2, 3)))

    convolutions = {"c": nn.Conv2d(3, w, 3), "d": nn.Conv2d(2, w, 3), "o": nn.Linear(w, 1)}
    return Net(of, xy=torch.rand(1, 2, T, 3, dtype=D), **convolutions)


def fixed(w, n):
    layers = {"f": nn.Linear(3, w), "g": nn.Linear(3, w), "o": nn.Linear(w, 1)}
    return {"q": torch.rand(n, T, 3, dtype=D), **layers}


def drawn(model, n=3):
    draw = torch.Generator().manual_seed(0)
    if model.tokens:
        return torch.randint(0, 9, (n, T), generator=draw)
    return torch.randn(n, T, 3, dtype=D, generator=draw)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_batch_is_its_samples(name):
    torch.manual_seed(0)
    model = NETWORKS[name](16).double()
    x = drawn(model)
    limit = ntkit.infinite_width(model, x[:1], sigma_b=0.3)
    for kernel in (limit.nngp, limit.ntk):
        whole = kernel(x)
        single = torch.stack([torch.cat([kernel(a[None], b[None])[0] for b in x]) for a in x])
        torch.testing.assert_close(whole, single, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(kernel.diag(x), whole.diagonal(), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(kernel(x[:1], x[1:]), whole[:1, 1:], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_against_wide_networks(name):
    torch.manual_seed(0)
    builder = NETWORKS[name]
    x = drawn(builder(4))
    torch.manual_seed(1)
    small = builder(16).double()
    limit = ntkit.infinite_width(small, x[:1], sigma_b=0.3).ntk(x)
    for width in (64, 256):
        torch.manual_seed(1)
        model = builder(width).double()
        for key, buffer in small.named_buffers():
            getattr(model, key).copy_(buffer)
        estimate = ntkit.monte_carlo(model, 16, x, sigma_b=0.3)
        bias = (8 if "mask" in name else 3) / width * limit.abs().max()
        assert ((estimate.ntk - limit).abs() <= 4.5 * estimate.ntk_error + bias).all(), width
