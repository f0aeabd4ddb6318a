"""Every rule is met by some network, and the limit of that network by finite draws."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Linear, ReLU, Sequential
from wide_networks import CASES, Net

import ntkit
from ntkit.graph import trace
from ntkit.infinite.program import LIMIT_RULES
from ntkit.network import network

WIDTH = 128
SIGMAS = {"sigma_w": 1.4, "sigma_b": 0.3}
relu = torch.relu

# the same function under another name, or what a graph of one sample in eval mode does not hold
ALIASES = {
    "multiply.Scalar",
    "multiply.Tensor",
    "_log_softmax.default",
    "_softmax.default",
    "_to_copy.default",
    "_unsafe_view.default",
    "addmm.default",
    "alias.default",
    "bmm.default",
    "clone.default",
    "constant_pad_nd.default",
    "conv1d.default",
    "convolution.default",
    "div.Scalar",
    "expand_as.default",
    "instance_norm.default",  # refused
    "lift_fresh_copy.default",
    "masked_fill.Tensor",
    "max.default",  # refused
    "min.default",  # refused
    "mm.default",
    "mul.Scalar",
    "numpy_T.default",
    "prod.default",  # refused
    "rsub.Tensor",
    "split.sizes",
    "squeeze.default",
    "squeeze.dims",
    "swapaxes.default",
    "t.default",
    "to.device",
    "to.dtype_layout",
    "to.other",
}


def tokens(of, **parts):
    """Return a network that applies something to vectors at tokens, then a ReLU and a mean."""

    def call(s, x):
        return s.o(relu(of(s, s.a(x))).mean(1))

    return Net(call, a=Linear(3, WIDTH), o=Linear(WIDTH, 1), **parts), (4, 3)


def picture(of, **parts):
    """Return a network that applies something to the pixels of a convolution, then a ReLU and a mean."""

    def call(s, x):
        return s.o(relu(of(s, s.a(x))).mean((2, 3)))

    return Net(call, a=nn.Conv2d(2, WIDTH, 3, padding=1), o=Linear(WIDTH, 1), **parts), (2, 4, 4)


def ends(*layers, shape, outputs=1):
    """Return layers, flattened and read out."""
    return Sequential(*layers, nn.Flatten(), Linear(outputs * WIDTH, 1)), shape


def square():
    return Linear(WIDTH, WIDTH)


def conv(**options):
    return nn.Conv2d(WIDTH, WIDTH, 3, **options)


HIDDEN = torch.tensor([True, False, False, True])[:, None]
OPERATIONS = {
    "log_softmax": lambda: tokens(lambda s, h: torch.log_softmax(h, 1)),
    "masked_fill": lambda: tokens(lambda s, h: h.masked_fill(HIDDEN, 0.5)),
    "where": lambda: tokens(lambda s, h: torch.where(HIDDEN, h, relu(h) - h)),
    "where, a number": lambda: tokens(lambda s, h: torch.where(HIDDEN, h, 0.5)),
    "a number, where": lambda: tokens(lambda s, h: torch.where(HIDDEN, 0.5, h)),
    "slices": lambda: tokens(lambda s, h: h[:, 1:] * 2 - h[:, :-1]),
    "slices with a step": lambda: tokens(lambda s, h: h[:, ::2] - h[:, 1::2]),
    "narrow": lambda: tokens(lambda s, h: h.narrow(1, 1, 2)),
    "index_select": lambda: tokens(lambda s, h: h + h.index_select(1, torch.tensor([3, 0, 0, 1]))),
    "flip": lambda: tokens(lambda s, h: s.b(h.flip(1)) + s.b(h), b=square()),
    "roll": lambda: tokens(lambda s, h: s.b(h) + s.b(h.roll(1, 1)), b=square()),
    "halves swapped": lambda: tokens(lambda s, h: torch.cat(h.split(WIDTH // 2, -1)[::-1], -1)),
    "split": lambda: tokens(lambda s, h: relu(h.split(2, 1)[0]) + h.split(2, 1)[1]),
    "split by sizes": lambda: tokens(lambda s, h: relu(h.split([1, 3], 1)[0]) + h.split([1, 3], 1)[1]),
    "rsub": lambda: tokens(lambda s, h: 1 - relu(h)),
    "neg": lambda: tokens(lambda s, h: s.b(-h) + h, b=square()),
    "in place": lambda: tokens(lambda s, h: s.b(relu(h)).sub_(h).mul_(2.0).div_(3.0), b=square()),
    "sum over positions": lambda: tokens(lambda s, h: relu(h).sum(1, keepdim=True) / 2),
    "zeros around": lambda: tokens(lambda s, h: s.b(F.pad(relu(h), (0, 0, 1, 2))), b=square()),
    "cropped": lambda: tokens(lambda s, h: F.pad(h, (0, 0, -1, 1)) + h),
    "other dropouts": lambda: tokens(
        lambda s, h: s.d(s.e(h)), d=nn.AlphaDropout(0.2), e=nn.FeatureAlphaDropout(0.2)
    ),
    "dropout of channels": lambda: picture(lambda s, h: s.d(h), d=nn.Dropout2d(0.2)),
    "RNN of ReLU": lambda: (
        Net(
            lambda s, x: s.o(s.g(x)[0].mean(1)),
            g=nn.RNN(3, WIDTH, nonlinearity="relu", batch_first=True),
            o=Linear(WIDTH, 1),
        ),
        (3, 3),
    ),
    "cell of ReLU": lambda: (
        Net(
            lambda s, x: s.o(s.g(x[:, 1], s.g(x[:, 0]))),
            g=nn.RNNCell(3, WIDTH, nonlinearity="relu"),
            o=Linear(WIDTH, 1),
        ),
        (2, 3),
    ),
    "same in 1d": lambda: ends(nn.Conv1d(2, WIDTH, 3, padding="same"), ReLU(), shape=(2, 5), outputs=5),
    "same in 3d": lambda: ends(nn.Conv3d(2, WIDTH, 3, padding="same"), ReLU(), shape=(2, 2, 2, 2), outputs=8),
    "transposed in 2d": lambda: ends(
        nn.ConvTranspose2d(2, WIDTH, 3, stride=2, padding=1, output_padding=1),
        ReLU(),
        nn.AdaptiveAvgPool2d(1),
        shape=(2, 3, 3),
    ),
    "transposed in groups": lambda: ends(
        nn.Conv2d(2, WIDTH, 1),
        ReLU(),
        nn.ConvTranspose2d(WIDTH, WIDTH, 2, stride=2, groups=4),
        ReLU(),
        nn.AdaptiveAvgPool2d(1),
        shape=(2, 3, 3),
    ),
    "transposed in 3d": lambda: ends(
        nn.ConvTranspose3d(2, WIDTH, 2, stride=2), ReLU(), nn.AdaptiveAvgPool3d(1), shape=(2, 2, 2, 2)
    ),
    "transposed, each channel for itself": lambda: ends(
        nn.Conv2d(2, WIDTH, 1),
        ReLU(),
        nn.ConvTranspose2d(WIDTH, WIDTH, 3, stride=2, groups=WIDTH),
        ReLU(),
        nn.AdaptiveAvgPool2d(1),
        shape=(2, 3, 3),
    ),
    "nearest pixels": lambda: picture(lambda s, h: s.b(F.interpolate(relu(h), scale_factor=2)), b=conv()),
    "bilinear": lambda: picture(
        lambda s, h: F.interpolate(relu(h), scale_factor=2, mode="bilinear", align_corners=False)
    ),
    "bilinear between corners": lambda: picture(
        lambda s, h: s.b(F.interpolate(h, size=(5, 5), mode="bilinear", align_corners=True)), b=conv()
    ),
    "average without the zeros": lambda: picture(
        lambda s, h: F.avg_pool2d(relu(h), 3, 2, 1, count_include_pad=False)
    ),
    "average in 3d": lambda: ends(nn.Conv3d(2, WIDTH, 2), ReLU(), nn.AvgPool3d(2), shape=(2, 3, 3, 3)),
    "max in 2d": lambda: ends(
        nn.Conv2d(2, WIDTH, 3, padding=1), nn.MaxPool2d(2), ReLU(), shape=(2, 4, 4), outputs=4
    ),
    "max in 3d": lambda: ends(nn.Conv3d(2, WIDTH, 2), ReLU(), nn.MaxPool3d(2), shape=(2, 3, 3, 3)),
    "adaptive max in 1d": lambda: ends(
        nn.Conv1d(2, WIDTH, 3, padding=1), ReLU(), nn.AdaptiveMaxPool1d(2), shape=(2, 6), outputs=2
    ),
    "adaptive max in 2d": lambda: ends(
        nn.Conv2d(2, WIDTH, 3, padding=1), ReLU(), nn.AdaptiveMaxPool2d(2), shape=(2, 4, 4), outputs=4
    ),
}


INDEX = torch.tensor([3, 0, 0, 1])


def everywhere(h):
    """Return a fixed index of tokens, repeated along the channels."""
    return INDEX[:, None].expand(h.shape[0], -1, h.shape[2])


def messages(s, h):
    sums = torch.zeros_like(h).scatter_add(1, everywhere(h), s.b(relu(h)))
    means = h.new_zeros(h.shape).scatter_reduce(1, everywhere(h), h, "mean", include_self=False)
    return sums + means - h.new_full(h.shape, 0.1).index_add(1, INDEX, h, alpha=0.5)


def reduced(s, h):
    return h.new_zeros(h.shape).index_reduce(1, INDEX, s.b(relu(h)), "mean", include_self=False) + h


def entries(s, h):
    return s.b(h.gather(1, everywhere(h))) + h[:, INDEX] + h.repeat(1, 2, 1)[:, 2:6]


def apart(s, h):
    first, rest = h.repeat_interleave(2, 1).tensor_split([2], 1)
    return s.b(rest[:, :2]) - first


def fills(s, h):
    h = h * torch.full_like(h, 0.5) + torch.ones_like(h) - h.new_ones(1)
    into = torch.empty_like(h).copy_(s.b(h).type_as(h))
    return into + h.new_empty(1).fill_(0.2)


def turned(s, h):
    h = h.unflatten(1, (2, 2)).movedim(1, 2).movedim((1, 2), (2, 1)).flatten(1, 2)
    return s.b(h).moveaxis(1, 2).moveaxis((1,), (2,)).swapdims(0, 0) + h


def matrices(s, h):
    h = torch.einsum("ts,bsc->btc", s.m, relu(h))
    return torch.baddbmm(s.b(h), s.m.expand(h.shape[0], -1, -1), h, alpha=0.5)


def by_hand(s, h):
    mean = h.mean(-1, keepdim=True)
    h = (h - mean) / (h.var(-1, keepdim=True, correction=0) + h.var(-1, unbiased=False)[..., None]).sqrt()
    h = relu(h) / (relu(h).std(-1, keepdim=True, correction=0) + relu(h).std(-1, True, keepdim=True))
    return s.b(h) / s.b(h).norm(dim=-1, keepdim=True) * h.shape[-1] ** 0.5


def by_both(s, h):
    (var, mean), (again, _) = torch.var_mean(h, -1, correction=0), torch.var_mean(h, -1, unbiased=False)
    h = relu((h - mean[..., None]) / (var + again)[..., None].sqrt())
    (std, mean), (again, _) = torch.std_mean(h, -1, correction=0), torch.std_mean(h, -1, unbiased=False)
    return s.b((h - mean[..., None]) / (std + again)[..., None])


def over_tokens(s, h):
    high, low = h.amax(1, keepdim=True), h.tanh().amin(1, keepdim=True)
    return h - high + low + h.max(1, keepdim=True).values - 0.5 * h.min(1, keepdim=True).values


def sums_and_products(s, h):
    return h.cumsum(1) / 2 + h.logsumexp(1, keepdim=True) - h[:, :2].prod(1, keepdim=True) / 4


def complex_numbers(s, h):
    def turned(t):
        z = torch.view_as_complex(t.unflatten(-1, (8, -1, 2)).transpose(1, 2))
        return torch.view_as_real(z * torch.polar(torch.ones_like(s.c), s.c)).flatten(-2)

    a = F.scaled_dot_product_attention(
        turned(s.q(h)), turned(s.k(h)), s.b(h).unflatten(-1, (8, -1)).transpose(1, 2)
    )
    return a.transpose(1, 2).flatten(2)


OPERATIONS |= {
    "maxima and minima over tokens": lambda: tokens(over_tokens),
    "running sums and products of tokens": lambda: tokens(sums_and_products),
    "rotations by complex numbers": lambda: tokens(
        complex_numbers, q=square(), k=square(), b=square(), c=torch.arange(32).reshape(4, 8) / 9
    ),
    "sums into places": lambda: tokens(messages, b=square()),
    "means into places": lambda: tokens(reduced, b=square()),
    "entries by an index": lambda: tokens(entries, b=square()),
    "cut in two": lambda: tokens(apart, b=square()),
    "numbers of a shape": lambda: tokens(fills, b=square()),
    "dimensions moved": lambda: tokens(turned, b=square()),
    "matrices of numbers": lambda: tokens(matrices, b=square(), m=torch.eye(4).roll(1, 0) + 0.5),
    "norms by hand": lambda: tokens(by_hand, b=square()),
    "norms by hand, both at once": lambda: tokens(by_both, b=square()),
    "max in 1d with places": lambda: tokens(
        lambda s, h: F.max_pool1d(h.mT, 2, return_indices=True)[0].mT,
    ),
    "max in 2d with places": lambda: picture(lambda s, h: F.max_pool2d(h, 2, return_indices=True)[0]),
    "max in 3d with places": lambda: ends(
        nn.Conv3d(2, WIDTH, 2), First(nn.MaxPool3d(2, return_indices=True)), ReLU(), shape=(2, 3, 3, 3)
    ),
    "adaptive max in 3d": lambda: ends(
        nn.Conv3d(2, WIDTH, 2), ReLU(), nn.AdaptiveMaxPool3d((1, 1, 2)), shape=(2, 3, 3, 3), outputs=2
    ),
}


class First(nn.Module):
    """The first of several results."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)[0]


