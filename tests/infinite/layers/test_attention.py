"""Attention by draws of its scores: against draws of one head written out, and finite draws of many heads."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from one_head import (
    PLAIN,
    SIGMA_B,
    SIGMA_W,
    D,
    attention,
    by_hand,
    heads,
    joined,
    limit,
    network,
    seeded,
    shape,
    simulated,
)
from torch import nn

import ntkit
from ntkit.infinite.layers.attention import _averages

CAUSAL = torch.tril(torch.ones(3, 3)).bool()
ADDED = torch.randn(3, 3, generator=seeded(11), dtype=D)
SHOWN = torch.tensor([[True, True, True], [True, False, True]])
WINDOWS = torch.randn(2, 1, 3, 3, generator=seeded(12), dtype=D)
PLACES = torch.arange(3)[:, None] - torch.arange(3) + 2  # of relative positions
ENTRIES = torch.tensor([0.9, -0.9]).repeat(10).reshape(5, 4).T.reshape(5, 4).double()  # mean 0, variance 0.81


def tabled(s, e, after=lambda z: z):
    bias = s.b[PLACES.flatten()].unflatten(0, (3, 3)).permute(2, 0, 1)
    return by_hand(s, e, lambda z: after(z + bias))


def bucketed(s, e):
    index = PLACES.clamp(1, 3) - 1
    return by_hand(s, e, lambda z: z + s.b(index).permute(2, 0, 1)[None])


# the network, its inputs, and what is done to scores [2, *windows, t, s] before and after the softmax
CASES = {
    "plain": (lambda s, e: attention(s, e), shape(0, 3, 3), {}),
    "a causal buffer": (
        lambda s, e: attention(s, e, mask=s.m),
        shape(1, 3, 3),
        {"m": CAUSAL, "hide": ~CAUSAL},
    ),
    "an added buffer": (lambda s, e: attention(s, e, mask=s.m), shape(2, 3, 3), {"m": ADDED, "plus": ADDED}),
    "minus infinity in a buffer": (
        lambda s, e: by_hand(s, e, lambda z: z + s.m),
        shape(3, 3, 3),
        {"m": torch.zeros(3, 3).masked_fill(~CAUSAL, -torch.inf), "hide": ~CAUSAL},
    ),
    "a large number where hidden": (
        lambda s, e: by_hand(s, e, lambda z: z.masked_fill(s.m, -1e9)),
        shape(4, 3, 3),
        {"m": ~CAUSAL, "hide": ~CAUSAL},
    ),
    "filled with minus infinity": (
        lambda s, e: by_hand(s, e, lambda z: z.masked_fill(s.m, float("-inf"))),
        shape(5, 3, 3),
        {"m": ~CAUSAL, "hide": ~CAUSAL},
    ),
    "minus infinity by where": (
        lambda s, e: by_hand(s, e, lambda z: torch.where(s.m, float("-inf"), z)),
        shape(6, 3, 3),
        {"m": ~CAUSAL, "hide": ~CAUSAL},
    ),
    "booleans of the sample": (
        lambda s, e, m: attention(s, e, mask=m[:, None, None]),
        (shape(7, 3, 3), SHOWN),
        {"hide": ~SHOWN[:, None]},
    ),
    "numbers of the sample added": (
        lambda s, e, m: attention(s, e, mask=m[:, None]),
        (shape(8, 3, 3), shape(9, 3, 3)),
        {"plus": shape(9, 3, 3)},
    ),
    "numbers of the sample multiply": (
        lambda s, e, m: by_hand(s, e, lambda z: z * m[:, None, None] - 2 * m[:, None, None]),
        (shape(10, 3, 3), shape(11, 3).abs()),
        {"times": shape(11, 3).abs()[:, None], "plus": -2 * shape(11, 3).abs()[:, None]},
    ),
    "other keys": (lambda s, e, f: attention(s, e, f), (shape(12, 3, 3), shape(13, 4, 3)), {}),
    "windows": (lambda s, e: attention(s, e), shape(14, 2, 3, 3), {}),
    "windows with masks": (
        lambda s, e: attention(s, e, mask=s.m),
        shape(15, 2, 3, 3),
        {"m": WINDOWS, "plus": WINDOWS[:, 0]},
    ),
    "windows in the batch": (
        lambda s, e: attention(s, e.flatten(0, 1), mask=s.m).unflatten(0, (-1, 2)),
        shape(16, 2, 3, 3),
        {"m": ADDED, "plus": ADDED},
    ),
    "a table of relative positions": (
        tabled,
        shape(30, 3, 3),
        {"b": nn.Parameter(ENTRIES), "table": (PLACES, 0.81, 1.0)},
    ),
    "a table of which entries are shared": (
        bucketed,
        shape(31, 3, 3),
        {"b": nn.Embedding(3, 4), "table": (PLACES.clamp(1, 3), SIGMA_W**2, SIGMA_W**2)},
    ),
    "a table in windows with masks": (
        lambda s, e: tabled(s, e.flatten(0, 1), lambda z: z + s.m).unflatten(0, (-1, 2)),
        shape(32, 2, 3, 3),
        {"m": ADDED, "plus": ADDED, "b": nn.Parameter(ENTRIES), "table": (PLACES, 0.81, 1.0)},
    ),
    "scores without a gradient": (
        lambda s, e: by_hand(s, e, lambda z: z.detach()),
        shape(17, 3, 3),
        {"detached": True},
    ),
    "weights without a gradient": (
        lambda s, e: by_hand(s, e, after=lambda a: a.detach()),
        shape(18, 3, 3),
        {"detached": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_attention_against_draws_of_a_head(name):
    of, x, options = CASES[name]
    inputs = x if isinstance(x, tuple) else (x,)
    takes = 1 + (name == "other keys")
    model = network(of, takes=takes, **{k: v for k, v in options.items() if k in "mb"})
    found = limit(model, x, samples=2**14)
    options = {k: v for k, v in options.items() if k not in "mb"}
    wanted = simulated(inputs[0], inputs[1] if name == "other keys" else inputs[0], **options)
    assert "draws of the scores" in str(found.program)
    for kind, kernel in enumerate((found.nngp, found.ntk)):
        k = kernel(x)
        torch.testing.assert_close(k, k.T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(kernel.diag(x), k.diagonal(), rtol=1e-12, atol=0)
        scale = wanted[:, kind, 0].max()
        for value, (mean, error) in zip((k[0, 0], k[0, 1], k[1, 1]), wanted[:, kind], strict=True):
            assert abs(value - mean) <= 4 * error + 1e-2 * scale
            assert error <= 1.5e-2 * scale


def test_queries_of_zeros_look_everywhere_alike():
    # without variance of their own scores are zero: means of the values, exactly
    keys = shape(20, 4, 3)
    model = network(lambda s, e, f: attention(s, e, f), bias=False, takes=2)
    found = limit(model, (torch.zeros(2, 3, 3, dtype=D), keys), samples=2**8)
    gram = SIGMA_W**4 * torch.einsum("isd,jrd->ij", keys, keys) / 3 / 16  # E[v v'], the mean over keys
    nngp = SIGMA_W**2 * gram + SIGMA_B**2
    x = (torch.zeros(2, 3, 3, dtype=D), keys)
    torch.testing.assert_close(found.nngp(x), nngp, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.ntk(x), nngp + 2 * SIGMA_W**2 * gram, rtol=1e-10, atol=1e-12)


def test_a_table_adds_its_entries_to_the_tangent_kernel():
    # queries of zeros and entries that are all alike: weights are numbers, and each sum is exact
    keys = shape(20, 3, 3)

    def of(s, e, f):
        q, k, v = (heads(s.get_submodule(n)(t), s.h) for n, t in zip(PLAIN, (e, f, f), strict=True))
        bias = s.b[PLACES.flatten()].unflatten(0, (3, 3)).permute(2, 0, 1)
        return joined(torch.softmax(q @ k.mT / 2**0.5 + s.m + bias, -1) @ v)

    table = nn.Parameter(torch.full((5, 4), 0.7, dtype=D))
    x = (torch.zeros(2, 3, 3, dtype=D), keys)
    found = limit(network(of, bias=False, takes=2, b=table, m=ADDED), x, samples=2**8)
    a = torch.softmax(ADDED, -1)
    k = SIGMA_W**4 * torch.einsum("isd,jrd->isjr", keys, keys) / 3
    average = torch.einsum("ts,isjr,ur->ij", a, k, a) / 9
    hot = F.one_hot(PLACES, 5).double()
    bent = a[..., None] * (hot - torch.einsum("ts,tsm->tm", a, hot)[:, None])
    of_table = torch.einsum("tsm,isjr,urm->ij", bent, k, bent) / 9
    nngp = SIGMA_W**2 * average + SIGMA_B**2
    torch.testing.assert_close(found.nngp(x), nngp, rtol=1e-10, atol=1e-12)
    # queries of zeros: scores do not move with the weights of queries and keys
    ntk = nngp + SIGMA_W**2 * (2 * average + of_table)
    torch.testing.assert_close(found.ntk(x), ntk, rtol=1e-10, atol=1e-12)
    assert (of_table.diagonal() > 0.02 * average.diagonal()).all()


SHARED = {"the keys": "qkk", "the queries": "qkq"}


@pytest.mark.parametrize("name", SHARED)
def test_values_that_are_keys_or_queries_are_like_values_of_their_own(name):
    # each coordinate of the values is one of d in a score: no correlation is left
    x = shape(34, 3, 3)
    own = limit(network(attention), x, samples=2**8)
    shared = limit(network(lambda s, e: attention(s, e, names=SHARED[name])), x, samples=2**8)
    for kind in ("nngp", "ntk"):
        k = getattr(own, kind)(x)
        torch.testing.assert_close(getattr(shared, kind)(x), k, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("width", [256, 1024])
def test_values_that_are_keys_against_many_heads(width):
    x = shape(34, 3, 3)
    model = network(lambda s, e: attention(s, e, names="qkk"), width, width // 16)
    found = limit(model, x, samples=2**12)
    drawn = ntkit.monte_carlo(model, 24, x, seed=3, sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    for kernel, mean, error in (
        (found.nngp(x), drawn.nngp, drawn.nngp_error),
        (found.ntk(x), drawn.ntk, drawn.ntk_error),
    ):
        allowed = 4 * error + (8 / width + 1 / 64) * kernel.abs().max()
        assert ((kernel - mean).abs() <= allowed).all()
        assert allowed.max() < 0.3 * kernel.abs().max()


def test_queries_that_are_keys_are_refused_by_name():
    with pytest.raises(ntkit.NtkitError, match="one projection for both"):
        limit(network(lambda s, e: attention(s, e, names="qqv")), shape(0, 3, 3))


def test_slopes_of_each_head_are_averaged_over_heads():
    # ALiBi: a head at a time has the kernel of heads with its own slope
    x, lags = shape(35, 3, 3), -torch.arange(3)[:, None].sub(torch.arange(3)).abs().double()
    slopes = torch.tensor([0.2, 0.5, 1.0, 3.0], dtype=D)

    def with_slopes(slopes):
        m = slopes[:, None, None] * lags
        return limit(network(lambda s, e: by_hand(s, e, lambda z: z + s.m), m=m), x, samples=2**12)

    every, each = with_slopes(slopes), [with_slopes(slope.expand(4)) for slope in slopes]
    assert "draws of the scores" in str(every.program)
    for kind in ("nngp", "ntk"):
        mean = torch.stack([getattr(one, kind)(x) for one in each]).mean(0)
        torch.testing.assert_close(getattr(every, kind)(x), mean, rtol=1e-2, atol=0)
        spread = getattr(each[0], kind)(x) - getattr(each[3], kind)(x)
        assert (spread.abs() > 0.03 * mean).any()


def in_windows(reshape):
    """Return attention in two windows in the batch, shifted by one token, its scores masked and reshaped."""

    def of(s, e):
        e = torch.relu(e).unflatten(1, (2, 3)).flatten(1, 2).roll(1, 1)
        w = e.unflatten(1, (2, 3)).flatten(0, 1)
        q, k, v = (heads(s.get_submodule(n)(w), s.h) for n in PLAIN)
        z = q @ k.mT / 2**0.5
        z = (z.unflatten(0, (-1, 2)) + s.m[:, None]).flatten(0, 1) if reshape else z + s.m[:, None]
        return joined(torch.softmax(z, -1) @ v).unflatten(0, (-1, 2)).flatten(1, 2).roll(-1, 1)

    return of


def test_windows_shifted_and_masked_one_by_one():
    x = shape(33, 6, 3)
    masks = torch.stack([ADDED, 2 * ADDED])
    one, two = (limit(network(in_windows(how), m=masks), x, samples=2**8) for how in (True, False))
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(getattr(one, kind)(x), getattr(two, kind)(x), rtol=1e-12, atol=1e-12)
        assert getattr(one, kind)(x).isfinite().all()


def test_rows_of_zeros_and_values_without_variance():
    x = shape(21, 3, 3)
    x[0, 1] = 0
    x[1] = 0
    found = limit(network(lambda s, e: attention(s, e), bias=False), x, samples=2**14)
    for kernel in (found.nngp(x), found.ntk(x)):
        assert torch.equal(kernel[1], torch.full((2,), SIGMA_B**2, dtype=D))
    # the keys of the row of zeros have scores of zero, its query looks everywhere alike
    wide = network(lambda s, e: attention(s, e), bias=False, width=512, h=16)
    drawn = ntkit.monte_carlo(wide, 20, x, seed=1, sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    for kernel, mean, error in (
        (found.nngp(x), drawn.nngp, drawn.nngp_error),
        (found.ntk(x), drawn.ntk, drawn.ntk_error),
    ):
        assert ((kernel - mean).abs() <= 4 * error + 0.05 * kernel.max()).all()


def layers(s, e):
    e = e + s.p(attention(s, s.n(e)))
    h = attention(s, s.n(e), names=("q2", "k2", "v2"), mask=s.m)
    return torch.relu(e + s.p2(h)) + h


MORE = ("p", "q2", "k2", "v2", "p2")


@pytest.mark.parametrize("width", [pytest.param(64, marks=pytest.mark.slow), 256])
def test_two_layers_with_skips_and_norms_against_many_heads(width):
    x = shape(22, 3, 3)
    model = network(layers, width, 8, MORE, m=CAUSAL, n=nn.LayerNorm(width))
    found = limit(model, x, samples=2**13)
    drawn = ntkit.monte_carlo(model, 24, x, seed=3, sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    for kernel, mean, error in (
        (found.nngp(x), drawn.nngp, drawn.nngp_error),
        (found.ntk(x), drawn.ntk, drawn.ntk_error),
    ):
        allowed = 4 * error + 8 / width * kernel.abs().max()
        assert ((kernel - mean).abs() <= allowed).all()
        assert allowed.max() < 0.45 * kernel.abs().max()


def test_blocks_do_not_depend_on_tiles():
    x = torch.cat([shape(seed, 3, 3) for seed in (23, 24, 25)])
    model = network(layers, 8, 4, MORE, m=CAUSAL, n=nn.LayerNorm(8))
    small, large = (limit(model, x, samples=2**10, memory=m) for m in ("4MiB", "1GiB"))
    for kind in ("nngp", "ntk"):
        one, two = getattr(small, kind), getattr(large, kind)
        whole = two(x)
        torch.testing.assert_close(one(x), whole, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(two(x[1:3], x[2:]), whole[1:3, 2:], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(two.diag(x), whole.diagonal(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(whole, whole.T, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(two(x[3:], x[:2]), whole[3:, :2], rtol=1e-10, atol=1e-10)


LONG = """
import resource, sys
sys.path[:0] = [{tests!r}]
import torch, ntkit
from torch import nn
from one_head import attention, network
torch.set_num_threads(1)
mask = torch.ones(197, 197).tril().bool()
model = network(lambda s, e: attention(s, e, mask=s.m), m=mask).float()
x = torch.randn(2, 197, 3, generator=torch.Generator().manual_seed(0))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
ntk = ntkit.infinite_width(model, x[:1], samples=2**9, memory="500MiB").ntk(x)
assert torch.isfinite(ntk).all() and torch.allclose(ntk, ntk.T, rtol=1e-5)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)
"""


@pytest.mark.slow
def test_197_tokens_stay_within_the_budget():
    tests = str(Path(__file__).parents[1])
    ran = subprocess.run([sys.executable, "-c", LONG.format(tests=tests)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) < 0.5 + 1.5  # GiB: the budget, and what torch itself takes


@pytest.mark.parametrize(
    ("scale", "width", "averages"),
    [
        *((1.0, 1, False), (8**-0.5, 8, False), (24**-0.5, 8, False), (1 / 8, 8, True), (0.25, 4, True)),
        *((192**-0.5, 64, False), (1 / 64, 64, True), (2 / 64, 64, True)),
    ],
)
def test_which_scale_is_meant(scale, width, averages):
    assert _averages(scale, width) == averages
