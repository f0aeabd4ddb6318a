"""Trained scales inside one function, several of them: against expectations by brute force."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import expectation, functions_of
from torch import nn
from wide_networks import Net

import ntkit

D = torch.float64
WIDTH, SIGMA_W, SIGMA_B = 8, 1.3, 0.4
SHARE = 1 / (1 + 1e-5)  # of a batch norm at its start, squared
FUNCTIONS = {
    "relu": (F.relu, (0,)),
    "leaky_relu": (lambda x: F.leaky_relu(x, 0.2), (0,)),
    "silu": (F.silu, ()),
    "gelu": (F.gelu, ()),
    "tanh": (torch.tanh, ()),
    "hardswish": (F.hardswish, (-3, 3)),
    "elu": (F.elu, (0,)),
}


@dataclass
class Linear:
    """A linear function of independent vectors, with its derivatives by scales and by shifts."""

    weights: np.ndarray
    scales: dict = field(default_factory=dict)
    shifts: dict = field(default_factory=dict)

    def __add__(self, other):
        def both(a, b):
            return {k: a.get(k, 0.0) + b.get(k, 0.0) for k in {**a, **b}}

        parts = (self.scales, other.scales), (self.shifts, other.shifts)
        return Linear(self.weights + other.weights, *(both(*p) for p in parts))

    def __rmul__(self, c):
        parts = ({k: c * v for k, v in d.items()} for d in (self.scales, self.shifts))
        return Linear(c * self.weights, *parts)

    def normed(self, name):
        h = SHARE**0.5 * self
        return h + Linear(0 * h.weights, {name: h.weights}, {name: 1.0})


def mean_of(f, g, kinks, c):
    """Return E[f(u) g(v) x y] of Gaussians (u, v, x, y) of covariance c, by regression on u and v."""
    on = c[2:, :2] @ np.linalg.pinv(c[:2, :2], 1e-14, hermitian=True)
    rest = c[2, 3] - on[0] @ c[:2, 3]
    at = (c[0, 1], c[0, 0], c[1, 1])

    def times(f, power):
        return lambda x: x**power * f(x)

    def of(i, j):
        return expectation(times(f, i), times(g, j), *at, kinks, kinks)

    total = rest * of(0, 0) + on[0, 0] * on[1, 0] * of(2, 0) + on[0, 1] * on[1, 1] * of(0, 2)
    return total + (on[0, 0] * on[1, 1] + on[0, 1] * on[1, 0]) * of(1, 1)


def one(x):
    return 1 + 0 * x


def oracle(phi, kinks, first, second, base):
    """Return E[h h'] and Theta(h, h') of h = g + phi(u), from g and u of both samples."""
    value, slope, _ = functions_of(phi)
    (g, u), (k, v) = first, second
    n = len(base) // 2
    own = [base[:n, :n], base[n:, n:]]
    across = base[:n, n:]

    def joint(x, y):
        rows = np.zeros((4, len(base)))
        rows[0, :n], rows[1, n:], rows[2, :n], rows[3, n:] = u.weights, v.weights, x, y
        return rows @ base @ rows.T

    zero = np.zeros(n)
    c = joint(zero, zero)
    at = (c[0, 1], c[0, 0], c[1, 1])
    slopes = [
        expectation(slope, one, 0.0, w.weights @ o @ w.weights, 1.0, kinks)
        for w, o in zip((u, v), own, strict=True)
    ]
    both = expectation(slope, slope, *at, kinks, kinks)
    kernel = expectation(value, value, *at, kinks, kinks) + g.weights @ across @ k.weights
    kernel += slopes[0] * (u.weights @ across @ k.weights) + slopes[1] * (g.weights @ across @ v.weights)
    parts = ((g, k, one, one, 1.0), (u, k, slope, one, slopes[0]), (g, v, one, slope, slopes[1]))
    theta = 0.0
    for a, b, f, h, mean in (*parts, (u, v, slope, slope, both)):
        theta += mean * (a.weights @ across @ b.weights)  # of the layers below: Theta = K
        theta += mean * sum(a.shifts[s] * b.shifts[s] for s in a.shifts if s in b.shifts)
        for s in a.scales:
            if s in b.scales:
                theta += mean_of(f, h, kinks, joint(a.scales[s], b.scales[s]))
    return kernel, theta


def kernels(phi, kinks, x, vectors, of):
    """Return the oracle's NNGP and NTK of a mean over positions; ``of``: vectors [k][t] to pairs g, u."""
    n, t, d = x.shape
    bases = np.eye(vectors * t).reshape(vectors, t, -1)
    ends = of([[Linear(b) for b in row] for row in bases])
    gram = SIGMA_W**2 * np.einsum("itd,jsd->ijts", x.numpy(), x.numpy()) / d + SIGMA_B**2
    block = np.stack([[np.kron(np.eye(vectors), gram[i, j]) for j in range(n)] for i in range(n)])
    found = np.zeros((2, n, n))
    for i in range(n):
        for j in range(n):
            base = np.block([[block[i, i], block[i, j]], [block[j, i], block[j, j]]])
            pairs = [oracle(phi, kinks, a, b, base) for a in ends for b in ends]
            found[:, i, j] = np.mean(pairs, 0)
    nngp = SIGMA_W**2 * found[0] + SIGMA_B**2
    return nngp, nngp + SIGMA_W**2 * found[1]


