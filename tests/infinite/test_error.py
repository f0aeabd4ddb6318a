"""`limit.error` is a promise: the true error is at most twice the one that is reported, plus rounding."""

import itertools
import math

import numpy as np
import pytest
import torch
from oracle import expectation, functions_of
from table_of_duals import CASES
from torch import nn
from torch.nn import functional as F
from wide_networks import CASES as NETWORKS

import ntkit
from ntkit.errors import BadValueError
from ntkit.infinite.refinement import ToleranceWarning

ROUNDING = 1e-12
STEEP = (-2, -1, -0.5, -0.25, -0.1, 0, 0.1, 0.25, 0.5, 1, 2)  # where the oracle splits what is steep at zero

OWN = {  # of one's own: the function and where the oracle splits it
    "steep tanh": (lambda x: torch.tanh(6 * x), STEEP),
    "steep sigmoid": (lambda x: torch.sigmoid(8 * x - 1), tuple(x + 0.125 for x in STEEP)),
    "runge": (lambda x: 1 / (1 + 4 * x * x), STEEP),
    "root": (lambda x: (x * x + 0.05).sqrt(), STEEP),
    "atan": (lambda x: torch.atan(3 * x), STEEP),
    "softsign": (F.softsign, STEEP),
    "sinc": (lambda x: torch.sinc(x / 2), ()),
    "fast sine": (lambda x: torch.sin(5 * x) + x, tuple(np.linspace(-9, 9, 37))),
    "chirp": (lambda x: torch.sin(x * x) * torch.exp(-x * x / 8), tuple(np.linspace(-9, 9, 37))),
    "log": (lambda x: torch.log1p(x * x), STEEP),
    "shifted relu": (lambda x: F.relu(x - 0.7), (0.7,)),
    "ramp": (lambda x: x.clamp(-0.4, 0.9) ** 2, (-0.4, 0.9)),
    "triangle": (lambda x: F.relu(1 - (x - 0.3).abs()), (-0.7, 0.3, 1.3)),
    "relu of sine": (lambda x: F.relu(torch.sin(2 * x)), tuple(math.pi / 2 * k for k in range(-12, 13))),
    "larger of two": (lambda x: torch.maximum(x, x * x - 1), ((1 - 5**0.5) / 2, (1 + 5**0.5) / 2)),
    "silu squared": (lambda x: F.silu(x).square(), ()),
    "tanh shrink": (F.tanhshrink, STEEP),
    "swish of 3": (lambda x: x * torch.sigmoid(3 * x), STEEP),
    "exp tanh": (lambda x: torch.exp(torch.tanh(x)), STEEP),
    "erf and relu": (lambda x: torch.erf(x) + F.relu(x), (0,)),
    "sign and tanh": (lambda x: torch.sign(x) + torch.tanh(x), (0,)),
    "stairs": (lambda x: torch.floor(2 * x.clamp(-3, 3)) / 2, tuple(k / 2 for k in range(-6, 7))),
}
FUNCTIONS = {name: (dual, phi, kinks) for name, (dual, phi, kinks) in CASES.items()}
FUNCTIONS |= {name: (ntkit.dual(phi), phi, places) for name, (phi, places) in OWN.items()}
POINTS = [(1.0, 1.0, 0.5), (2.0, 0.5, -0.9), (1.5, 1.5, 0.9999), (0.4, 9.0, 0.97)]
FEW = ("relu", "gelu", "tanh", "silu", "softplus", "elu", "hardtanh", "hardshrink", "relu6", "clamp")
FEW += ("steep tanh", "runge", "root", "softsign", "ramp", "triangle", "erf and relu", "larger of two")
FEW += ("silu squared", "stairs")


def test_there_are_sixty_functions():
    assert len(FUNCTIONS) >= 60 and set(FEW) <= set(FUNCTIONS) and len(FEW) >= 20


@pytest.mark.parametrize(
    "name", [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in FUNCTIONS]
)
def test_of_functions(name):
    dual, phi, kinks = FUNCTIONS[name]
    for var1, var2, rho in POINTS:
        at = (rho * (var1 * var2) ** 0.5, var1, var2)
        found = dual(*at)
        for value, f in zip(found, functions_of(phi), strict=False):
            one, two = (expectation(f, f, v, v, v, kinks, kinks) for v in at[1:])
            true = abs(value.item() - expectation(f, f, *at, kinks, kinks)) / max((one * two) ** 0.5, 1e-300)
            assert true <= 2 * dual.error + ROUNDING, (at, true, dual.error)


class Plain(nn.Module):
    """A network of layers y = W phi(x) + b with one function of one's own."""

    def __init__(self, phi, depth):
        super().__init__()
        sizes = [3] + [8] * depth
        self.phi = phi
        self.inner = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.last = nn.Linear(8, 1)

    def forward(self, x):
        for layer in self.inner:
            x = self.phi(layer(x))
        return self.last(x)


