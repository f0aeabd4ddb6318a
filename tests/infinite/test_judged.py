"""Functions are judged: no second moment is refused, kinks that nobody named are found, errors are told."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from torch import nn

import ntkit

D = torch.float64


class Fn(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def limit(f):
    model = nn.Sequential(nn.Linear(3, 8), Fn(f), nn.Linear(8, 1)).to(D)
    return ntkit.infinite_width(model, torch.eye(3, dtype=D)[:1], 1.0, 0.0)


X = torch.eye(3, dtype=D) * 3**0.5  # of unit variance

UNCONTROLLED = {
    "exp of a square": lambda x: torch.exp(0.3 * x.square()),
    "exp of a cube": lambda x: torch.exp(x**3),
    "tan": torch.tan,
    "a reciprocal": lambda x: 1 / x,
    "a shifted pole": lambda x: 1 / (x - 0.7),
    "a pole of its square": lambda x: x.abs() ** -0.6,
    "a logarithm": torch.log,
    "a root": lambda x: torch.sqrt(x),
    "sinh of a square": lambda x: torch.sinh(x * x),
}


@pytest.mark.parametrize("name", UNCONTROLLED)
def test_functions_without_a_second_moment_are_refused(name):
    with pytest.raises(ntkit.NoRuleError, match=r"no second moment.*Def\. 2\.1"):
        limit(UNCONTROLLED[name]).nngp(X)
    with pytest.raises(ntkit.NtkitError, match=r"[Nn]o second moment|function of one variable"):
        ntkit.dual(UNCONTROLLED[name])(0.5, 1.0, 1.0)


def smooth_slope(x):
    return math.exp(-x) * (3 * math.cos(3 * x) - math.sin(3 * x))


# functions with their derivative, and where they are not smooth
KINKED = {
    "shifted ReLU": (lambda x: torch.relu(x - 1), lambda x: float(x > 1), [1]),
    "a step times x": (lambda x: (x > 0.5) * x, lambda x: float(x > 0.5), [0.5]),
    "a spike": (
        lambda x: (x.abs() + 1e-2).sqrt(),
        lambda x: math.copysign(0.5, x) / (abs(x) + 1e-2) ** 0.5,
        [0],
    ),
    "a triangle": (
        lambda x: torch.relu(1 - (x - 0.3).abs()),
        lambda x: (0.3 > x) * 2.0 - 1 if abs(x - 0.3) < 1 else 0.0,
        [-0.7, 0.3, 1.3],
    ),
    "a ramp": (
        lambda x: torch.clamp(x, -0.4, 0.9) ** 2,
        lambda x: 2 * x if -0.4 < x < 0.9 else 0.0,
        [-0.4, 0.9],
    ),
    "the larger of two": (
        lambda x: torch.maximum(x, x.square() - 1),
        lambda x: 1.0 if x > x * x - 1 else 2 * x,
        [-0.6180339887498949, 1.618033988749895],
    ),
    "a floor": (lambda x: torch.floor(2 * x) / 2, lambda x: 0.0, [k / 2 for k in range(-12, 13)]),
    "smooth": (lambda x: torch.sin(3 * x) * torch.exp(-x), smooth_slope, []),
}


def moment(f, kinks):
    """Return E f(u)^2 for a standard normal u, piece by piece."""
    ends = [-12.0, *kinks, 12.0]
    integrand = lambda u: f(u) ** 2 * math.exp(-u * u / 2) / math.sqrt(2 * math.pi)  # noqa: E731
    near = [e + d for e in kinks for d in (-0.1, -1e-2, -1e-3, 1e-3, 1e-2, 0.1)]
    ends = sorted({*ends, *near, *range(-12, 13)})
    return sum(quad(integrand, a, b, epsabs=1e-14, epsrel=1e-13)[0] for a, b in pairwise(ends))


@pytest.mark.parametrize("name", KINKED)
def test_kinks_that_nobody_named(name):
    f, slope, kinks = KINKED[name]
    found = limit(f)
    value = moment(lambda u: float(f(torch.tensor([u], dtype=D))), kinks)
    tangent = value + moment(slope, kinks)
    assert float(found.nngp(X)[0, 0]) == pytest.approx(value, rel=max(1e-9, 2 * found.error))
    assert float(found.ntk(X)[0, 0]) == pytest.approx(tangent, rel=max(1e-9, 2 * found.error))
    assert found.error < (1e-2 if name == "a floor" else 1e-8)  # more jumps than are looked for: told


@pytest.mark.parametrize("name", ["shifted ReLU", "a triangle", "a ramp", "the larger of two"])
def test_duals_of_functions_with_kinks(name):
    f, slope, kinks = KINKED[name]
    value, slopes = ntkit.dual(f)(1.0, 1.0, 1.0)
    assert value.item() == pytest.approx(
        moment(lambda u: float(f(torch.tensor([u], dtype=D))), kinks), rel=1e-9
    )
    assert slopes.item() == pytest.approx(moment(slope, kinks), rel=1e-9)
