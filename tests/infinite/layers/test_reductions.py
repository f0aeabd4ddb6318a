"""Functions of all positions of a dimension, against draws of one layer, or written in other ways."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wide_networks import Net

import ntkit

D = torch.float64
SIGMA_W, SIGMA_B = 1.3, 0.4
WIDTH = 8

# a function of [..., t, channels]; what of it is linear in positions is exact
CASES = {
    "amax": lambda h: h.amax(-2),
    "amin of a norm, kept": lambda h: (0.5 * h).amin(-2, keepdim=True).squeeze(-2),
    "max with places": lambda h: torch.relu(h).max(-2).values,
    "logsumexp": lambda h: h.logsumexp(-2),
    "logsumexp of tanh": lambda h: h.tanh().logsumexp(-2, keepdim=True)[..., 0, :],
    "prod": lambda h: h[..., :2, :].prod(-2),
    "std": lambda h: h.std(-2),
    "var, biased": lambda h: h.var(-2, correction=0),
    "std and mean": lambda h: torch.add(*torch.std_mean(h, -2)),
    "log sum exp of products of positions": lambda h: (h + h.mean(-2, keepdim=True)).logsumexp(-2),
}


def network(of):
    call = lambda s, x: s.o(of(s.a(x)))  # noqa: E731
    return Net(call, a=nn.Linear(3, WIDTH), o=nn.Linear(WIDTH, 1)).double()


def data(*sizes):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(5), dtype=D)


def limit(of, x, samples=2**12):
    return ntkit.infinite_width(network(of), x[:1], sigma_w=SIGMA_W, sigma_b=SIGMA_B, samples=samples)


def simulated(of, x, draws=2**16):
    """Return NNGP and NTK, each with its standard error, from draws of the layer at all samples."""
    n, t = x.shape[:2]
    flat = x.flatten(0, 1)
    k = SIGMA_W**2 * flat @ flat.T / 3 + SIGMA_B**2
    values, vectors = torch.linalg.eigh(k)
    root = vectors * values.clamp(min=0).sqrt()
    g = (torch.randn(draws, n * t, generator=torch.Generator().manual_seed(1), dtype=D) @ root.T).reshape(
        draws, n, t
    )
    g.requires_grad_()
    h = of(g[..., None])[..., 0]
    slopes = torch.autograd.grad(h.sum(), g)[0]
    nngp = SIGMA_W**2 * h[:, :, None] * h[:, None] + SIGMA_B**2
    theta = torch.einsum("bit,itjs,bjs->bij", slopes, k.reshape(n, t, n, t), slopes)
    return [(m.mean(0), m.std(0) / draws**0.5) for m in (nngp.detach(), (nngp + SIGMA_W**2 * theta).detach())]


@pytest.mark.parametrize("name", CASES)
def test_against_draws_of_the_layer(name):
    x = data(2, 4, 3)
    found = limit(CASES[name], x)
    for kernel, (mean, error) in zip((found.nngp, found.ntk), simulated(CASES[name], x), strict=True):
        k = kernel(x)
        scale = mean.abs().max()
        assert ((k - mean).abs() <= 4 * error + 5e-3 * scale).all()
        torch.testing.assert_close(k, k.T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(kernel.diag(x), k.diagonal(), rtol=1e-12, atol=0)
        assert error.max() < 3e-2 * scale


def test_a_maximum_over_all_pixels_is_that_of_one_window():
    x = data(2, 2, 3, 4)
    conv = lambda: nn.Conv2d(2, WIDTH, 3, padding=1)  # noqa: E731
    whole = Net(lambda s, x: s.o(torch.relu(s.a(x)).amax((2, 3))), a=conv(), o=nn.Linear(WIDTH, 1))
    window = Net(lambda s, x: s.o(F.max_pool2d(torch.relu(s.a(x)), (3, 4)).flatten(1)), a=conv(), o=whole.o)
    one, two = (ntkit.infinite_width(m.double(), x[:1], samples=2**9) for m in (whole, window))
    for kind in ("nngp", "ntk"):
        k = getattr(two, kind)(x)
        torch.testing.assert_close(getattr(one, kind)(x), k, rtol=1e-12, atol=1e-12)


def test_sums_up_to_each_position():
    x = data(3, 4, 3)
    one = limit(lambda h: torch.relu(h).cumsum(1)[:, 2], x)
    two = limit(lambda h: torch.relu(h)[:, :3].sum(1), x)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(one, kind)(x), getattr(two, kind)(x), rtol=1e-12, atol=1e-12)