SIGMA_W, SIGMA_B = 1.4, 0.3


def exact(phi, kinks, depth, x):
    """NNGP and NTK of such a network by brute force."""
    value, slope, _ = functions_of(phi)
    k = SIGMA_W**2 * x @ x.T / x.shape[1] + SIGMA_B**2
    theta = k.copy()
    for _ in range(depth):
        moments = np.empty((2, *k.shape))
        for i, j in itertools.combinations_with_replacement(range(len(x)), 2):
            at = k[i, j], k[i, i], k[j, j]
            found = [expectation(f, f, *at, kinks, kinks) for f in (value, slope)]
            moments[:, i, j] = moments[:, j, i] = found
        k = SIGMA_W**2 * moments[0] + SIGMA_B**2
        theta = k + SIGMA_W**2 * moments[1] * theta
    return k, theta


def off(found, wanted):
    """Return how far a kernel is off, relative to its diagonal."""
    scale = np.sqrt(np.outer(wanted.diagonal(), wanted.diagonal()))
    return float((np.abs(found.numpy() - wanted) / scale).max())


def promised(limit, x, nngp, ntk, tol=None):
    for kernel, wanted in ((limit.nngp, nngp), (limit.ntk, ntk)):
        found = kernel(x)
        assert off(found, wanted) <= 2 * limit.error + ROUNDING, (
            kernel.kind,
            off(found, wanted),
            limit.error,
        )
    assert tol is None or limit.error <= tol


X = torch.tensor([[1.0, -0.4, 0.3], [0.9, -0.5, 0.35], [-0.7, 2.0, 0.1]], dtype=torch.float64)
MLPS = [(name, depth) for name in ("tanh", "silu", "elu", "hardtanh", "mish") for depth in (1, 3)]
MLPS += [("gelu", 2), ("steep tanh", 2), ("ramp", 2), ("triangle", 1), ("larger of two", 2), ("softsign", 2)]
MLPS += [("relu of sine", 1), ("root", 2), ("steep sigmoid", 2), ("swish of 3", 3)]
MLPS += [("erf and relu", 2), ("sign and tanh", 2)]
QUICK = [
    ("tanh", 1),
    ("erf and relu", 2),
    ("elu", 1),
    ("gelu", 2),
    ("ramp", 2),
    ("triangle", 1),
    ("hardtanh", 1),
]


@pytest.mark.parametrize(
    ("name", "depth"), [m if m in QUICK else pytest.param(*m, marks=pytest.mark.slow) for m in MLPS]
)
def test_of_networks_that_are_integrated(name, depth):
    _, phi, kinks = FUNCTIONS[name]
    limit = ntkit.infinite_width(Plain(phi, depth).double(), X[:1], SIGMA_W, SIGMA_B)
    assert limit.error == 0
    promised(limit, X, *exact(phi, kinks, depth, X.numpy()))


SAMPLED = ["siamese product", "max pooling", "two post-activation blocks", "depthwise convolution"]
SAMPLED += ["softmax attention", "causal attention", "transformer layer", "GRUCell", "LSTMCell", "ResNet"]
SAMPLED += ["step", "SwiGLU", "layer norm between ReLUs", "squeeze and excitation", "detach"]
SAMPLED_QUICK = ["SwiGLU", "max pooling", "softmax attention", "two post-activation blocks"]


@pytest.mark.parametrize(
    "name", [n if n in SAMPLED_QUICK else pytest.param(n, marks=pytest.mark.slow) for n in SAMPLED]
)
def test_of_networks_of_many_kinds(name):
    case = NETWORKS[name]
    x = case.inputs(16, 3)
    net = case.network(16)
    fine = ntkit.infinite_width(net, x[:1], samples=2**14, seed=5)
    fine.numerics.levels["nodes"] = 2
    nngp, ntk = fine.nngp(x).numpy(), fine.ntk(x).numpy()
    promised(ntkit.infinite_width(net, x[:1], samples=2**10), x, nngp, ntk)


def test_there_are_thirty_networks():
    assert len(MLPS) + len(SAMPLED) >= 30