def layers(norms, vectors=("a", "b", "c")):
    parts = {name: nn.BatchNorm1d(WIDTH) for name in norms}
    parts |= {name: nn.Conv1d(3, WIDTH, 1) for name in vectors}
    return {**parts, "o": nn.Linear(WIDTH, 1)}


def nothing(h):
    return 0.0 * h


# what h is in torch, and from vectors at positions the pairs (g, u) of h = g + phi(u)
NETWORKS = {
    "a sum of two norms": (
        lambda s, x, f: f(s.p(s.a(x)) + s.q(s.b(x))),
        lambda z: [(nothing(a), a.normed("p") + b.normed("q")) for a, b in zip(*z[:2], strict=True)],
    ),
    "three norms and their multiples": (
        lambda s, x, f: f(s.p(s.a(x)) - 0.5 * s.q(s.b(x)) + 1.5 * s.r(s.c(x))),
        lambda z: [
            (nothing(a), a.normed("p") + -0.5 * b.normed("q") + 1.5 * c.normed("r"))
            for a, b, c in zip(*z, strict=True)
        ],
    ),
    "a norm and a vector without": (
        lambda s, x, f: f(s.p(s.a(x)) + s.b(x)),
        lambda z: [(nothing(a), a.normed("p") + b) for a, b in zip(*z[:2], strict=True)],
    ),
    "two norms of one vector": (
        lambda s, x, f: f(s.p(s.a(x)) + 0.3 * s.q(s.a(x)) + s.a(x)),
        lambda z: [(nothing(a), a.normed("p") + 0.3 * a.normed("q") + a) for a in z[0]],
    ),
    "one norm of two vectors": (
        lambda s, x, f: f(s.p(s.a(x)) + 2 * s.p(s.b(x))),
        lambda z: [(nothing(a), a.normed("p") + 2.0 * b.normed("p")) for a, b in zip(*z[:2], strict=True)],
    ),
    "a norm of a norm, and a third": (
        lambda s, x, f: f(s.q(s.p(s.a(x)) + s.b(x)) + s.r(s.c(x))),
        lambda z: [
            (nothing(a), (a.normed("p") + b).normed("q") + c.normed("r")) for a, b, c in zip(*z, strict=True)
        ],
    ),
    "a mean over positions between": (
        lambda s, x, f: f(F.avg_pool1d(s.p(s.a(x)), 2) + s.q(s.b(x)).mean(2, keepdim=True)),
        lambda z: [(nothing(z[0][0]), mean(z[0], "p") + mean(z[1], "q"))],
    ),
    "positions that meet others": (
        lambda s, x, f: f(s.p(s.a(x)) + s.q(s.b(x)).flip(2)),
        lambda z: [
            (nothing(a), a.normed("p") + b.normed("q")) for a, b in zip(z[0], z[1][::-1], strict=True)
        ],
    ),
    "the function meets the norm in it": (
        lambda s, x, f: (lambda p: p + f(p + s.q(s.b(x))))(s.p(s.a(x))),
        lambda z: [(a.normed("p"), a.normed("p") + b.normed("q")) for a, b in zip(*z[:2], strict=True)],
    ),
    "the function meets a multiple of both": (
        lambda s, x, f: (lambda u: f(u) - 0.7 * u)(s.p(s.a(x)) + s.q(s.b(x))),
        lambda z: [
            (-0.7 * (a.normed("p") + b.normed("q")), a.normed("p") + b.normed("q"))
            for a, b in zip(*z[:2], strict=True)
        ],
    ),
    "the function meets one norm of another vector": (
        lambda s, x, f: s.p(s.c(x)) + f(s.p(s.a(x)) + s.q(s.b(x))),
        lambda z: [(c.normed("p"), a.normed("p") + b.normed("q")) for a, b, c in zip(*z, strict=True)],
    ),
}


def mean(row, name):
    first, second = row
    return 0.5 * first.normed(name) + 0.5 * second.normed(name)


def inputs(seed, scale=1.0):
    x = torch.randn(3, 2, 3, dtype=D, generator=torch.Generator().manual_seed(seed))
    return scale * x


def limit(name, phi, x, **options):
    def of(s, x):
        return s.o(NETWORKS[name][0](s, x.mT, phi).mean(2))

    model = Net(of, **layers("pqr")).to(x.dtype).eval()
    return ntkit.infinite_width(model, x[:1], sigma_w=SIGMA_W, sigma_b=SIGMA_B, **options)


