"""Vectors without variance: no bias, rows of zeros, fresh norms; against wide networks and closed values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from table_of_variances import FUNCTIONS
from torch import nn

import ntkit

D = torch.float64


class Fn(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f = f

    def forward(self, x):
        return self.f(x)


def with_zero_bias(f, width):
    """A network whose biases start at zero: of a row of zeros, nothing varies, and the biases are trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, width), Fn(f), nn.Linear(width, 1)).double()
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(layer.bias)
    return model


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_of_zeros_against_a_wide_network(name):
    f = FUNCTIONS[name]
    x = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(1))
    x[1] = x[3] = 0
    model = with_zero_bias(f, 2**14)
    wide = ntkit.EmpiricalNTK(model)(x) / 2**14
    limit = ntkit.infinite_width(model, x[:1], parameterization="standard").ntk(x) / 2**14
    assert limit.isfinite().all()
    torch.testing.assert_close(limit, wide, rtol=0, atol=0.06 * float(wide.abs().max()) + 1e-12)
    zero, u = torch.zeros(1, dtype=D), torch.zeros(1, dtype=D, requires_grad=True)
    y = f(u)
    slope = float(torch.autograd.grad(y.sum(), u)[0]) if y.requires_grad else 0.0
    through = slope**2 * float(model[2].weight.detach().square().sum())  # to the hidden biases
    exact = float(f(zero)) ** 2 + (1 + through) / 2**14  # read-out weights and bias
    assert limit[1, 3].item() == pytest.approx(exact, rel=1e-9, abs=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rows_of_zeros_without_bias(name):
    """E[phi(0) phi(v)] is phi(0) E[phi(v)], whatever the other sample."""
    f, dual = FUNCTIONS[name], ntkit.dual(FUNCTIONS[name])
    x = torch.randn(4, 3, dtype=D, generator=torch.Generator().manual_seed(1))
    x[1] = x[3] = 0
    model = nn.Sequential(nn.Linear(3, 8), Fn(f), nn.Linear(8, 8), Fn(f), nn.Linear(8, 1)).double()
    limit = ntkit.infinite_width(model, x[:1], sigma_w=1.0)
    k = x @ x.T / 3
    for _ in range(2):
        v = k.diagonal()
        k = dual(k.clamp(-(v[:, None] * v).sqrt(), (v[:, None] * v).sqrt()), v[:, None], v)[0]
    series = 2e-6 if name == "kink by hand" else 1e-10  # which ends at another degree
    torch.testing.assert_close(limit.nngp(x), k, rtol=1e-7, atol=series)
    assert limit.ntk(x).isfinite().all()


def residual(width, kind):
    """Blocks without bias behind pictures with empty corners."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.s = nn.Conv2d(1, width, 3, padding=1, bias=False)
            self.a = nn.Conv2d(width, width, 3, padding=1, bias=False)
            self.n = nn.GroupNorm(1, width) if kind == "norm" else nn.Identity()
            self.o = nn.Linear(4 * width, 1, bias=False)

        def forward(self, x):
            h = F.avg_pool2d(self.s(x).relu(), 2) if kind != "plain" else F.avg_pool2d(self.s(x), 2)
            h = self.a(self.n(h)) + h
            return self.o((h.relu() if kind != "smooth" else F.gelu(h)).flatten(1))

    return Net().double()


@pytest.mark.parametrize("kind", ["plain", "pooled", "smooth", "norm"])
def test_residual_blocks_without_bias(kind):
    x = torch.randn(3, 1, 4, 4, dtype=D, generator=torch.Generator().manual_seed(2))
    x[1, :, :2] = 0
    x[2] = 0
    limit = ntkit.infinite_width(residual(8, kind), x[:1], samples=2**12).ntk(x)
    assert limit.isfinite().all()
    distances = []
    for width in (32, 128):
        drawn = ntkit.monte_carlo(residual(width, kind), 60, x)
        distances.append((drawn.ntk - limit).abs().max() / limit.abs().max())
        error = drawn.ntk_error.max() / limit.abs().max()
    assert distances[1] < 4 * error + 0.02, distances
    if kind != "norm":
        assert (limit[2].abs() <= 1e-12 * limit.abs().max()).all()  # nothing in, nothing out


def test_small_variances_do_not_underflow():
    """Without bias a ReLU network is homogeneous, so its kernels scale with the square of its input."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(3))
    for dtype, scale in ((torch.float32, 2.0**-40), (D, 2.0**-350)):
        limit = ntkit.infinite_width(model.to(dtype), x[:1].to(dtype))
        one, small = limit.ntk(x.to(dtype)), limit.ntk(x.to(dtype) * scale) / scale / scale
        torch.testing.assert_close(small, one, rtol=1e-5, atol=0)


class ZeroBranch(nn.Module):
    """A residual block whose last matrix starts at zero, or a chain with such a matrix."""

    def __init__(self, width, skip):
        super().__init__()
        self.a, self.b = nn.Linear(3, width), nn.Linear(width, width)
        self.o, self.skip = nn.Linear(width, 1), skip
        for layer in (self.a, self.o):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x):
        h = F.relu(self.a(x))
        return self.o(h + self.b(h)) if self.skip else self.o(torch.tanh(self.b(h)))


@pytest.mark.parametrize("skip", [True, False])
def test_a_matrix_that_starts_at_zero_is_trained(skip):
    """Theta of b(h) is fan_in E[h h'] + 1, though its weights let no gradient through."""
    torch.manual_seed(0)
    width, x = 2**11, torch.randn(4, 3, dtype=D)
    model = ZeroBranch(width, skip).double()
    limit = ntkit.infinite_width(model, x[:1], parameterization="standard")
    h = next(line for line in limit.layers.values() if line.kind == "Nonlin")
    trained = width * h.nngp(x) + 1
    spread = float(model.o.weight.detach().square().sum())  # fan_in times the variance
    if skip:
        trained, inner = trained + h.ntk(x), width * h.nngp(x)
    else:
        inner = torch.zeros(4, 4, dtype=D)  # tanh(0)
    torch.testing.assert_close(limit.ntk(x), inner + 1 + spread * trained, rtol=2e-3, atol=0)
    finite = ntkit.EmpiricalNTK(model)(x)
    torch.testing.assert_close(limit.ntk(x) / finite, torch.ones(4, 4, dtype=D), rtol=0, atol=0.12)
