"""Networks of torch.nn and of transformers that the default tests go through; the others are marked `zoo`."""

from __future__ import annotations

from functools import partial

import torch
from entry import SAMPLES, Entry, image, vectors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence


class Translator(nn.Module):
    """torch's Transformer from tokens to logits of the last token of the target."""

    def __init__(self, d_model: int = 16, d_ff: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(20, d_model)
        self.network = nn.Transformer(d_model, 2, 1, 1, d_ff, batch_first=True)
        self.head = nn.Linear(d_model, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Return ``[n, 3]``; the target sees no later token."""
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], dtype=self.head.weight.dtype)
        hidden = self.network(self.words(source), self.words(target), tgt_mask=mask, tgt_is_causal=True)
        return self.head(hidden[:, -1])


class Recurrent(nn.Module):
    """An LSTM over tokens and the mean of its states."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cells = nn.Embedding(20, 8), nn.LSTM(8, 8, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, 3]``."""
        return self.head(self.cells(self.words(x))[0].mean(1))


class Routed(nn.Module):
    """A mixture of two experts of which each sample takes one, by a branch on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(6, 2), nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, 3]``."""
        weight, place = self.gate(x).softmax(-1).max(-1)
        rows = [weight[i] * self.experts[int(place[i])](x[i]) for i in range(len(x))]
        return torch.stack(rows)


class Pixels(nn.Module):
    """Convolutions down and, by interpolation and sub-pixels, up again."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.up, self.out = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(7, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map as large as the picture."""
        h = F.silu(self.norm(self.down(x)))
        h = torch.cat([F.pixel_shuffle(self.up(h), 2), x], 1)
        return F.interpolate(self.out(h), scale_factor=2, mode="bilinear")


class Cached(nn.Module):
    """A module that keeps, in eval mode, what it once made of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)
        self.product: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, 3]``."""
        if self.product is None:
            self.product = self.second.weight @ self.first.weight
        return F.linear(x, self.product, self.second.bias)


class Frames(nn.Module):
    """A film whose pictures go through the same convolutions, as samples of their own within a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Conv2d(4, 4, 3, groups=4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[n, 3]`` for films ``[n, frames, 3, h, w]``."""
        n, frames = x.shape[:2]
        hidden = self.network(x.flatten(0, 1)).mean((2, 3))
        return self.head(hidden.reshape(n, frames, -1)).mean(1)


class Heat(nn.Module):
    """The residual u_t - u_xx of the heat equation, for a network u(x, t), as PINNs train it."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ``[n, 1]``."""
        with torch.enable_grad():
            x, t = x.detach().requires_grad_(), t.detach().requires_grad_()
            u = self.network(torch.cat([x, t], 1)).sum()
            du_dx, du_dt = torch.autograd.grad(u, (x, t), create_graph=True)
            return du_dt - torch.autograd.grad(du_dx.sum(), x, create_graph=True)[0]


class Packed(nn.Module):
    """A GRU over sequences of several lengths, packed, and its state after the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.cells = nn.Embedding(20, 8), nn.GRU(8, 8, batch_first=True, bidirectional=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return ``[n, 3]``."""
        packed = pack_padded_sequence(self.words(x), lengths, batch_first=True, enforce_sorted=False)
        return self.head(self.cells(packed)[1].transpose(0, 1).flatten(1))


def tokens() -> Tensor:
    """Return tokens."""
    return torch.randint(0, 20, (SAMPLES, 6))


ENTRIES = [
    Entry("transformer", partial(Translator, d_model=16, d_ff=24), lambda: (tokens(), tokens()[:, :4])),
    Entry("lstm", Recurrent, tokens),
    Entry("pixels", Pixels, image(8)),
    Entry("frames", Frames, vectors(2, 3, 8, 8)),
    Entry("cached product", Cached, vectors(5), note="kept by the module"),
    Entry("experts by a branch", Routed, vectors(6)),
    Entry("heat equation", Heat, lambda: (vectors(1)(), vectors(1)()), note="derivatives by its inputs"),
    Entry("packed sequences", Packed, lambda: (tokens(), torch.tensor([3, 6, 4]))),
    Entry("bilinear", lambda: nn.Bilinear(4, 5, 3), lambda: (vectors(4)(), vectors(5)())),
    Entry("embedding bag", lambda: nn.EmbeddingBag(20, 5, mode="mean"), tokens),
    Entry("batch norm in training mode", lambda: _Training(nn.BatchNorm1d(5)), vectors(5), per_sample=False),
]


class _Training(nn.Module):
    """A module that stays in training mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def train(self, mode: bool = True) -> nn.Module:
        return super().train(True)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)