def compared(name, function, x, rtol):
    phi, kinks = FUNCTIONS[function]
    found = limit(name, phi, x)
    nngp, ntk = kernels(phi, kinks, x, 3, NETWORKS[name][1])
    np.testing.assert_allclose(found.nngp(x).numpy(), nngp, rtol=rtol)
    np.testing.assert_allclose(found.ntk(x).numpy(), ntk, rtol=rtol)
    np.testing.assert_allclose(found.ntk.diag(x).numpy(), ntk.diagonal(), rtol=rtol)
    assert found.error < 1e-8  # nothing was sampled


FEW = ("three norms and their multiples", "the function meets the norm in it")  # whatever the function
OFTEN = ("relu", "silu")  # whatever the network


@pytest.mark.parametrize(
    ("name", "function"), [(n, f) for n in NETWORKS for f in FUNCTIONS if n in FEW or f in OFTEN]
)
def test_several_scales_in_closed_form(name, function):
    compared(name, function, inputs(0, 0.5)[:2], 1e-9)


@pytest.mark.parametrize(
    ("seed", "scale", "function", "rtol"),
    [
        (1, 0.1, "relu", 1e-9),
        (2, 4.0, "relu", 1e-9),
        pytest.param(1, 0.1, "silu", 1e-6, marks=pytest.mark.slow),
        pytest.param(2, 4.0, "silu", 1e-6, marks=pytest.mark.slow),
    ],
)
def test_small_and_large_inputs(seed, scale, function, rtol):
    for name in FEW:
        compared(name, function, inputs(seed, scale)[:2], rtol)


@pytest.mark.parametrize("function", OFTEN)
@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-8])
def test_samples_that_are_close(distance, function):
    # their kernel is close to that of one with itself, and to its change with the distance
    first = inputs(3, 0.5)[:1]
    x = torch.cat([first, first + distance * inputs(4)[:1]])
    for name in FEW:
        phi, kinks = FUNCTIONS[function]
        found = limit(name, phi, x).ntk(x).numpy()
        if distance >= 1e-4:
            _, wanted = kernels(phi, kinks, x, 3, NETWORKS[name][1])
            np.testing.assert_allclose(found[0, 1], wanted[0, 1], rtol=1e-8)
        assert abs(found[0, 1] - found[0, 0]) <= 5 * distance * found[0, 0] + 1e-7  # of roots of rounding


def test_single_precision():
    for name in ("three norms and their multiples", "one norm of two vectors"):
        for distance in (1.0, 1e-2, 1e-3, 1e-4, 0.0):
            first = inputs(3, 0.5)[:1]
            x = torch.cat([first, first + distance * inputs(4)[:1]])
            double, single = (limit(name, F.relu, x.to(t)).ntk(x.to(t)).double() for t in (D, torch.float32))
            assert (double - single).abs().max() <= 5e-4 * double.max()


def test_equal_opposite_and_zero_samples():
    class Bare(nn.Module):  # nothing but products: a sample of zeros gives zeros
        def __init__(self):
            super().__init__()
            self.a, self.b = (nn.Linear(3, WIDTH, bias=False) for _ in "ab")
            self.p, self.q = (nn.BatchNorm1d(WIDTH) for _ in "pq")
            self.o = nn.Linear(WIDTH, 1, bias=False)

        def forward(self, x):
            return self.o(torch.relu(self.p(self.a(x)) + 2 * self.q(self.b(x))))

    x = inputs(5)[0, :1]
    x = torch.cat([x, x, -x, 0 * x, 3 * x])
    ntk = ntkit.infinite_width(Bare().to(D).eval(), x[:1], sigma_w=1.0).ntk
    found, k = ntk(x), SHARE * float(x[0].square().sum()) / 3
    one = 2.5 * k + 0.5 * 5 * k + 0.5 * 5 * k  # K, the layers below, the scales: E[f f' (x x' + 4 y y')]
    for i, j, factor in ((0, 0, 1), (0, 1, 1), (4, 4, 9), (0, 4, 3)):
        np.testing.assert_allclose(found[i, j], factor * one + 0.5 * 5, rtol=1e-8)  # and the shifts
    np.testing.assert_allclose(found[2, :2], 0, atol=1e-12)
    np.testing.assert_allclose(found[3, :3], 0, atol=1e-12)  # autograd takes phi'(0) = 0
    np.testing.assert_allclose(ntk.diag(x).numpy(), found.diagonal(), rtol=1e-12)


def test_many_draws_agree_with_the_oracle():
    # E[f f' x y] of four Gaussians by draws
    generator = np.random.default_rng(0)
    root = generator.normal(size=(4, 4))
    c = root @ root.T
    u, v, x, y = np.linalg.cholesky(c) @ generator.normal(size=(4, 2_000_000))
    for function in ("relu", "silu", "hardswish"):
        phi, kinks = FUNCTIONS[function]
        _, f, _ = functions_of(phi)
        products = f(u) * f(v) * x * y
        wanted = mean_of(f, f, kinks, c)
        assert abs(products.mean() - wanted) < 4 * products.std() / len(u) ** 0.5
