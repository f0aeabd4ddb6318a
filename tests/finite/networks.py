"""Networks of every kind: the rows of the correctness matrix, built in float64 from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class TiedEmbedding(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0)
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        h = torch.tanh(self.linear(self.embedding(x)))
        return F.linear(h, self.embedding.weight).mean(1)[:, :4]


class ThreeTimes(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.out = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        for _ in range(3):
            x = torch.tanh(self.linear(x))
        return self.out(x)


class RawParameters(nn.Module):
    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(4))
        self.u, self.q = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        h = torch.tanh(x @ self.w) * self.v
        h = torch.tanh(h @ self.q.t()) + h @ self.q
        return torch.einsum("bi,io->bo", h, self.u)


class OwnForward(nn.Linear):
    def forward(self, x):
        return 2 * F.linear(x, self.weight**2, self.bias)


class Attention(nn.Module):
    def __init__(self, batch_first=True, cross=False, functional=False):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.batch_first, self.cross, self.functional = batch_first, cross, functional

    def forward(self, x):
        h = x if self.batch_first and not self.functional else x.transpose(0, 1)
        key = h.flip(1 if self.batch_first and not self.functional else 0) if self.cross else h
        a = self.attention
        if self.functional:
            y, _ = F.multi_head_attention_forward(
                h, key, h, 8, 2, a.in_proj_weight, a.in_proj_bias, None, None, False, 0.0,
                a.out_proj.weight, a.out_proj.bias,
            )  # fmt: skip
            return y.mean(0)
        y, _ = a(h, key, h)
        return y.mean(1 if self.batch_first else 0)


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.recurrent = kind(4, 5, batch_first=True, **options)
        self.out = nn.Linear(10 if options.get("bidirectional") else 5, 2)

    def forward(self, x):
        return self.out(self.recurrent(x)[0].mean(1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, 1, 1)

    def forward(self, x):
        skip = torch.tanh(self.down(x))
        deep = torch.tanh(self.up(torch.tanh(self.deep(skip))))
        return self.out(torch.cat([skip, deep], 1))


class ShapeBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 3)

    def forward(self, x):
        return self.linear(x) if x.shape[-1] == 5 else x


class DataBranch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(5, 3)

    def forward(self, x):
        return torch.stack([torch.tanh(self.a(row)) if row.sum() > 0 else self.b(row) for row in x])


class ClassToken(nn.Module):
    def __init__(self):
        super().__init__()
        self.token, self.positions = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 7, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.layer(x)[:, 0]


class Bag(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.bag, self.out = nn.EmbeddingBag(11, 6, mode=mode, padding_idx=1), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(torch.tanh(self.bag(x)))


class Scores(nn.Module):
    """A weight that is both a matrix of a product and an elementwise term: overlapping parts."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(5, 5))

    def forward(self, x):
        return torch.tanh(x @ self.w) + (x[:, :, None] * self.w[:3].sum(0)).sum(1) + self.w[1]


class CustomBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.relu()

    @staticmethod
    def backward(ctx, g):  # pyright: ignore
        return 0.5 * g


class StraightThrough(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.b(CustomBackward.apply(self.a(x)))


def picture(mode: str) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode=mode),
        nn.Tanh(),
        nn.Conv2d(4, 3, 3, stride=2),
        nn.Flatten(),
        nn.Linear(12, 2),
    )


def sequence(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), layer, nn.Tanh(), nn.Linear(6, 2), nn.Flatten())


def _batch_norm() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(64, 3),
        nn.BatchNorm1d(3),
    )  # fmt: skip
    for _ in range(3):
        model(torch.randn(8, 2, 6, 6))
    return model.eval()


@dataclass(frozen=True)
class Case:
    """A network, its inputs, and the way in which all of its parameters (but the exceptions) go."""

    build: Callable[[], nn.Module]
    inputs: str
    way: str = "structure"
    exceptions: tuple[tuple[str, str], ...] = ()


INPUTS: dict[str, Callable[[], Tensor]] = {
    "vector": lambda: torch.randn(4, 5),
    "image": lambda: torch.randn(3, 2, 6, 6),
    "sequence": lambda: torch.randn(4, 6, 8),
    "short": lambda: torch.randn(4, 3, 4),
    "volume": lambda: torch.randn(3, 2, 3, 3, 3),
    "tokens": lambda: torch.randint(0, 11, (4, 5)),
}

_FORMED = (("*.original*", "formed"), ("*.bias", "structure"))


def _parametrized(function: Callable) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(function(nn.Linear(5, 5)), nn.Tanh(), nn.Linear(5, 2)).eval()


