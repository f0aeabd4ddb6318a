"""Networks of many kinds at any width: what the tests of the limit are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Linear, ReLU, Sequential, Tanh

CASES = {}
relu, tanh = torch.relu, torch.tanh


@dataclass(frozen=True)
class Case:
    """A network as a function of its width, the shape of an input (or "tokens"), and what is known of it."""

    build: Callable[[int], nn.Module]
    shape: tuple
    smooth: bool = False  # no kinks: its bias falls like 1 / width
    issue: bool = False  # one of the nine that are checked at width 2048
    tokens: bool = False

    def inputs(self, width, n=3):
        generator = torch.Generator().manual_seed(2)
        if self.tokens:
            return torch.randint(0, 7, (n, *self.shape), generator=generator)
        shape = [width if s == "width" else s for s in self.shape]
        return torch.randn(n, *shape, generator=generator, dtype=torch.float64)

    def network(self, width, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.build(width).double().eval()


class Net(nn.Module):
    """A network from a function of itself and its input, and its modules and parameters."""

    def __init__(self, of, **parts):
        super().__init__()
        self.of = of
        for name, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *x):
        return self.of(self, *x)


def case(name, *shape, **known):
    def register(build):
        CASES[name] = Case(build, shape, **known)
        return build

    return register


OUTPUTS = 2


def mlp(w, act, d=4, depth=2):
    sizes = [d, *[w] * depth]
    hidden = [m for a, b in pairwise(sizes) for m in (Linear(a, b), act())]
    return Sequential(*hidden, Linear(w, OUTPUTS))


def out(w):
    return Linear(w, OUTPUTS)


# elementwise functions: closed forms, series, sampling

case("relu MLP", 4)(lambda w: mlp(w, ReLU))
case("tanh MLP", 4, smooth=True, issue=True)(lambda w: mlp(w, Tanh))
case("ELU and Hardtanh", 4)(lambda w: Sequential(Linear(4, w), nn.ELU(), Linear(w, w), nn.Hardtanh(), out(w)))
case("leaky ReLU and GELU", 4)(
    lambda w: Sequential(Linear(4, w), nn.LeakyReLU(0.2), Linear(w, w), nn.GELU(), out(w))
)
case("step", 4)(lambda w: Net(lambda s, x: s.o((s.a(x) > 0).to(x.dtype)), a=Linear(4, w), o=out(w)))
case("sign", 4)(lambda w: Net(lambda s, x: s.o(torch.sign(s.a(x))), a=Linear(4, w), o=out(w)))
case("Mish by hand", 4, smooth=True)(
    lambda w: Net(lambda s, x: s.o((lambda h: h * tanh(F.softplus(h)))(s.a(x))), a=Linear(4, w), o=out(w))
)
case("PReLU, a slope per channel", 4)(lambda w: Sequential(Linear(4, w), nn.PReLU(w), out(w)))
case("GLU", 4, smooth=True)(lambda w: Net(lambda s, x: s.o(F.glu(s.a(x))), a=Linear(4, 2 * w), o=out(w)))
case("SwiGLU", 4, smooth=True)(
    lambda w: Net(lambda s, x: s.o(F.silu(s.a(x)) * s.b(x)), a=Linear(4, w), b=Linear(4, w), o=out(w))
)
case("siamese product", 2, 4, issue=True)(
    lambda w: Net(lambda s, x: s.o(relu(s.a(x[:, 0])) * relu(s.a(x[:, 1]))), a=Linear(4, w), o=out(w))
)

# skips, sharing, concatenation


@case("post-activation ResNet block", 4, issue=True)
def _(w):
    def of(s, x):
        h = relu(s.a(x))
        return s.o(relu(s.b(h) + h))

    return Net(of, a=Linear(4, w), b=Linear(w, w), o=out(w))


@case("two post-activation blocks", 4)
def _(w):
    def of(s, x):
        h = relu(s.a(x))
        h = relu(s.b(h) + h)
        return s.o(relu(s.c(h) + h))

    return Net(of, a=Linear(4, w), b=Linear(w, w), c=Linear(w, w), o=out(w))


case("a layer used twice in depth", 4, issue=True)(
    lambda w: Net(
        lambda s, x: s.o(relu(s.b(relu(s.b(relu(s.a(x))))))), a=Linear(4, w), b=Linear(w, w), o=out(w)
    )
)
case("concatenation with the input", 40, issue=True)(
    lambda w: Net(lambda s, x: s.o(torch.cat([x, relu(s.a(x))], 1)), a=Linear(40, w), o=out(40 + w))
)
case("a skip from the input", "width")(
    lambda w: Net(lambda s, x: s.o(x + s.b(relu(s.a(x)))), a=Linear(w, w), b=Linear(w, w), o=out(w))
)


@case("concatenation of two widths", 4)
def _(w):
    def of(s, x):
        h = relu(s.a(x))
        return s.o(torch.cat([h, relu(s.b(h))], 1))

    return Net(of, a=Linear(4, w), b=Linear(w, w // 2), o=out(w + w // 2))


@case("dense connection with a norm", 4)
def _(w):
    def of(s, x):
        h = s.a(x)
        return s.o(relu(s.n(torch.cat([h, s.b(relu(h))], 1))))

    n = w + w // 2
    return Net(of, a=Linear(4, w), b=Linear(w, w // 2), n=nn.LayerNorm(n), o=out(n))


@case("LayerScale", 4)
def _(w):
    def of(s, x):
        h = s.a(x)
        return s.o(relu(h + s.g * s.b(relu(h))))

    return Net(of, a=Linear(4, w), b=Linear(w, w), g=nn.Parameter(torch.full((w,), 0.3)), o=out(w))


@case("detach", 4)
def _(w):
    def of(s, x):
        h = relu(s.a(x))
        return s.o(relu(s.b(h.detach()) + h))

    return Net(of, a=Linear(4, w), b=Linear(w, w), o=out(w))


# norms

case("layer norm before a ReLU", 4, issue=True)(
    lambda w: Sequential(Linear(4, w), nn.LayerNorm(w), ReLU(), out(w))
)
case("layer norm behind a ReLU", 4, issue=True)(
    lambda w: Sequential(Linear(4, w), ReLU(), nn.LayerNorm(w), out(w))
)
case("layer norm between ReLUs", 4)(
    lambda w: Sequential(Linear(4, w), ReLU(), nn.LayerNorm(w), ReLU(), out(w))
)
case("RMS norm", 4)(lambda w: Sequential(Linear(4, w), nn.RMSNorm(w), ReLU(), Linear(w, w), ReLU(), out(w)))


@case("a skip around a norm", 4)
def _(w):
    def of(s, x):
        h = s.n(s.a(x))
        return s.o(relu(h + s.b(relu(h))))

    return Net(of, a=Linear(4, w), n=nn.LayerNorm(w), b=Linear(w, w), o=out(w))


case("group norm and groups", 2, 6)(
    lambda w: Sequential(
        nn.Conv1d(2, w, 3, padding=1),
        ReLU(),
        nn.Conv1d(w, w, 3, padding=1, groups=4),
        nn.GroupNorm(4, w),
        ReLU(),
        nn.Flatten(),
        out(6 * w),
    )
)
case("batch norm in eval mode", 2, 6)(
    lambda w: Sequential(nn.Conv1d(2, w, 3, padding=1), nn.BatchNorm1d(w), ReLU(), nn.Flatten(), out(6 * w))
)

# convolutions and pooling

case("convolutions with stride, dilation, pooling", 2, 8, 8)(
    lambda w: Sequential(
        nn.Conv2d(2, w, 3, padding=1, stride=2),
        ReLU(),
        nn.Conv2d(w, w, 3, padding="same", dilation=2),
        ReLU(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        out(4 * w),
    )
)
case("padding by reflection and by the border", 2, 6)(
    lambda w: Sequential(
        nn.Conv1d(2, w, 3, padding=1, padding_mode="reflect"),
        ReLU(),
        nn.Conv1d(w, w, 5, padding=2, padding_mode="replicate"),
        ReLU(),
        nn.Flatten(),
        out(6 * w),
    )
)
case("max pooling", 2, 6)(
    lambda w: Sequential(
        nn.Conv1d(2, w, 3, padding=1),
        ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(w, w, 3, padding=1),
        ReLU(),
        nn.Flatten(),
        out(3 * w),
    )
)
case("depthwise convolution", 2, 6)(
    lambda w: Sequential(
        nn.Conv1d(2, w, 3, padding=1),
        ReLU(),
        nn.Conv1d(w, w, 3, padding=1, groups=w),
        ReLU(),
        nn.Conv1d(w, w, 1),
        ReLU(),
        nn.Flatten(),
        out(6 * w),
    )
)
case("transposed convolutions", 2, 4)(
    lambda w: Sequential(
        nn.ConvTranspose1d(2, w, 3, stride=2, padding=1, output_padding=1),
        ReLU(),
        nn.ConvTranspose1d(w, w, 4, stride=2),
        ReLU(),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        out(w),
    )
)


@case("squeeze and excitation", 2, 5)
def _(w):
    def of(s, x):
        h = relu(s.c(x))
        gate = torch.sigmoid(s.f(relu(s.d(h.mean(2)))))
        return s.o((h * gate[:, :, None]).mean(2))

    return Net(of, c=nn.Conv1d(2, w, 3, padding=1), d=Linear(w, w), f=Linear(w, w), o=out(w))


@case("U-Net", 2, 6)
def _(w):
    def of(s, x):
        h = relu(s.a(x))
        up = F.interpolate(relu(s.c(F.avg_pool1d(h, 2))), scale_factor=2)
        return s.o(relu(s.d(torch.cat([up, h], 1))).mean(2))

    parts = {k: nn.Conv1d(i, w, 3, padding=1) for k, i in (("a", 2), ("c", w), ("d", 2 * w))}
    return Net(of, **parts, o=out(w))


class Block(nn.Module):
    """A basic block of a ResNet, as torchvision writes it."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.relu = ReLU(inplace=True)
        same = stride == 1 and i == o
        self.downsample = (
            None if same else Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))
        )

    def forward(self, x):
        h = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        h += x if self.downsample is None else self.downsample(x)
        return self.relu(h)


