"""The networks of the study of planar topology: a U-Net, and convolutions at one scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class UNet(nn.Module):
    """A U-Net with six scales: halved five times, and joined on the way up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [channels * min(2**i, 4) for i in range(6)]
        self.down = nn.ModuleList([_block(a, b) for a, b in zip([1, *widths[:-1]], widths, strict=True)])
        self.up = nn.ModuleList([_block(widths[i] + widths[i + 1], widths[i]) for i in range(5)])
        self.out = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each pixel."""
        seen = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else functional.max_pool2d(x, 2))
            seen.append(x)
        for i in reversed(range(5)):
            x = functional.interpolate(x, scale_factor=2.0)
            x = self.up[i](torch.cat([seen[i], x], dim=1))
        return self.out(x)


class Flat(nn.Module):
    """Convolutions at one scale, with something in the middle that may look at the whole picture."""

    def __init__(self, channels: int, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.middle = nn.Sequential(_block(1, channels), _block(channels, channels)), middle
        self.last = nn.Sequential(_block(channels, channels), nn.Conv2d(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return a logit for each pixel."""
        return self.last(self.middle(self.first(x)))


class Pooled(nn.Module):
    """Global average pooling, added to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add a function of the mean over pixels."""
        return x + self.mix(x.mean((2, 3)))[:, :, None, None]


class Context(nn.Module):
    """A global-context block: a weighted mean over pixels, added to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, 1, 1)
        self.mix = nn.Sequential(nn.Linear(channels, channels), nn.ReLU())
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Add a function of the weighted mean."""
        weights = self.weigh(x).flatten(1).softmax(1)
        mean = torch.einsum("np,ncp->nc", weights, x.flatten(2))
        return x + self.out(self.mix(mean))[:, :, None, None]


class Attention(nn.Module):
    """Self-attention between patches of four by four pixels, added to every pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(channels, 1, batch_first=True)
        self.place = nn.Conv2d(2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Attend among patches that know their place."""
        small = functional.avg_pool2d(x, 4)
        line = torch.linspace(-1, 1, small.shape[-1], device=x.device, dtype=x.dtype)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None].expand(len(x), -1, -1, -1)
        tokens = (small + self.place(grid)).flatten(2).transpose(1, 2)
        mixed, _ = self.attend(tokens, tokens, tokens, need_weights=False)
        return x + functional.interpolate(mixed.transpose(1, 2).reshape(small.shape), scale_factor=4.0)


def build(name: str, channels: int) -> nn.Module:
    """Return an untrained network of the study."""
    if name.startswith("unet"):
        return UNet(channels)
    middles = {"gap": Pooled, "attention": Attention, "context": Context}
    return Flat(2 * channels, middles[name](2 * channels) if name in middles else nn.Identity())


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a in (inputs, outputs):
        layers += [nn.Conv2d(a, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)
