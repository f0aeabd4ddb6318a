"""What compiled tiles compute otherwise than plain ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import ntkit
from ntkit.infinite.duals.correlation import fused_atan2


def test_the_arctangent_is_that_of_numpy_to_float32_in_every_quadrant():
    draw = torch.Generator().manual_seed(0)
    y, x = (
        torch.randn(20_000, generator=draw) * 10 ** (6 * torch.rand(20_000, generator=draw) - 3) for _ in "yx"
    )
    special = torch.tensor([0.0, 1.0, -1.0, 1e-30, 1e30])
    pairs = torch.cartesian_prod(special, special)
    y, x = torch.cat([y, pairs[:, 0]]), torch.cat([x, pairs[:, 1]])
    found, exact = fused_atan2(y, x), np.arctan2(y.double().numpy(), x.double().numpy())
    error = np.abs(found.double().numpy() - exact)
    assert (error <= 3e-7 * np.abs(exact) + 1e-37).all(), error.max()


def test_gradients_and_other_precisions():
    y, x = torch.randn(2, 500, generator=torch.Generator().manual_seed(1)).requires_grad_().unbind()
    made = torch.autograd.grad(fused_atan2(y, x).sum(), (y, x))
    exact = torch.autograd.grad(torch.atan2(y.double(), x.double()).sum(), (y, x))
    for a, b in zip(made, exact, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert fused_atan2(y.double(), x.double()) is NotImplemented
    table = {torch.ops.aten.atan2.default: fused_atan2}
    graph = make_fx(torch.atan2, decomposition_table=table)(y.double(), x.double())
    assert "atan2" in graph.code


@pytest.mark.slow
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.GELU])
def test_a_compiled_mlp_agrees_with_itself_in_float64(activation):
    layers = (nn.Linear(20, 30), activation(), nn.Linear(30, 30), activation(), nn.Linear(30, 1))
    x = torch.randn(600, 20, generator=torch.Generator().manual_seed(2))
    fast = ntkit.infinite_width(nn.Sequential(*layers), x[:1], compile=True).ntk(x)
    exact = ntkit.infinite_width(nn.Sequential(*layers).double(), x[:1].double(), compile=False).ntk(
        x.double()
    )
    assert (fast - exact).abs().max() <= 3e-6 * exact.abs().max()
