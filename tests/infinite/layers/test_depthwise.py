"""Depthwise convolutions: their kernels as sums over the window, and functions of them, pass by pass."""

import itertools

import pytest
import torch
from torch import nn

import ntkit
from ntkit.infinite.moments import jacobians, sampling
from ntkit.infinite.moments.jacobians import Pattern, pattern

D = torch.float64
WIDTH = 8
SETTINGS = [
    dict(kernel_size=3, padding=1),
    dict(kernel_size=3, stride=2, padding=1, bias=False),
    dict(kernel_size=(2, 3), dilation=2, padding=(1, 2)),
]


def network(setting, *behind):
    conv = nn.Conv2d(WIDTH, WIDTH, groups=WIDTH, **setting)
    ends = (nn.Conv2d(WIDTH, WIDTH, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTH, 1))
    return nn.Sequential(nn.Conv2d(2, WIDTH, 1), nn.ReLU(), conv, *behind, *ends).double().eval()


def pictures(side):
    return torch.randn(2, 2, side, side, generator=torch.Generator().manual_seed(0), dtype=D)


def summed(kernel, conv):
    """Return the sum over the window of a kernel between all pairs of pixels, one pair after the other."""
    n, m, rows, columns = kernel.shape[:4]
    sizes = [
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, p, d, k, s in zip(
            (rows, columns), conv.padding, conv.dilation, conv.kernel_size, conv.stride, strict=True
        )
    ]
    out = torch.zeros(n, m, *sizes, *sizes, dtype=D)
    for p in itertools.product(*map(range, sizes)):
        for q in itertools.product(*map(range, sizes)):
            for j in itertools.product(*map(range, conv.kernel_size)):
                a, b = (
                    [
                        i * s + o * d - pad
                        for i, s, o, d, pad in zip(
                            place, conv.stride, j, conv.dilation, conv.padding, strict=True
                        )
                    ]
                    for place in (p, q)
                )
                if all(
                    0 <= i < size for place in (a, b) for i, size in zip(place, (rows, columns), strict=True)
                ):
                    out[:, :, p[0], p[1], q[0], q[1]] += kernel[:, :, a[0], a[1], b[0], b[1]]
    return out


@pytest.mark.parametrize("setting", SETTINGS)
def test_kernels_are_sums_over_the_window(setting):
    model, x = network(setting), pictures(4)
    limit = ntkit.infinite_width(model, x, sigma_w=1.3, sigma_b=0.4)
    read = {kind: lambda line, k=kind: limit.kernel(k, line, positions=True)(x) for kind in ("nngp", "ntk")}
    k, theta = (read[kind]("h1") for kind in ("nngp", "ntk"))
    conv = model[2]
    share = 1.3**2 / conv.weight[0].numel()
    bias = 0.4**2 * (conv.bias is not None)
    torch.testing.assert_close(read["nngp"]("h2"), share * summed(k, conv) + bias, rtol=1e-12, atol=1e-12)
    truth = share * summed(k + theta, conv) + bias
    torch.testing.assert_close(read["ntk"]("h2"), truth, rtol=1e-12, atol=1e-12)
    assert limit.error == 0


FUNCTIONS = [
    (SETTINGS[0], (nn.ReLU6(),)),
    (dict(kernel_size=(1, 2)), (nn.BatchNorm2d(WIDTH), nn.GELU(), nn.AvgPool2d((1, 2), 1), nn.ELU())),
]


@pytest.mark.parametrize(("setting", "behind"), FUNCTIONS)
def test_rows_that_share_nothing_are_derived_together(setting, behind, monkeypatch):
    model, x = network(setting, *behind), pictures(4)

    def theta():
        limit = ntkit.infinite_width(model, x, samples=64, compile=False)
        return limit.ntk(x)

    fast = theta()
    groups = []

    def row_by_row(u):
        groups.append(len(pattern(u).groups) < len(pattern(u).sees[u.basis[0]]))
        count = int(torch.Size(u.shape).numel())
        sees = {b: torch.ones(count, int(torch.Size(b.shape).numel())) > 0 for b in u.basis}
        return Pattern(sees, tuple(torch.arange(count).split(1)), {})

    monkeypatch.setattr(sampling, "pattern", row_by_row)
    monkeypatch.setattr(jacobians, "pattern", row_by_row)
    torch.testing.assert_close(theta(), fast, rtol=1e-12, atol=1e-12)
    assert any(groups)