def built(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, shape = OPERATIONS[name]()
        return model.double().eval(), torch.randn(2, *shape, dtype=torch.float64)


LIKE_OTHERS = {  # of other dimensions or spellings; windows and reductions have tests of their own
    "where, a number", "a number, where", "slices with a step", "split by sizes", "same in 3d",
    "transposed in groups", "transposed in 3d", "bilinear between corners", "average in 3d", "max in 3d",
    "adaptive max in 1d", "max in 1d with places", "max in 3d with places", "adaptive max in 3d",
    "rotations by complex numbers", "norms by hand, both at once", "running sums and products of tokens",
    "maxima and minima over tokens", "means into places", "transposed, each channel for itself",
    "dropout of channels", "RNN of ReLU", "cell of ReLU", "matrices of numbers",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in LIKE_OTHERS)) for n in OPERATIONS]
)
def test_the_limit_is_met_by_finite_draws(name):
    model, x = built(name)
    limit = ntkit.infinite_width(model, x[:1], samples=2**10, **SIGMAS)
    drawn = ntkit.monte_carlo(model, 24, x, seed=2, **SIGMAS)
    for found, mean, error in (
        (limit.nngp(x), drawn.nngp, drawn.nngp_error),
        (limit.ntk(x), drawn.ntk, drawn.ntk_error),
    ):
        allowed = 4 * error + 4 / WIDTH * found.abs().max()
        assert ((found - mean).abs() <= allowed).all()
        assert allowed.max() < 0.45 * found.abs().max()  # a factor of 2 that is wrong is seen


@pytest.mark.filterwarnings("ignore:index_reduce:UserWarning")
def test_every_rule_is_met_by_a_network():
    met = set()
    for model, x in [(c.network(16), c.inputs(16, 1)) for c in CASES.values()] + [
        (model, x[:1]) for model, x in map(built, OPERATIONS)
    ]:
        met |= {node.target for node in trace(network(model), x).nodes}
    left = {str(op).removeprefix("aten.") for op in LIMIT_RULES if op not in met}
    assert left <= ALIASES
