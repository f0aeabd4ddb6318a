"""Comparison of networks beside plain formulas in float64, and where the answer is known."""

import copy

import numpy as np
import pytest
import torch
from small_runs import classes, mlp, recorded
from torch import nn

import ntkit
from ntkit.diagnose import compare


def plain(a, b):
    h = np.eye(len(a)) - 1 / len(a)
    a, b = h @ a @ h, h @ b @ h
    return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)


def test_it_is_the_plain_formula_layer_by_layer():
    x, _ = classes(24)
    a, b = (
        mlp(),
        nn.Sequential(*mlp(width=6, seed=1)[:2], nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double(),
    )
    found = compare(a, b, x)
    kernels = [ntkit.EmpiricalNTK(m)(x).numpy() for m in (a, b)]
    assert found.tangent.value == pytest.approx(plain(*kernels), rel=1e-8)
    h = [ntkit.ConjugateKernel(m)(x).numpy() for m in (a, b)]
    assert found.conjugate.value == pytest.approx(plain(*h), rel=1e-8)
    assert found.layers_a == ("0", "2") and found.layers_b == ("0", "2", "4")
    parts = [ntkit.EmpiricalNTK(m, params=f"{name}.*")(x).numpy() for m, name in ((a, "2"), (b, "0"))]
    assert found.tangent_layers[1, 0] == pytest.approx(plain(*parts), rel=1e-8)
    assert found.input_layers[0, 0] == pytest.approx(1, rel=1e-10)
    assert found.input_layers[1, 2] == pytest.approx(plain(*h), rel=1e-8)
    with_zero = [k - k.mean(0) - k.mean(1)[:, None] + k.mean() for k in kernels]
    for k in with_zero:
        np.fill_diagonal(k, 0)
    expected = [1 - np.corrcoef(*(k[i] for k in with_zero))[0, 1] for i in range(24)]
    assert np.allclose(found.differing, expected, atol=1e-9)
    assert found.top(1)[0][0] == int(np.argmax(expected))
    assert len(found.table()) == 6


def test_a_network_is_like_itself_and_one_that_was_turned():
    """Units in another order, or all weights of the linear layers turned: the same kernels."""
    x, _ = classes(30)
    a = mlp()
    b = copy.deepcopy(a)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        b[0].weight.copy_(a[0].weight[order])
        b[0].bias.copy_(a[0].bias[order])
        b[2].weight.copy_(a[2].weight[:, order])
    found = compare(a, b, x)
    assert found.tangent.value == pytest.approx(1) and found.differing.max() < 1e-9
    assert np.allclose(np.diag(found.input_layers), 1)


@pytest.mark.slow
def test_training_moves_it_and_the_sample_that_one_of_them_sees_otherwise_is_named(tmp_path):
    run = recorded(tmp_path / "run", mlp(), classes())
    moved = compare(run, run.network(0))
    assert moved.tangent.low < moved.tangent.value < 0.99 and moved.tangent.value > 0.2

    x = classes(30)[0]
    most = x[:, 0].max()

    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(torch.where(x[:, :1] >= most, -x, x))

    model = Strange()
    assert compare(model, model.net, x).top(1)[0][0] == int(x[:, 0].argmax())