def resnet(w, blocks=((1, 1), (1, 2))):
    """A ResNet from a list of (width in units of w, stride)."""
    layers, i = [nn.Conv2d(2, w, 3, 1, 1, bias=False), nn.BatchNorm2d(w), ReLU(inplace=True)], w
    for times, stride in blocks:
        layers.append(Block(i, times * w, stride))
        i = times * w
    return Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), out(i))


case("ResNet", 2, 4, 4)(resnet)

# positions: tokens, attention, recurrence

case("layer norm over channels and some positions", 4, 3)(
    lambda w: Net(
        lambda s, x: s.o(relu(s.b(s.n(relu(s.a(x)).unflatten(1, (2, 2)).flatten(2)))).mean(1)),
        a=Linear(3, w),
        n=nn.LayerNorm(2 * w),
        b=Linear(2 * w, w),
        o=out(w),
    )
)

case("learned positions", 4, 3)(
    lambda w: Net(
        lambda s, x: s.o(relu(s.a(x) + s.p).mean(1)),
        a=Linear(3, w),
        p=nn.Parameter(torch.randn(4, w) * 0.5),
        o=out(w),
    )
)
case("fixed positions", 4, 3)(
    lambda w: Net(
        lambda s, x: s.o(relu(s.b(s.a(x) + s.p)).mean(1)),
        a=Linear(3, w),
        b=Linear(w, w),
        p=torch.randn(4, w),
        o=out(w),
    )
)
case("class token", 4, 3)(
    lambda w: Net(
        lambda s, x: s.o(relu(s.b(torch.cat([s.c.expand(x.shape[0], -1, -1), s.a(x)], 1))).mean(1)),
        a=Linear(3, w),
        b=Linear(w, w),
        c=nn.Parameter(torch.randn(1, 1, w)),
        o=out(w),
    )
)
case("embedding", 5, tokens=True)(
    lambda w: Net(lambda s, x: s.o(relu(s.b(s.e(x))).mean(1)), e=nn.Embedding(7, w), b=Linear(w, w), o=out(w))
)


