"""A function written by hand is the function it computes; a choice by data is linear."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ntkit

D = torch.float64


class Fn(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def limit(f, x):
    model = nn.Sequential(nn.Linear(3, 8), Fn(f), nn.Linear(8, 8), Fn(f), nn.Linear(8, 1)).to(D)
    return ntkit.infinite_width(model, x[:1], 1.0, 0.1)


# as people write them, and as torch has them
WRITTEN = {
    "bump": (lambda x: torch.exp(-x * x), lambda x: torch.exp(-x.square()), 1e-12),
    "GELU": (lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), F.gelu, 1e-9),
    "SiLU": (lambda x: x * torch.sigmoid(x), F.silu, 1e-12),
    "SiLU, twice the argument": (lambda x: (2 * x) * torch.sigmoid(2 * x), lambda x: F.silu(2 * x), 1e-9),
    "Mish": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), F.mish, 1e-9),
    "a difference of its own": (lambda x: torch.tanh(x) - torch.tanh(-x), lambda x: 2 * torch.tanh(x), 1e-12),
    "a cube": (lambda x: (-x) * x * (-x), lambda x: x**3, 1e-9),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_functions_written_by_hand(name):
    by_hand, named, rtol = WRITTEN[name]
    torch.manual_seed(0)
    x = torch.randn(5, 3, dtype=D)
    one, two = limit(by_hand, x), limit(named, x)
    for kind in ("nngp", "ntk"):
        a, b = getattr(one, kind)(x), getattr(two, kind)(x)
        assert (a - b).abs().max() <= rtol * b.abs().max()
    assert one.error == 0.0  # nothing was sampled


class Masked(nn.Module):
    def __init__(self, choose):
        super().__init__()
        self.l = nn.ModuleList([nn.Linear(3, 64), nn.Linear(64, 64), nn.Linear(64, 64)])
        self.o, self.choose = nn.Linear(64, 1), choose

    def forward(self, h, m):
        for layer in self.l:
            h = self.choose(torch.relu(layer(h)), m[..., None])
        return self.o(h.mean(1))


# by a product or a sum of products, and as people write it
CHOICES = {
    "masked_fill": (lambda h, m: h * m, lambda h, m: h.masked_fill(m == 0, 0.0)),
    "masked_fill by a number": (lambda h, m: h * m + 0.5 * (1 - m), lambda h, m: h.masked_fill(m == 0, 0.5)),
    "where": (lambda h, m: h * m, lambda h, m: torch.where(m > 0, h, 0.0)),
    "where, zeros": (lambda h, m: h * m, lambda h, m: torch.where(m > 0, h, torch.zeros((), dtype=D))),
    "where, the other way": (lambda h, m: 2.0 * (1 - m) + h * m, lambda h, m: torch.where(m == 0, 2.0, h)),
    "where of two vectors": (
        lambda h, m: h * m - 0.5 * h * (1 - m),
        lambda h, m: torch.where(m.bool(), h, -0.5 * h),
    ),
    "where, numbers of the sample": (
        lambda h, m: h * m + (1 - m) * (m - 3),
        lambda h, m: torch.where(m.bool(), h, m - 3),
    ),
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_choice_by_data_is_linear(name):
    product, written = CHOICES[name]
    torch.manual_seed(0)
    h = torch.randn(4, 5, 3, dtype=D)
    m = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [1, 0, 0, 0, 0], [1, 1, 0, 0, 0]], dtype=D)
    one, two = (
        ntkit.infinite_width(Masked(f).to(D), (h[:1], m[:1]), sigma_b=0.1) for f in (product, written)
    )
    for kind in ("nngp", "ntk"):
        a, b = getattr(one, kind)((h, m)), getattr(two, kind)((h, m))
        assert (a - b).abs().max() <= 1e-12 * a.abs().max()
        each = getattr(two, kind)((h[2:3], m[2:3]))
        assert (a[2, 2] - each[0, 0]).abs() <= 1e-12 * a.abs().max()  # whatever the sample that was read
    assert two.error == 0.0


def test_a_choice_by_the_vector_itself_is_its_function():
    torch.manual_seed(0)
    x = torch.randn(4, 3, dtype=D)
    relu = limit(torch.relu, x).ntk(x)
    for f in (
        lambda h: torch.where(h > 0, h, 0.0),
        lambda h: h.masked_fill(h <= 0, 0.0),
        lambda h: (h > 0) * h,
    ):
        found = limit(f, x)
        assert (found.ntk(x) - relu).abs().max() <= 2e-2 * relu.abs().max()
