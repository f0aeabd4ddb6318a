"""Networks of a thousand layers: within the interpreter's usual depth, time and memory linear in theirs."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import ntkit

DEPTH, WIDTH = 1000, 4
relu = ntkit.dual("relu")


class Block(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a = nn.Linear(WIDTH, WIDTH)
        self.n = nn.LayerNorm(WIDTH, eps=0.0, elementwise_affine=False) if kind == "normed" else nn.Identity()
        self.kind = kind

    def forward(self, x):
        if self.kind == "layer":
            return self.a(torch.relu(x))
        return x + 0.1 * (torch.relu(self.a(x)) if self.kind == "post" else self.a(torch.relu(self.n(x))))


def network(kind, depth=DEPTH):
    blocks = (Block(kind) for _ in range(depth))
    return nn.Sequential(nn.Linear(3, WIDTH), *blocks, nn.Linear(WIDTH, 1)).double()


def by_recursion(kind, x, depth, w=2**0.5, b=0.1):
    """The kernels layer by layer: of a ReLU MLP, and of residual blocks whose branches are independent."""
    k = w * w * x @ x.T / 3 + b * b
    t = k.clone()
    m = torch.zeros_like(k[0])  # the mean of the stream
    for _ in range(depth):
        v = k.diagonal()
        if kind == "layer":
            h, slope = relu(k, v[:, None], v)
            k = w * w * h + b * b
            t = k + w * w * slope * t
        elif kind == "normed":
            r = k / (v[:, None] * v).sqrt()
            h, slope = relu(r.clamp(-1, 1), torch.ones_like(k), torch.ones_like(k))
            g, s = w * w * h + b * b, w * w * slope / (v[:, None] * v).sqrt()
            k, t = k + 0.01 * g, t + 0.01 * (g + s * t)
        else:
            g = w * w * k + b * b
            gv = g.diagonal()
            h, slope = relu(g, gv[:, None], gv)
            mean = (gv / (2 * torch.pi)).sqrt()
            cross = 0.1 * (m[:, None] * mean + mean[:, None] * m)
            t = t + 0.01 * slope * (g + w * w * t)
            k, m = k + cross + 0.01 * h, m + 0.1 * mean
    k = w * w * k + b * b
    return k, k + w * w * t


@contextmanager
def shallow(room=400):
    """Leave the interpreter a few hundred calls more than are open now."""
    depth, frame = 0, sys._getframe()
    while frame is not None:
        depth, frame = depth + 1, frame.f_back
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + room)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


DEEP = [pytest.param(kind, DEPTH, marks=pytest.mark.slow) for kind in ("layer", "normed", "post")]


@pytest.mark.parametrize(("kind", "depth"), [("layer", 500), *DEEP])
def test_a_thousand_layers(kind, depth):
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    limit = ntkit.infinite_width(network(kind, depth), x[:1], sigma_b=0.1)
    with shallow():
        found = limit.nngp(x), limit.ntk(x)
        diagonal = limit.ntk.diag(x)
    for a, b in zip(found, by_recursion(kind, x, depth), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0)
    torch.testing.assert_close(diagonal, found[1].diagonal(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", ["layer", "normed", "post"])
def test_the_memory_of_a_pair_does_not_grow_with_the_depth(kind):
    x = torch.randn(1, 3, dtype=torch.float64)
    orders = [
        ntkit.infinite_width(network(kind, depth), x, sigma_b=0.1).tiles(None).order(x, True)
        for depth in (20, 80)
    ]
    assert orders[1].held <= 1.5 * orders[0].held
    assert len(orders[1].steps) <= 4.2 * len(orders[0].steps)


@pytest.mark.slow
def test_vectors_are_cut_and_stopped_however_deep_they_are():
    """Rewriting goes through a thousand sums at once."""

    class Cut(nn.Module):
        def __init__(self, stop):
            super().__init__()
            self.body = nn.ModuleList(nn.Linear(3, WIDTH, bias=False) for _ in range(DEPTH))
            self.out, self.stop = nn.Linear(WIDTH // 2, 1, bias=False), stop

        def forward(self, x):
            h = torch.zeros(len(x), WIDTH, dtype=x.dtype)
            for i, layer in enumerate(self.body):
                h = h + torch.erf(layer(x)) if i % 2 else h + torch.relu(layer(x))
            h = h.detach() if self.stop else h
            return self.out(h[:, : WIDTH // 2])

    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with shallow(600):
        limit = ntkit.infinite_width(Cut(True).double(), x[:1], sigma_w=1.0)
        torch.testing.assert_close(limit.ntk(x), limit.nngp(x))
    k = x @ x.T / 3
    v = k.diagonal()
    mean = (v / (2 * torch.pi)).sqrt()
    one, two = relu(k, v[:, None], v)[0], ntkit.dual("erf")(k, v[:, None], v)[0]
    half = DEPTH // 2
    expected = half * (one + two) + half * (half - 1) * mean[:, None] * mean
    torch.testing.assert_close(limit.nngp(x), expected, rtol=1e-9, atol=0)
