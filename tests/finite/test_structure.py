"""What once crashed, was refused, or went by contraction: served, and where rules exist by structure."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.nn.utils.rnn import pack_padded_sequence

import ntkit

D = torch.float64


class Fn(nn.Module):
    """A function of an input and weights of given shapes."""

    def __init__(self, f, *shapes, **buffers):
        super().__init__()
        self.f = f
        self.w = nn.ParameterList([nn.Parameter(torch.randn(s)) for s in shapes])
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x):
        return self.f(self, x, *self.w)


class Standardized(nn.Module):
    """A parametrization: a weight less its mean, over its spread, written in one of the usual ways."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, w):
        flat = w.reshape(1, w.shape[0], -1)
        if self.how == "batch norm":
            return F.batch_norm(flat, None, None, training=True).reshape_as(w)
        if self.how == "layer norm":
            return F.layer_norm(flat[0], flat.shape[2:]).reshape_as(w)
        if self.how == "instance norm":
            return F.instance_norm(flat).reshape_as(w)
        var, mean = torch.var_mean(flat, 2, correction=0)
        shape = (-1, *[1] * (w.ndim - 1))
        return (w - mean.reshape(shape)) * (var + 1e-5).rsqrt().reshape(shape)


def standardized(how, layer):
    parametrize.register_parametrization(layer, "weight", Standardized(how))
    return nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2))


class Encoder(nn.Module):
    """An encoder that takes nested tensors where it may, and whose forward looks at its tokens."""

    def __init__(self, layers, norm_first):
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True, norm_first=norm_first)
        self.e, self.o = nn.Embedding(11, 16), nn.Linear(16, 3)
        self.t = nn.TransformerEncoder(layer, layers, enable_nested_tensor=not norm_first)

    def forward(self, a):
        if (a > 100).any():
            raise ValueError
        return self.o(self.t(self.e(a), src_key_padding_mask=(a == 0))[:, 0])


class Packed(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.o = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h = self.rnn(packed)[1]
        return self.o((h[0] if isinstance(h, tuple) else h)[0])


class Derivative(nn.Module):
    """The network of a physics-informed loss: u_t + u u_x - u_xx of a small network u(x, t)."""

    def __init__(self, order):
        super().__init__()
        self.u, self.order = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)), order

    def forward(self, x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            u = self.u(x)
            (d,) = torch.autograd.grad(u.sum(), x, create_graph=True)
            if self.order == 1:
                return d[:, 1:] + u * d[:, :1]
            (dd,) = torch.autograd.grad(d[:, 0].sum(), x, create_graph=True)
            return d[:, 1:] + u * d[:, :1] - 0.1 * dd[:, :1]


def tokens(shape, high=11):
    return torch.randint(1, high, shape)


def bag(mode):
    class Bag(nn.Module):
        def __init__(self):
            super().__init__()
            self.e, self.o = nn.EmbeddingBag(9, 4, mode=mode, sparse=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.o(self.e(x))

    return Bag()


class TiedSparse(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(9, 4, sparse=True)

    def forward(self, x):
        return torch.tanh(self.e(x).mean(1)) @ self.e.weight.detach().T + self.e(x[:, 0]).sum(1, keepdim=True)


def ids(*shape):
    return lambda: torch.randint(0, 9, shape)


def real(*shape):
    return lambda: torch.randn(*shape, dtype=D)


IDX = torch.tensor([[0, 2, 1], [3, 3, 0]])
# name: network, inputs, the ways that its weights may go
SERVED = {
    "sparse embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.LazyLinear(2)),
        ids(4, 3),
        "structure",
    ),
    "sparse bag, sum": (lambda: bag("sum"), ids(4, 3), "structure"),
    "sparse bag, mean": (lambda: bag("mean"), ids(4, 3), "structure"),
    "sparse and tied": (TiedSparse, ids(4, 3), "structure formed contraction"),
    "standardized by batch norm": (
        lambda: standardized("batch norm", nn.Conv2d(3, 4, 3)),
        real(3, 3, 5, 5),
        "structure formed",
    ),
    "standardized by layer norm": (
        lambda: standardized("layer norm", nn.Linear(5, 4)),
        real(3, 5),
        "structure formed",
    ),
    "standardized by instance norm": (
        lambda: standardized("instance norm", nn.Conv1d(2, 4, 3)),
        real(3, 2, 6),
        "structure formed",
    ),
    "standardized by hand": (
        lambda: standardized("by hand", nn.Conv2d(4, 4, 3, groups=2)),
        real(3, 4, 5, 5),
        "structure formed",
    ),
    "nested tensors, one layer": (
        lambda: Encoder(1, False),
        lambda: tokens((3, 5)) * torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]),
        "structure",
    ),
    "nested tensors, three layers": (
        lambda: Encoder(3, False),
        lambda: tokens((3, 5)) * torch.tensor([[1, 1, 1, 0, 0]] * 3),
        "structure",
    ),
    "norm first": (
        lambda: Encoder(2, True),
        lambda: tokens((3, 5)) * torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]),
        "structure",
    ),
    "1x1 depthwise": (
        lambda: nn.Sequential(nn.Conv2d(4, 4, 1, groups=4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)),
        real(3, 4, 2, 2),
        "structure",
    ),
    "depthwise to a pixel": (
        lambda: nn.Sequential(nn.Conv1d(4, 4, 3, groups=4), nn.Flatten(), nn.LazyLinear(2)),
        real(3, 4, 3),
        "structure",
    ),
    "grouped 3d to a pixel": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 2, groups=2), nn.Flatten(), nn.LazyLinear(2)),
        real(3, 2, 2, 2, 2),
        "structure",
    ),
    "frames in the batch": (
        lambda: Fn(
            lambda m, x, w, b: (
                F.conv2d(x.flatten(0, 1), w, b, groups=2).unflatten(0, (-1, 3)).mean((1, 3, 4))
            ),
            (4, 2, 3, 3),
            (4,),
        ),
        real(2, 3, 4, 5, 5),
        "structure",
    ),
    "frames, transposed": (
        lambda: Fn(
            lambda m, x, w: (
                F.conv_transpose1d(x.flatten(0, 1), w, None, 2, 1, 1, 2)
                .unflatten(0, (-1, 3))
                .sin()
                .sum((1, 3))
            ),
            (4, 2, 3),
        ),
        real(2, 3, 4, 5),
        "structure",
    ),
    "heads in the batch": (
        lambda: Fn(
            lambda m, x, w: F.conv1d(x.reshape(-1, 2, 6), w).tanh().reshape(x.shape[0], -1), (3, 2, 3)
        ),
        real(3, 4, 6),
        "structure",
    ),
    "no tokens": (
        lambda: Fn(lambda m, x, w, v: x @ w + (x[:, :0].unsqueeze(1) * v).sum((1, 2))[:, None], (4, 2), (0,)),
        real(3, 4),
        "structure formed contraction",
    ),
    "addcmul": (
        lambda: Fn(lambda m, x, a, b, c: torch.addcmul(a, x, b, value=2.0) @ c, (4,), (4,), (4, 2)),
        real(3, 4),
        "structure",
    ),
    "tensordot": (
        lambda: Fn(lambda m, x, w: torch.tensordot(x, w, ([2, 1], [0, 1])), (4, 5, 2)),
        real(3, 5, 4),
        "structure formed",
    ),
    "index by constants": (
        lambda: Fn(lambda m, x, w: x @ w[m.i].sum(0), (5, 4, 2), i=torch.tensor([0, 3, 3])),
        real(3, 4),
        "structure formed",
    ),
    "gather by constants": (
        lambda: Fn(lambda m, x, w: x @ w.gather(1, m.i).tanh().T, (2, 4), i=IDX),
        real(3, 3),
        "structure formed",
    ),
    "index by data": (
        lambda: Fn(lambda m, x, w, v: w[x].tanh().flatten(1) @ v, (9, 4), (12, 2)),
        ids(4, 3),
        "structure",
    ),
    "index_select by data": (
        lambda: Fn(lambda m, x, w: torch.stack([w.index_select(0, r).sum(0) for r in x]), (9, 4)),
        ids(4, 3),
        "structure contraction",
    ),
    "bilinear": (
        lambda: Fn(
            lambda m, x, w, b: F.bilinear(x[..., :3], x[..., 3:], w, b).tanh().sum(1), (4, 3, 2), (4,)
        ),
        real(3, 2, 5),
        "structure",
    ),
    "division": (lambda: Fn(lambda m, x, w: w / (1 + x.square()), (4,)), real(3, 4), "structure"),
    "where": (
        lambda: Fn(lambda m, x, a, b: torch.where(x > 0, a * x, b), (4,), (4,)),
        real(3, 4),
        "structure",
    ),
    "masked_fill": (
        lambda: Fn(
            lambda m, x, w: (x.sin() * w).masked_fill(x > 1, 0.0) + w.expand_as(x).masked_fill(x > 0, 2.0),
            (4,),
        ),
        real(3, 4),
        "structure",
    ),
    "a derivative": (lambda: Derivative(1), real(4, 2), "structure formed contraction"),
    "a second derivative": (lambda: Derivative(2), real(4, 2), "structure formed contraction"),
}


