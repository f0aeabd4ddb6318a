"""Any function of a program's vectors, and the coordinates of a drawn network beside the limit."""

import numpy as np
import pytest
import torch
from torch import nn

import ntkit

D = torch.float64


def mlp(width=64):
    layers = (nn.Linear(3, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    return nn.Sequential(*layers).double()


def points(n=3, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=D)


def test_products_are_the_kernels_of_the_lines():
    x = points(3, 3)
    limit = ntkit.infinite_width(mlp(), x, sigma_b=0.4, samples=2**14)
    for line in ("g1", "h1", "g2", "h2"):
        wanted = limit.kernel("nngp", line)(x)
        value, error = limit.expect(lambda h: h[:, :, None] * h[:, None, :], x, [line])
        assert ((value - wanted).abs() <= 5 * error + 1e-12).all() and error.max() < 0.02 * wanted.max()


def test_several_lines_of_one_coordinate():
    # Stein: E[g tanh(g')] = E[g g'] E[tanh'(g')], at two samples
    x = points(2, 3)
    limit = ntkit.infinite_width(mlp(), x, sigma_b=0.4, samples=2**15)
    value, error = limit.expect(lambda g1, h1: g1[:, 0] * h1[:, 1], x)
    k = limit.kernel("nngp", "g1")(x).numpy()
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    slope = (weights / np.cosh(np.sqrt(k[1, 1]) * nodes) ** 2).sum() / np.sqrt(2 * np.pi)
    assert abs(float(value) - k[0, 1] * slope) < 5 * float(error) < 0.02


def test_layers_of_their_own_weights_are_independent():
    x = points(2, 3)
    limit = ntkit.infinite_width(mlp(), x, samples=2**14)
    value, error = limit.expect(lambda h1, g2: h1[:, 0] * g2[:, 1], x)
    assert abs(value) < 5 * error


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(2 * width, 1)

    def forward(self, x):
        g = self.a(x)
        h = g + torch.relu(self.b(torch.tanh(g)))
        return self.c(torch.cat([h, torch.sin(h)], 1))


def test_sums_of_vectors_and_of_functions_of_them():
    x = points(2, 3)
    net = Residual(32).double()
    limit = ntkit.infinite_width(net, x, samples=2**14)
    for line in ("h3", "h4", "h5"):
        wanted = limit.kernel("nngp", line)(x)
        value, error = limit.expect(lambda h: h[:, :, None] * h[:, None, :], x, [line])
        assert ((value - wanted).abs() <= 6 * error + 2e-3).all(), line


def test_positions_are_drawn_together():
    net = nn.Sequential(
        nn.Conv1d(2, 16, 3, padding=1), nn.GELU(), nn.Conv1d(16, 16, 3), nn.Flatten(), nn.Linear(48, 1)
    )
    x = points(2, 2, 5)
    limit = ntkit.infinite_width(net.double(), x, samples=2**14)
    wanted = limit.kernel("nngp", "g2", positions=True)(x)
    value, error = limit.expect(lambda g2: torch.einsum("snp,smq->snmpq", g2, g2), x)
    assert value.shape == wanted.shape == (2, 2, 3, 3)
    assert ((value - wanted).abs() <= 5 * error).all()


@pytest.mark.parametrize("parameterization", ["ntk", "standard"])
@pytest.mark.parametrize("line", ["g1", "h1", "g2", "h2"])
def test_coordinates_of_a_wide_network_have_the_moments_of_the_limit(line, parameterization):
    x = points(2, 60)
    width = 2000
    layers = (nn.Linear(60, width), nn.Tanh(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))
    torch.manual_seed(0)
    net = nn.Sequential(*layers).double()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    limit = ntkit.infinite_width(net, x, parameterization=parameterization)
    found = limit.coordinates(line, x, seed=1)
    assert found.values.shape == (2, width) and found.limit.shape == (2**13, 2)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    products = found.values[:, None] * found.values[None]
    wanted = limit.kernel("nngp", line)(x)
    assert ((products.mean(-1) - wanted).abs() < 5 * products.std(-1) / width**0.5).all()
    again, other = limit.coordinates(line, x, seed=1), limit.coordinates(line, x, seed=2)
    assert torch.equal(found.values, again.values) and not torch.equal(found.values, other.values)


def test_coordinates_at_positions_are_those_of_the_module():
    net = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 1)).double()
    x = points(3, 2, 3, 4)
    limit = ntkit.infinite_width(net, x)
    copy = ntkit.ntk_parametrize(net, seed=5)
    found = limit.coordinates("h1", x, seed=5)
    assert found.values.shape == (3, 3, 4, 6)
    torch.testing.assert_close(found.values, copy[:2](x).permute(0, 2, 3, 1).detach(), rtol=1e-12, atol=1e-12)


def test_a_picture():
    found = ntkit.infinite_width(mlp(), points(3, 3)).coordinates("g2", points(3, 3))
    left, right = found.plot((0, 2))
    assert left.get_xlabel() == "g2 at sample 0" and right.get_ylabel() == "at sample 2"
    assert "[3, 64]" in repr(found)
    with pytest.raises(ntkit.NtkitError, match="two numbers below 3"):
        found.plot((0, 3))


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 8) for _ in range(4))
        self.o = nn.Linear(8, 1)

    def forward(self, x):
        scores = self.q(x) @ self.k(x).mT / 8**0.5
        return self.o((scores.softmax(-1) @ self.v(x)).mean(1))


def test_refusals():
    limit = ntkit.infinite_width(mlp(), points(3, 3))
    with pytest.raises(ntkit.NtkitError, match=r"no line 'g11'.*Did you mean 'g1'"):
        limit.expect(lambda g11: g11, points(3, 3))
    with pytest.raises(ntkit.NtkitError, match=r"no coordinates in common: g1 has 64, g3 has 1"):
        limit.expect(lambda g1, g3: g1 * g3, points(3, 3))
    with pytest.raises(ntkit.NtkitError, match="a value for each point goes back"):
        limit.expect(lambda g1: g1.mean(), points(3, 3))
    attention = ntkit.infinite_width(Attending().double(), points(1, 3, 4), samples=64)
    last = list(attention.layers)[-2]
    with pytest.raises(ntkit.NoRuleError, match="share the scores"):
        attention.expect(lambda h: h, points(1, 3, 4), [last])