class Gated(nn.Module):
    """A function of two vectors, which is sampled."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, x):
        return self.c(torch.maximum(self.a(x), self.b(x) * torch.tanh(self.a(x))))


class Centered(Gated):
    """The same behind a layer norm, whose error grows by E[h^2] / Var[h]."""

    def __init__(self):
        super().__init__()
        self.norm, self.d = nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 8)

    def forward(self, x):
        h = torch.sqrt(1 + torch.maximum(self.a(x), self.b(x) * torch.tanh(self.a(x))).square() / 4)
        return self.c(torch.tanh(self.d(self.norm(h))))


def test_of_a_network_with_a_layer_norm():
    net = Centered().double()
    fine = ntkit.infinite_width(net, X[:1], samples=2**12, seed=5)
    limit = ntkit.infinite_width(net, X[:1], samples=2**9)
    promised(limit, X, fine.nngp(X).numpy(), fine.ntk(X).numpy())


@pytest.mark.slow  # compiles
def test_compiled_tiles_have_the_same_error():
    net = Plain(FUNCTIONS["erf and relu"][1], 1).double()
    limits = [ntkit.infinite_width(net, X[:1], compile=compile) for compile in (True, False)]
    kernels = [limit.ntk(X.repeat(2, 1)) for limit in limits]
    torch.testing.assert_close(*kernels)
    assert limits[0].error == pytest.approx(limits[1].error, rel=1e-6) and limits[0].error > 0


def test_a_tolerance_is_reached_with_more_points():
    net = Gated().double()
    coarse = ntkit.infinite_width(net, X[:1], samples=2**9)
    coarse.ntk(X)
    limit = ntkit.infinite_width(net, X[:1], samples=2**9, tol=0.02)
    kernel = limit.ntk(X)
    assert limit.error <= 0.02 < coarse.error
    assert f"{limit.numerics.count} points" in repr(limit) and limit.numerics.count > 2**9
    wanted = ntkit.infinite_width(net, X[:1], samples=2**15, seed=3).ntk(X).numpy()
    assert off(kernel, wanted) <= 0.04
    assert torch.equal(limit.ntk(X), kernel)  # it stays as fine as it was made


@pytest.mark.parametrize(
    ("name", "tol"), [pytest.param("steep tanh", 1e-6, marks=pytest.mark.slow), ("root", 1e-9)]
)
def test_a_tolerance_is_reached_with_more_nodes_and_terms(name, tol):
    phi = FUNCTIONS[name][1]
    net, x = Plain(phi, 1).double(), X[[0, 2]]
    limit = ntkit.infinite_width(net, x[:1], 3.0, SIGMA_B)
    limit.ntk(x)
    finer = ntkit.infinite_width(net, x[:1], 3.0, SIGMA_B, tol=tol)
    finer.ntk(x)
    assert finer.error <= tol < limit.error and finer.numerics.fineness > 1


def test_a_tolerance_that_is_not_reached_says_what_was():
    limit = ntkit.infinite_width(Gated().double(), X[:1], samples=2**9, tol=1e-9)
    with pytest.warns(ToleranceWarning, match=r"tol=1e-09 is not reached: with \d+ points.*maximum"):
        limit.ntk(X)
    assert limit.error > 1e-9


def test_closed_forms_meet_any_tolerance():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 1)).double()
    limit = ntkit.infinite_width(net, X[:1], tol=1e-15)
    limit.ntk(X)
    assert limit.error == 0 and "note" not in repr(limit)


@pytest.mark.parametrize("tol", [0.0, -1.0, math.nan, "small"])
def test_a_tolerance_is_a_positive_number(tol):
    with pytest.raises(BadValueError, match="tol="):
        ntkit.infinite_width(Gated(), X[:1].float(), tol=tol)


SERIES = [pytest.param(kind, marks=pytest.mark.slow) for kind in (nn.SiLU, nn.Softplus)]


@pytest.mark.parametrize("kind", [nn.ReLU, nn.GELU, nn.ELU, nn.Identity, *SERIES])
@pytest.mark.parametrize("call", ["nngp", "ntk", "diag"])
def test_kernels_that_overflow_are_refused_by_line(kind, call):
    layers = [part for _ in range(4) for part in (nn.Linear(3, 3), kind())]
    limit = ntkit.infinite_width(nn.Sequential(*layers, nn.Linear(3, 1)).double(), X[:1], sigma_w=1e45)
    with pytest.raises(BadValueError, match=r"overflows at line [gh]\d of the program .*, module '\d'"):
        limit.ntk.diag(X) if call == "diag" else getattr(limit, call)(X)


def test_an_overflow_of_float32_has_a_way_out():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
    with pytest.raises(BadValueError, match=r"line g1 .* float64 holds more"):
        ntkit.infinite_width(net, X[:1].float()).ntk(X.float() * 1e25)
    wide = ntkit.infinite_width(net.double(), X[:1]).ntk(X * 1e25)
    assert torch.isfinite(wide).all()


def test_the_kernels_of_lines_are_refused_too():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    layers = ntkit.infinite_width(net, X[:1], sigma_w=1e100).layers
    assert torch.isfinite(layers["h1"].ntk(X)).all()
    with pytest.raises(BadValueError, match="line g2"):
        layers["h2"].ntk(X)