HEADS = 8  # any number does on average; what must be wide is each of them


@case("softmax attention", 4, 3, issue=True)
def _(w):
    def of(s, x):
        e = s.e(x)
        return s.o(s.a(e, e, e, need_weights=False)[0].mean(1))

    return Net(of, e=Linear(3, w), a=nn.MultiheadAttention(w, HEADS, batch_first=True), o=out(w))


@case("causal attention", 4, 3)
def _(w):
    def of(s, x):
        e = s.e(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return s.o(s.a(e, e, e, attn_mask=mask, need_weights=False)[0].mean(1))

    return Net(of, e=Linear(3, w), a=nn.MultiheadAttention(w, HEADS, batch_first=True), o=out(w))


@case("rotary embeddings", 4, 3)
def _(w):
    theta = torch.arange(4)[:, None] * 10.0 ** torch.linspace(0.5, -1, w // HEADS // 2)
    cos, sin = (torch.cat([t, t], -1) for t in (theta.cos(), theta.sin()))

    def turned(s, t):
        first, second = t.chunk(2, -1)
        return t * s.cos + torch.cat([-second, first], -1) * s.sin

    def of(s, x):
        e = s.e(x)
        q, k, v = (a(s.n(e)).unflatten(-1, (HEADS, -1)).transpose(1, 2) for a in (s.q, s.k, s.v))
        a = F.scaled_dot_product_attention(turned(s, q), turned(s, k), v, is_causal=True)
        return s.o((e + s.p(a.transpose(1, 2).flatten(2))).mean(1))

    parts = {name: Linear(w, w, bias=False) for name in "qkvp"}
    return Net(of, e=Linear(3, w), n=nn.RMSNorm(w), o=out(w), cos=cos, sin=sin, **parts)


@case("queries and keys normed in each head, biases side by side", 4, 3)
def _(w):
    def of(s, x):
        bias = torch.cat([s.q, torch.zeros_like(s.q), s.v])
        q, k, v = F.linear(s.e(x), s.w, bias).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(s.nq(q), s.nk(k) * s.nk2, v)
        return s.o(a.transpose(1, 2).flatten(2).mean(1))

    biases = {name: nn.Parameter(torch.randn(w)) for name in "qv"}
    norms = {"nq": nn.RMSNorm(w // HEADS), "nk": nn.LayerNorm(w // HEADS)}
    scale = nn.Parameter(torch.full((w // HEADS,), 1.5))
    weight = nn.Parameter(torch.randn(3 * w, w))
    return Net(of, e=Linear(3, w), w=weight, nk2=scale, **norms, **biases, o=out(w))


@case("relative positions", 4, 3)
def _(w):
    places = torch.arange(4)[:, None] - torch.arange(4) + 3

    def of(s, x):
        e = s.e(x)
        q, k, v = s.qkv(e).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        bias = s.b[places.flatten()].unflatten(0, (4, 4)).permute(2, 0, 1)
        a = torch.softmax(q @ k.mT * (w // HEADS) ** -0.5 + bias, -1) @ v
        return s.o(a.transpose(1, 2).flatten(2).mean(1))

    table = nn.Parameter(torch.randn(7, HEADS))
    return Net(of, e=Linear(3, w), qkv=Linear(w, 3 * w), b=table, o=out(w))


def _attention_by_d(w, tied):
    def of(s, x):
        e = s.e(x)
        scores = s.q(e) @ (s.q if tied else s.k)(e).mT / w
        return s.o((torch.softmax(scores, -1) @ s.v(e)).mean(1))

    parts = {name: Linear(w, w) for name in ("qv" if tied else "qkv")}
    return Net(of, e=Linear(3, w), **parts, o=out(w))


case("attention scaled by 1/d", 4, 3)(lambda w: _attention_by_d(w, False))
case("attention scaled by 1/d, query = key", 4, 3)(lambda w: _attention_by_d(w, True))


@case("transformer layer", 4, 3)
def _(w):
    layer = nn.TransformerEncoderLayer(w, HEADS, 2 * w, batch_first=True, dropout=0.0)
    return Net(lambda s, x: s.o(s.t(s.e(x)).mean(1)), e=Linear(3, w), t=layer, o=out(w))


@case("transformer layer, norm first", 4, 3)
def _(w):
    layer = nn.TransformerEncoderLayer(
        w, HEADS, 2 * w, batch_first=True, dropout=0.0, norm_first=True, activation="gelu"
    )
    return Net(lambda s, x: s.o(s.t(s.e(x)).mean(1)), e=Linear(3, w), t=layer, o=out(w))


def rnn(w, act=tanh):
    def of(s, x):
        h, states = x.new_zeros(x.shape[0], w), []
        for t in range(x.shape[1]):
            h = act(s.i(x[:, t]) + s.h(h))
            states.append(h)
        return s.o(torch.stack(states, 1).mean(1))

    return Net(of, i=Linear(3, w), h=Linear(w, w), o=out(w))


case("RNN", 5, 3, smooth=True, issue=True)(rnn)
case("GRU", 3, 3, smooth=True, issue=True)(
    lambda w: Net(lambda s, x: s.o(s.g(x)[0].mean(1)), g=nn.GRU(3, w, batch_first=True), o=out(w))
)
case("LSTM", 3, 3, smooth=True)(
    lambda w: Net(lambda s, x: s.o(s.g(x)[0].mean(1)), g=nn.LSTM(3, w, batch_first=True), o=out(w))
)


def _cell(kind):
    def build(w):
        def of(s, x):
            state, seen = None, []
            for t in range(x.shape[1]):
                state = s.c(x[:, t], state)
                seen.append(state[0] if isinstance(state, tuple) else state)
            return s.o(torch.stack(seen, 1).mean(1))

        return Net(of, c=kind(3, w), o=out(w))

    return build


for _kind in (nn.RNNCell, nn.GRUCell, nn.LSTMCell):
    case(_kind.__name__, 2, 3, smooth=True)(_cell(_kind))
case("conv 3d", 2, 3, 3, 3)(
    lambda w: Sequential(
        nn.Conv3d(2, w, 3, padding=1), ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), Linear(w, 1)
    )
)


def resnet18(w):
    """torchvision's ResNet-18 for small pictures, without its max pooling."""
    return resnet(w, ((1, 1), (1, 1), (2, 2), (2, 1), (4, 2), (4, 1), (8, 2), (8, 1)))