@pytest.mark.parametrize("name", SERVED)
def test_served(name):
    torch.manual_seed(0)
    make, inputs, ways = SERVED[name]
    model, x = make().to(D).eval(), inputs()
    model(x)  # lazy layers
    model = model.to(D)
    k = ntkit.EmpiricalNTK(model)
    truth = mean_kernel(model, x)
    for _ in range(2):
        assert_kernel(k(x), truth)
    assert_kernel(k.operator(x) @ torch.eye(len(x), dtype=D), truth)
    assert_kernel(sum(k(x, per_parameter=True).values()), truth)
    assert {row.way for row in k.explain(x).rows} <= set(ways.split()), k.explain(x)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_packed_sequences(kind):
    torch.manual_seed(0)
    model, x, lengths = Packed(kind).to(D), torch.randn(4, 5, 3, dtype=D), torch.tensor([5, 2, 3, 5])
    k = ntkit.EmpiricalNTK(model)
    for rows in ([0, 1, 2, 3], [0, 3]):
        part = x[rows], lengths[rows]
        assert_kernel(k(part), mean_kernel(model, part))


def test_a_query_of_attention_that_sees_nothing_gives_zero():
    class Hidden(nn.Module):
        def __init__(self, additive):
            super().__init__()
            self.qkv, self.o, self.additive = nn.Linear(4, 12), nn.Linear(4, 2), additive

        def forward(self, x, mask):
            q, k, v = self.qkv(x).chunk(3, -1)
            if self.additive:
                mask = torch.zeros(mask.shape, dtype=x.dtype).masked_fill(~mask, -torch.inf)
            return self.o(F.scaled_dot_product_attention(q, k, v, mask).mean(1))

    torch.manual_seed(0)
    x, mask = torch.randn(4, 3, 4, dtype=D), torch.ones(4, 3, 3, dtype=torch.bool)
    mask[1, 0] = mask[3] = False
    mask[2, 1, :2] = False
    for additive in (False, True):
        model = Hidden(additive).to(D)
        k = ntkit.EmpiricalNTK(model)
        k((x[:1], mask[:1]))  # a sample whose queries all see something
        for _ in range(2):
            assert_kernel(k((x, mask)), mean_kernel(model, (x, mask)))
