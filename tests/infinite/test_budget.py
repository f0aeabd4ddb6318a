"""Expectations that are sampled keep to the budget of memory, and do not depend on it."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit

D, W = torch.float64, 32


class Attention(nn.Module):
    """A block of softmax attention with a residual branch, over tokens of three numbers."""

    def __init__(self, heads=4, mask=None, ending="mean", width=W):
        super().__init__()
        self.e, self.p, self.o = nn.Linear(3, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in "qkv")
        self.heads, self.ending = heads, ending
        self.register_buffer("mask", mask)

    def forward(self, x):
        h = self.e(x)
        q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        a = (scores if self.mask is None else scores + self.mask).softmax(-1) @ v
        h = torch.relu(self.p(a.transpose(1, 2).flatten(2)) + h)
        return self.o(h.mean(1) if self.ending == "mean" else h[:, 0])


def causal(n):
    return torch.full((n, n), -torch.inf, dtype=D).triu(1)


def pooled(width=8):
    layers = nn.Conv2d(1, width, 3, padding=1), nn.MaxPool2d(2), nn.Conv2d(width, width, 3), nn.ReLU()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * width, 1))


NETWORKS = {
    "attention": (Attention, (6, 3)),
    "causal attention": (lambda: Attention(mask=causal(6)), (6, 3)),
    "attention read at one token": (lambda: Attention(ending="first"), (6, 3)),
    "max pooling": (pooled, (1, 8, 8)),
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "attention")) for n in NETWORKS]
)
def test_a_small_budget_gives_the_same_numbers(name):
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    model = build().double()
    x = torch.randn(3, *shape, dtype=D, generator=torch.Generator().manual_seed(1))
    large, small = (
        ntkit.infinite_width(model, x[:1], sigma_b=0.2, samples=2**12, memory=memory)
        for memory in ("2GiB", "1MiB")
    )
    for one, two in ((large.nngp, small.nngp), (large.ntk, small.ntk)):
        torch.testing.assert_close(two(x), one(x), rtol=1e-9, atol=0)
    plans = [[s.at_once for s in limit.ntk.plan(x).sampled] for limit in (large, small)]
    assert max(plans[1]) < max(plans[0])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal attention"])
def test_rows_against_wide_attention(name):
    build, shape = NETWORKS[name]
    x = torch.randn(2, *shape, dtype=D, generator=torch.Generator().manual_seed(1)) / 2
    limit = ntkit.infinite_width(build().double(), x[:1], sigma_w=1.2, sigma_b=0.2, samples=2**12)
    k = limit.ntk(x)
    for heads in (16, 64):
        torch.manual_seed(0)
        mask = causal(6) if name.startswith("causal") else None
        ending = "first" if "one" in name else "mean"
        wide = Attention(heads, mask, ending, 16 * heads).double()
        drawn = ntkit.monte_carlo(wide, 24, x, sigma_w=1.2, sigma_b=0.2)
        near = 4.5 * drawn.ntk_error + (3 * limit.error + 1 / heads) * k.abs().max()
        assert ((drawn.ntk - k).abs() <= near).all()


SCRIPT = """
import resource, torch, ntkit
from test_budget import Attention
torch.set_num_threads(1)
torch.manual_seed(0)
model = Attention(ending={ending!r}).double()
x = torch.randn(2, 197, 3, dtype=torch.float64)
small = torch.randn(1, 3, 3, dtype=torch.float64)
ntkit.infinite_width(model, small, samples=32).ntk(small)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
limit = ntkit.infinite_width(model, x[:1], sigma_b=0.1, samples=32, memory="{memory}")
k = limit.ntk(x)
print(limit.ntk.plan(x))
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before)
print("values", *k.flatten().tolist())
"""


def in_a_process(memory, ending):
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r})\n" + textwrap.dedent(SCRIPT).format(
        memory=memory, ending=ending
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    values = torch.tensor([float(v) for v in re.search("values (.*)", out)[1].split()])
    return float(re.search(r"peak (\S+)", out)[1]), values, out


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["mean", "first"])
def test_197_tokens_within_the_budget(ending):
    """A dense covariance of its scores would take 12 GB."""
    peak, values, plan = in_a_process("200MiB", ending)
    assert peak < 200 + 100, plan  # and what torch takes once
    assert "attention" in plan
    other, again, _ = in_a_process("1GiB", ending)
    torch.testing.assert_close(again, values, rtol=1e-6, atol=0)
    assert other < 1024 + 100


def test_the_plan_says_what_is_tiled():
    x = torch.randn(40, 6, 3, dtype=D)
    limit = ntkit.infinite_width(Attention().double(), x[:1], samples=64, memory="1MiB")
    text = str(limit.ntk.plan(x))
    assert re.search(r"kernel \[40, 40\] in tiles of \d+ x \d+ samples", text)
    assert "attention: 128 points, scores of all positions together" in text
    assert "1.0 MiB" in text or "1 MiB" in text or "1.00 MiB" in text, text


def test_a_scaled_dot_product_is_the_same_by_torchs_own():
    class Own(Attention):
        def forward(self, x):
            h = self.e(x)
            q, k, v = (f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            a = F.scaled_dot_product_attention(q, k, v)
            return self.o(torch.relu(self.p(a.transpose(1, 2).flatten(2)) + h).mean(1))

    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, dtype=D)
    one, two = (ntkit.infinite_width(m().double(), x[:1], samples=256).ntk(x) for m in (Attention, Own))
    torch.testing.assert_close(one, two, rtol=1e-8, atol=0)


def test_what_no_memory_holds_is_refused_by_name():
    # two convolutions and a pooling of 3000 x 3000 pixels: all pairs of them are 8e13 numbers
    parts = (nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1))
    model = nn.Sequential(*parts, nn.Flatten(), nn.Linear(4, 1))
    large = ntkit.infinite_width(model, torch.zeros(1, 1, 3000, 3000))
    with pytest.raises(ntkit.NtkitError, match="not enough memory for this kernel"):
        large.ntk(torch.zeros(1, 1, 3000, 3000))
