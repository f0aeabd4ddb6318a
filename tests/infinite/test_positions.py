"""Kernels between positions, against networks that read out some of the positions, and finite draws."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.base import clone
from torch import nn
from wide_networks import Net

import ntkit

D = torch.float64
SIGMAS = {"sigma_w": 1.3, "sigma_b": 0.2}


def data(seed, *sizes):
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(seed), dtype=D)


def gcn(end, w=8):
    links = (data(0, 5, 5).abs() > 0.8).double()
    adjacency = links + links.T + torch.eye(5, dtype=D)

    def of(s, x):
        return end(s.b(s.m @ torch.relu(s.m @ s.a(x))))

    return Net(of, a=nn.Linear(3, w), b=nn.Linear(w, 2), m=adjacency / adjacency.sum(1, keepdim=True))


def unet(end, w=8):
    def of(s, x):
        a = torch.relu(s.a(x))
        b = torch.relu(s.b(F.avg_pool2d(a, 2)))
        return end(s.o(torch.relu(s.c(torch.cat([F.interpolate(b, scale_factor=2), a], 1)))))

    conv = nn.Conv2d
    parts = {"a": conv(3, w, 3, padding=1), "b": conv(w, w, 3, padding=1), "c": conv(2 * w, w, 1)}
    return Net(of, **parts, o=conv(w, 2, 3, padding=1))


def transformer(end, w=8):
    layer = nn.TransformerEncoderLayer(w, 4, 2 * w, dropout=0.0, batch_first=True)
    return Net(lambda s, x: end(s.o(s.t(s.e(x)))), e=nn.Linear(3, w), t=layer, o=nn.Linear(w, 2))


# network, inputs of a sample, the shape of its positions, how outputs [n, *dims] are one of the positions
CASES = {
    "nodes of a graph": (gcn, (5, 3), (5,), lambda y, p: y[:, p[0]]),
    "pixels of a U-Net": (unet, (3, 4, 6), (4, 6), lambda y, p: y[:, :, p[0], p[1]]),
    "tokens of a transformer": (transformer, (4, 3), (4,), lambda y, p: y[:, p[0]]),
}


def limit(model, x, **options):
    return ntkit.infinite_width(model.double().eval(), x[:1], samples=2**9, **SIGMAS, **options)


def both(name, end=lambda y: y, **options):
    build, shape, *_ = CASES[name]
    x = 0.7 * data(1, 3, *shape)
    return limit(build(end), x, **options), x


@pytest.mark.parametrize("name", CASES)
def test_blocks_between_positions(name):
    _, _, shape, at = CASES[name]
    found, x = both(name)
    one, two = (0,) * len(shape), tuple(s - 1 for s in shape)
    here, _ = both(name, lambda y: at(y, one))
    there, _ = both(name, lambda y: at(y, two))
    together, _ = both(name, lambda y: at(y, one) - 0.5 * at(y, two))
    for kind in ("nngp", "ntk"):
        k = found.kernel(kind, positions=True)
        block = k(x)
        assert block.shape == (3, 3, *shape, *shape)
        cross = k(x[:2], x[1:])
        torch.testing.assert_close(cross, block[:2, 1:], rtol=1e-12, atol=1e-12)
        every = torch.arange(3)
        torch.testing.assert_close(k.diag(x), block[every, every], rtol=1e-12, atol=1e-12)
        close = dict(rtol=1e-12, atol=1e-12)
        corner = [block[(..., *p, *q)] for p in (one, two) for q in (one, two)]
        torch.testing.assert_close(here.kernel(kind)(x), corner[0], **close)
        torch.testing.assert_close(there.kernel(kind)(x), corner[3], **close)
        turned = range(2, 2 + len(shape)), range(2 + len(shape), block.ndim)
        torch.testing.assert_close(block, block.permute(1, 0, *turned[1], *turned[0]), **close)
        sums = corner[0] - 0.5 * (corner[1] + corner[2]) + 0.25 * corner[3]
        torch.testing.assert_close(together.kernel(kind)(x), sums, **close)
        flat = block.reshape(3, 3, int(np.prod(shape)), -1)
        torch.testing.assert_close(found.kernel(kind)(x), flat.diagonal(dim1=2, dim2=3).mean(-1), **close)


def test_nodes_against_finite_draws():
    found, x = both("nodes of a graph")
    wide = gcn(lambda y: y[:, 0] - y[:, 3], 256).double()
    drawn = ntkit.monte_carlo(wide, 20, x, seed=2, **SIGMAS)
    for kind, mean, error in (
        ("nngp", drawn.nngp, drawn.nngp_error),
        ("ntk", drawn.ntk, drawn.ntk_error),
    ):
        k = found.kernel(kind, positions=True)(x)
        k = k[:, :, 0, 0] - k[:, :, 0, 3] - k[:, :, 3, 0] + k[:, :, 3, 3]
        assert ((k - mean).abs() <= 4 * error + 2 / 256 * k.abs().max()).all()


def test_tiles_compiled_or_not_and_the_plan_of_a_small_budget():
    name = "pixels of a U-Net"
    x = data(1, 6, *CASES[name][1])
    whole = limit(unet(lambda y: y), x).kernel("ntk", positions=True)(x)
    small = limit(unet(lambda y: y), x, memory="256KiB").kernel("ntk", positions=True)
    plan = small.plan(x)
    assert plan.tile < (6, 6) and plan.shape == (6, 6)
    assert plan.pair >= 2 * 24 * 24 * 8
    torch.testing.assert_close(small(x), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(small(x[:2], x[2:]), whole[:2, 2:], rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_compiled_tiles():
    x = data(1, 6, 5, 3)
    whole = limit(gcn(lambda y: y), x).kernel("ntk", positions=True)(x)
    compiled = limit(gcn(lambda y: y), x, compile=True).kernel("ntk", positions=True)(x)
    torch.testing.assert_close(compiled, whole, rtol=1e-12, atol=1e-12)


def test_lines_of_the_program():
    found, x = both("pixels of a U-Net")
    names = {line.name: line.value.shape for line in found.program.lines if line.value is not None}
    small = next(name for name, shape in names.items() if shape == (2, 3))
    for kind in ("nngp", "ntk"):
        k = found.kernel(kind, small, positions=True)(x)
        assert k.shape == (3, 3, 2, 3, 2, 3)
        averages = torch.einsum("ijabab->ij", k) / 6
        torch.testing.assert_close(found.kernel(kind, small)(x), averages, rtol=1e-12, atol=1e-12)


def test_without_positions_it_is_the_plain_kernel():
    model, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), data(3, 4, 3)
    found = limit(model, x)
    assert torch.equal(found.kernel("ntk", positions=True)(x), found.ntk(x))
    assert torch.equal(found.kernel("ntk", positions=True).diag(x), found.ntk.diag(x))


def test_dimensions_of_the_output_that_the_network_merged():
    model = Net(
        lambda s, x: s.l(torch.relu(s.c(x)).flatten(2).mT), c=nn.Conv2d(1, 8, 3, padding=1), l=nn.Linear(8, 1)
    )
    found, x = limit(model, data(4, 2, 1, 3, 4)), data(4, 2, 1, 3, 4)
    assert found.kernel("nngp", positions=True)(x).shape == (2, 2, 12, 12)


def test_parameters_copies_and_cosines():
    found, x = both("pixels of a U-Net")
    k = found.kernel("ntk", positions=True)
    assert k.get_params()["positions"] is True and "between positions" in repr(k)
    assert torch.equal(clone(k)(x), k(x))
    cosines = k.normalized()
    flat = cosines(x).reshape(3, 3, 24, 24)
    for i in range(3):
        torch.testing.assert_close(flat[i, i].diagonal(), torch.ones(24, dtype=D))
        torch.testing.assert_close(cosines.diag(x)[i].reshape(24, 24), flat[i, i])
    assert torch.equal((k + k)(x), 2 * k(x))
    with pytest.raises(TypeError, match="positions='all'; expected True or False"):
        found.kernel("ntk", positions="all")(x)
