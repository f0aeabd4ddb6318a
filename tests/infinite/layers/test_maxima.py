"""Maxima over windows: the windows against torch's own pooling, the limits against draws of one layer."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from wide_networks import Net

import ntkit
from ntkit.infinite.layers.pooling import _windows
from ntkit.infinite.variables.expression import Expression
from ntkit.infinite.variables.functions import Apply, Function
from ntkit.infinite.variables.positions import Move, at_windows, reshape
from ntkit.infinite.variables.rewrites import gathered
from ntkit.infinite.variables.vectors import Vector, VectorSum, WeightLaw

D = torch.float64
WIDTH = 8
SIGMA_W, SIGMA_B = 1.3, 0.4
SHARE = 1 / (1 + 1e-5)  # of a batch norm at its start, squared
aten = torch.ops.aten
PICTURES = {
    1: (aten.max_pool1d.default, aten.adaptive_max_pool1d.default, (8,)),
    2: (aten.max_pool2d.default, aten.adaptive_max_pool2d.default, (7, 6)),
    3: (aten.max_pool3d.default, aten.adaptive_max_pool3d.default, (5, 6, 5)),
}


def same(op, rank, shape, *args):
    """Check on random pictures, of both signs and of one, that windows hold what a maximum is taken of."""
    windows = _windows(op, rank, shape, *args)
    x = torch.randn(4, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=D)
    for picture in (x, -x.abs(), x.abs()):
        wanted = op(picture, *args)
        wanted = wanted[0] if isinstance(wanted, tuple) else wanted
        inside = at_windows(picture[:, 0], rank, windows).masked_fill(~windows.inside, -torch.inf)
        assert torch.equal(inside.amax(-1), wanted[:, 0])


@pytest.mark.parametrize("rank", PICTURES)
def test_windows_are_those_of_torch(rank):
    op, adaptive, shape = PICTURES[rank]
    for k, stride, padding, dilation, ceil in itertools.product((1, 2, 3), (1, 2, 3), (0, 1), (1, 2), (0, 1)):
        if 2 * padding <= k:
            each = ((n,) * rank for n in (k, stride, padding, dilation))
            same(op, rank, shape, *each, bool(ceil))
    for outputs in (1, 2, 3, 4):
        same(adaptive, rank, shape, (outputs,) * rank)


def chained(*pools):
    """Return maxima of maxima and the flat positions that they come from."""

    def of(h):
        values, places = pools[0](h)
        for pool in pools[1:]:
            values, then = pool(values)
            places = places.flatten(2).gather(2, then.flatten(2)).reshape(then.shape)
        return values, places

    return of


def pool(of, *args, **options):
    return lambda h: of(h, *args, return_indices=True, **options)


# rank and shape of the pictures, norm, residual, function, and the poolings
CASES = {
    "padding and overlap": (2, (4, 4), True, False, F.relu, [pool(F.max_pool2d, 3, 2, 1)]),
    "dilation": (2, (4, 3), True, False, F.relu, [pool(F.max_pool2d, 2, 1, 0, 2)]),
    "ceil_mode": (2, (4, 3), False, False, F.relu, [pool(F.max_pool2d, 2, 2, ceil_mode=True, padding=1)]),
    "adaptive": (2, (5, 4), False, False, F.silu, [pool(F.adaptive_max_pool2d, (2, 3))]),
    "1d, of the vector itself": (1, (6,), False, False, None, [pool(F.max_pool1d, 3, 2, 1)]),
    "1d, adaptive, of a norm": (1, (7,), True, False, None, [pool(F.adaptive_max_pool1d, 3)]),
    "3d": (3, (3, 2, 2), True, False, F.relu, [pool(F.max_pool3d, 2, 1)]),
    "two on one another": (
        2,
        (4, 4),
        True,
        False,
        F.relu,
        [pool(F.max_pool2d, 2, 1), pool(F.max_pool2d, 2, 1, 1)],
    ),
    "behind a residual": (2, (3, 4), True, True, F.relu, [pool(F.max_pool2d, 2, 1)]),
    "behind a residual of tanh": (1, (5,), True, True, torch.tanh, [pool(F.max_pool1d, 3, 1, 1)]),
}


def gram(x, y, rank):
    """Return the covariance of convolutions 3x...x3 with zeros around, ``[pixels, pixels]``."""
    patches = []
    for t in (x, y):
        t = F.pad(t, (1, 1) * rank)
        for d in range(1, rank + 1):
            t = t.unfold(d, 3, 1)
        patches.append(t.movedim(0, rank).flatten(rank).flatten(0, rank - 1))
    return SIGMA_W**2 * (patches[0] @ patches[1].T) / patches[0].shape[1] + SIGMA_B**2


def simulated(name, x, draws=2**16):
    """Return NNGP and NTK, each with its standard error, from draws of the convolutions at two samples."""
    rank, _, norm, residual, function, pools = CASES[name]
    both = [[gram(a, b, rank) for b in x] for a in x]
    whole = torch.cat([torch.cat(row, 1) for row in both])
    p = len(whole) // 2
    values, vectors = torch.linalg.eigh(whole)
    root = vectors * values.clamp(min=0).sqrt()
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(draws, 2 * p, generator=generator, dtype=D) @ root.T for _ in "ab")
    a = SHARE**0.5 * a if norm else a
    u = a + b if residual else a
    theta = whole * ((SHARE if norm else 1) + residual) + norm  # of the weights and of the shift
    shape = CASES[name][1]
    ends = []
    for which in (0, 1):
        at = u[:, which * p : (which + 1) * p].clone().requires_grad_()
        h = at if function is None else function(at)
        slope = torch.autograd.grad(h.sum(), at)[0]
        out, places = chained(*pools)(h.detach().reshape(draws, 1, *shape))
        places = places.flatten(1)
        ends.append((out.flatten(1), slope.gather(1, places), places + which * p))
    results = []
    for i, j in ((0, 0), (0, 1), (1, 1)):
        (h, f, s), (k, g, t) = ends[i], ends[j]
        through = theta[s, t] + (a.gather(1, s) * a.gather(1, t) if norm else 0)
        nngp = SIGMA_W**2 * (h * k).mean(1) + SIGMA_B**2
        for kernel in (nngp, nngp + SIGMA_W**2 * (f * g * through).mean(1)):
            results.append((float(kernel.mean()), float(kernel.std()) / draws**0.5))
    return np.array(results).reshape(3, 2, 2)


@pytest.mark.parametrize("name", CASES)
def test_maxima_of_one_layer_against_draws(name):
    rank, shape, norm, residual, function, pools = CASES[name]

    def of(s, x):
        h = s.n(s.a(x)) if norm else s.a(x)
        h = h + s.b(x) if residual else h
        h = h if function is None else function(h)
        for one in pools:
            h = one(h)[0]
        return s.o(h.flatten(1))

    x = torch.randn(2, 2, *shape, generator=torch.Generator().manual_seed(len(name)), dtype=D)
    made, normed = (getattr(nn, f"{kind}{rank}d") for kind in ("Conv", "BatchNorm"))
    places = chained(*pools)(torch.zeros(1, 1, *shape))[0].numel()
    parts = {k: made(2, WIDTH, 3, padding=1) for k in "ab"}
    model = Net(of, **parts, n=normed(WIDTH), o=nn.Linear(WIDTH * places, 1)).double().eval()
    limit = ntkit.infinite_width(model, x[:1], sigma_w=SIGMA_W, sigma_b=SIGMA_B, samples=2**13)
    wanted = simulated(name, x)
    for kind, kernel in enumerate((limit.nngp, limit.ntk)):
        k = kernel(x)
        torch.testing.assert_close(k, k.T)
        torch.testing.assert_close(kernel.diag(x), k.diagonal(), rtol=2e-3, atol=0)
        for found, (mean, error) in zip((k[0, 0], k[0, 1], k[1, 1]), wanted[:, kind], strict=True):
            assert abs(float(found) - mean) <= 4 * error + 4e-3 * wanted[:, kind, 0].max()
            assert error <= 0.01 * wanted[:, kind, 0].max()


# the maximum of two neighbors, by pooling and by slices; m: numbers of the sample
NEIGHBORS = {
    "a multiple by data": lambda h, m: torch.relu(h) * m,
    "a sum with data": lambda h, m: torch.tanh(h + m) - m,
    "a function of data": lambda h, m: torch.maximum(torch.tanh(h), m),
    "a choice by data": lambda h, m: torch.where(m > 0, torch.relu(h), 0.3),
    "data of one number": lambda h, m: torch.relu(h) * m.mean(2, keepdim=True),
}


@pytest.mark.parametrize("name", NEIGHBORS)
def test_numbers_of_the_sample_are_taken_along(name):
    def limit(of):
        def whole(s, x, m):
            return s.o(of(NEIGHBORS[name](s.n(s.a(x)), m[:, None])).flatten(1))

        parts = {"a": nn.Conv1d(2, WIDTH, 3, padding=1), "n": nn.BatchNorm1d(WIDTH)}
        model = Net(whole, **parts, o=nn.Linear(3 * WIDTH, 1)).double().eval()
        return ntkit.infinite_width(model, (x[:1], m[:1]), sigma_w=SIGMA_W, sigma_b=SIGMA_B, samples=2**13)

    generator = torch.Generator().manual_seed(6)
    x, m = torch.randn(3, 2, 6, generator=generator, dtype=D), torch.randn(3, 6, generator=generator, dtype=D)
    pooled = limit(lambda h: F.max_pool1d(h, 2))
    sliced = limit(lambda h: torch.maximum(h[:, :, ::2], h[:, :, 1::2]))
    for kind in ("nngp", "ntk"):
        one, two = (getattr(of, kind)((x, m)) for of in (pooled, sliced))
        assert (one - two).abs().max() <= 1e-2 * two.abs().max()


def test_positions_are_gathered_however_deep_a_function_is():
    law = WeightLaw(1.0, 1.0)
    move = Move((reshape, 1, (2, 2)), (4,), (2, 2), True)
    h: Expression = Vector((4,), "b", torch.arange(1), 0.0, law)
    for i in range(3000):
        b = Vector((1,), f"b{i}", torch.arange(1), 0.5, law)
        h = Apply((4,), Function("relu", torch.relu), (VectorSum((4,), (h, b)),))
    found = gathered(h, move)
    assert found is gathered(h, move) and found.shape == (2, 2)
    mixing = Apply((4,), Function("softmax", torch.relu, None, False), (h,))
    assert gathered(Apply((4,), Function("relu", torch.relu), (mixing,)), move) is None
