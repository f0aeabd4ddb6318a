"""The limit in the module's own parameterization predicts the NTK of the network as PyTorch draws it."""

import pytest
import torch
from torch import nn
from torch.nn import Flatten, LayerNorm, Linear, ReLU, Sequential, Tanh
from wide_networks import CASES

import ntkit


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4))


def network(name, w):
    if name == "MLP":
        return Sequential(Linear(64, w), ReLU(), Linear(w, w), ReLU(), Linear(w, 16))
    if name == "LayerNorm":
        return Sequential(Linear(64, w), LayerNorm(w), Tanh(), Linear(w, w), ReLU(), Linear(w, 16))
    return Sequential(
        nn.Conv2d(8, w, 3, padding=1),
        ReLU(),
        nn.Conv2d(w, w, 3),
        ReLU(),
        nn.AvgPool2d(2),
        Flatten(),
        Linear(w, 16),
    )


def drawn(name, w, x, seeds):
    """Return the mean kernel of networks as PyTorch initializes them, and its standard error."""
    found = []
    for seed in range(seeds):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            found.append(ntkit.EmpiricalNTK(network(name, w))(x))
    blocks = torch.stack(found)
    return blocks.mean(0), blocks.std(0) / seeds**0.5


@pytest.mark.parametrize(
    ("name", "width", "shape", "seeds"),
    [
        ("MLP", 1024, (64,), 20),
        pytest.param("MLP", 256, (64,), 20, marks=pytest.mark.slow),
        ("LayerNorm", 256, (64,), 20),
        pytest.param("CNN", 128, (8, 4, 4), 20, marks=pytest.mark.slow),
    ],
)
def test_the_standard_limit_is_the_mean_of_initialized_networks(name, width, shape, seeds):
    x = normal(8, *shape)
    limit = ntkit.infinite_width(network(name, width), x[:1], parameterization="standard").ntk(x)
    mean, error = drawn(name, width, x, seeds)
    # one network of width 1024 is off by 8 % (a kernel's standard deviation), the mean of 20 by 2 %
    assert (limit - mean).norm() < (0.03 if width == 1024 else 0.06) * limit.norm()
    assert ((limit - mean).abs() < 4.5 * error).all()


def test_the_recursion_by_hand():
    # Theta = fan_in E[h h'] + 1 + fan_in Var(W) E[h' h'] Theta; Var(W) = Var(b) = 1 / (3 fan_in)
    x = normal(1, 64).double()
    w = 32
    model = Sequential(Linear(64, w), ReLU(), Linear(w, 1)).double()
    limit = ntkit.infinite_width(model, x, parameterization="standard")
    square = float(x.square().sum())
    variance = square / (3 * 64) + 1 / (3 * 64)
    nngp = variance / 2 / 3 + 1 / (3 * w)
    ntk = w * variance / 2 + 1 + 0.5 / 3 * (square + 1)
    torch.testing.assert_close(limit.nngp(x).item(), nngp, rtol=1e-12, atol=0)
    torch.testing.assert_close(limit.ntk(x).item(), ntk, rtol=1e-12, atol=0)


def test_another_initialization_is_measured():
    x = normal(2, 64).double()
    model = network("MLP", 512).double()
    for module in model:
        if isinstance(module, Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    k = ntkit.infinite_width(model, x[:1], parameterization="standard").nngp.diag(x)
    # Var(W) = 2 / fan_in keeps E[h^2]; measured to a relative sqrt(2 / numel) for each weight
    torch.testing.assert_close(k, 2 * x.square().mean(1), rtol=0.1, atol=0)


def test_a_small_first_layer_is_noted():
    note = "not quite Gaussian"
    small, large = Sequential(Linear(4, 8), ReLU(), Linear(8, 1)), network("MLP", 8)
    assert note in str(ntkit.infinite_width(small, normal(1, 4), parameterization="standard").program)
    assert note not in str(ntkit.infinite_width(small, normal(1, 4)).program)
    assert note not in str(ntkit.infinite_width(large, normal(1, 64), parameterization="standard").program)


NAMES = [
    "relu MLP",
    "tanh MLP",
    "layer norm before a ReLU",
    "convolutions with stride, dilation, pooling",
    pytest.param("GRU", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", [*NAMES, "softmax attention", "embedding", "learned positions"])
def test_a_copy_by_ntk_parametrize_has_the_limit_of_the_original(name):
    case = CASES[name]
    x, model = case.inputs(48, 3), case.network(48)
    copy = ntkit.ntk_parametrize(model, 1.4, 0.3, seed=0)
    expected = ntkit.infinite_width(model, x[:1], 1.4, 0.3, samples=2**8)
    found = ntkit.infinite_width(copy, x[:1], parameterization="standard", samples=2**8)
    # learned positions keep the mean and standard deviation of their entries: drawn anew, measured again
    rtol = 0.1 if name == "learned positions" else 1e-6
    torch.testing.assert_close(found.nngp(x), expected.nngp(x), rtol=rtol, atol=rtol)
    torch.testing.assert_close(found.ntk(x), expected.ntk(x), rtol=rtol, atol=rtol)


def test_a_bias_that_starts_elsewhere_keeps_its_mean():
    x = normal(2, 64).double()
    model = Sequential(Linear(64, 512), nn.Identity(), Linear(512, 1)).double()
    nn.init.normal_(model[0].bias, 2.0, 0.1)
    nn.init.zeros_(model[2].bias)
    limit = ntkit.infinite_width(model, x[:1], parameterization="standard")
    moment = float(model[0].bias.detach().square().mean())
    expected = (x @ x.T / (3 * 64) + moment) / 3
    torch.testing.assert_close(limit.nngp(x), expected, rtol=1e-3, atol=0)