CASES: dict[str, Case] = {
    "MLP": Case(lambda: nn.Sequential(nn.Linear(5, 7), nn.GELU(), nn.Linear(7, 3)), "vector"),
    "conv, zero padding": Case(lambda: picture("zeros"), "image"),
    "conv, circular padding": Case(lambda: picture("circular"), "image"),
    "conv, reflect padding": Case(lambda: picture("reflect"), "image"),
    "conv, replicate padding": Case(lambda: picture("replicate"), "image"),
    "conv, groups, 'same', dilation": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2, padding="same"),
            nn.Tanh(),
            nn.Conv2d(4, 6, 2, groups=2, padding="same", dilation=2),
            nn.Flatten(),
            nn.Linear(216, 2),
        ),
        "image",
    ),
    "conv, depthwise": Case(
        lambda: nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()), "image"
    ),
    "conv 1d": Case(
        lambda: nn.Sequential(nn.Conv1d(6, 4, 3, stride=2), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2)),
        "sequence",
    ),
    "conv 3d": Case(lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.Flatten()), "volume"),
    "transposed conv": Case(
        lambda: nn.Sequential(
            nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.Tanh(),
            nn.Conv2d(4, 1, 3, stride=3),
            nn.Flatten(),
        ),
        "image",
    ),
    "transposed conv 1d, dilation": Case(
        lambda: nn.Sequential(nn.ConvTranspose1d(6, 4, 3, dilation=2), nn.Tanh(), nn.AvgPool1d(4)), "sequence"
    ),
    "layer norm": Case(lambda: sequence(nn.LayerNorm(6)), "sequence"),
    "group and instance norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.GroupNorm(2, 4),
            nn.Tanh(),
            nn.InstanceNorm2d(4, affine=True),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        "image",
    ),
    "RMS norm": Case(lambda: sequence(nn.RMSNorm(6)), "sequence"),
    "batch norm in eval mode": Case(_batch_norm, "image"),
    "PReLU, a slope per channel": Case(
        lambda: nn.Sequential(nn.Linear(5, 4), nn.PReLU(4), nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 2)),
        "vector",
    ),
    "embedding": Case(
        lambda: nn.Sequential(
            nn.Embedding(11, 6, padding_idx=2), nn.Linear(6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(15, 2)
        ),
        "tokens",
    ),
    "embedding bag, mean": Case(lambda: Bag("mean"), "tokens"),
    "embedding bag, sum": Case(lambda: Bag("sum"), "tokens"),
    "embedding bag, max": Case(lambda: Bag("max"), "tokens", "contraction"),
    "tied embedding and decoder": Case(TiedEmbedding, "tokens"),
    "a layer used three times": Case(ThreeTimes, "vector"),
    "raw parameters": Case(RawParameters, "vector"),
    "a weight in overlapping parts": Case(Scores, "vector", "formed"),
    "Linear subclass": Case(
        lambda: nn.Sequential(OwnForward(5, 4), nn.Tanh(), OwnForward(4, 2)),
        "vector",
        "formed",
        (("*.bias", "structure"),),
    ),
    "weight norm": Case(
        _parametrized(parametrizations.weight_norm), "vector", exceptions=(("*.original*", "formed"),)
    ),
    "spectral norm in eval mode": Case(
        _parametrized(parametrizations.spectral_norm), "vector", exceptions=(("*.original", "formed"),)
    ),
    "orthogonal": Case(
        _parametrized(parametrizations.orthogonal), "vector", exceptions=(("*.original", "formed"),)
    ),
    "MultiheadAttention": Case(Attention, "sequence"),
    "MultiheadAttention, batch second": Case(lambda: Attention(batch_first=False), "sequence"),
    "MultiheadAttention, cross": Case(lambda: Attention(cross=True), "sequence"),
    "multi_head_attention_forward": Case(lambda: Attention(functional=True), "sequence"),
    "TransformerEncoderLayer": Case(
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Flatten(), nn.Linear(48, 2)
        ).eval(),
        "sequence",
    ),
    "class token and positions": Case(ClassToken, "sequence"),
    "LSTM": Case(lambda: Recurrent(nn.LSTM), "short"),
    "LSTM, two layers, both directions": Case(
        lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True), "short"
    ),
    "GRU": Case(lambda: Recurrent(nn.GRU), "short"),
    "RNN": Case(lambda: Recurrent(nn.RNN), "short"),
    "U-Net with skips": Case(UNet, "image"),
    "a branch on the shape": Case(ShapeBranch, "vector"),
    "a branch on the data": Case(DataBranch, "vector", "contraction"),
    "a custom backward": Case(StraightThrough, "vector", "contraction"),
}


def build(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """Return a case's network and inputs, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            return CASES[name].build(), INPUTS[CASES[name].inputs]()
        finally:
            torch.set_default_dtype(before)


def jacobian(model: nn.Module, x: Tensor) -> Tensor:
    """Return the Jacobian [n, o, P] by autograd, one sample and one output at a time: the oracle."""
    weights = dict(model.named_parameters())
    rows = []
    for i in range(len(x)):
        buffers = {k: b.clone() for k, b in model.named_buffers()}
        out = torch.func.functional_call(model, {**weights, **buffers}, (x[i : i + 1],)).reshape(-1)
        each = []
        for value in out:
            grads = torch.autograd.grad(value, list(weights.values()), retain_graph=True, allow_unused=True)
            flat = [
                torch.zeros_like(w).reshape(-1) if g is None else g.reshape(-1)
                for w, g in zip(weights.values(), grads, strict=True)
            ]
            each.append(torch.cat(flat))
        rows.append(torch.stack(each))
    return torch.stack(rows)
