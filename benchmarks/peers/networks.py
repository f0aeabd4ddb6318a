"""The networks of the benchmarks: torch modules, their weights, and their inputs."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A basic block of ResNet."""

    def __init__(self, c: int, d: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c, d, 3, stride, 1, bias=False), nn.BatchNorm2d(d)
        self.conv2, self.bn2 = nn.Conv2d(d, d, 3, 1, 1, bias=False), nn.BatchNorm2d(d)
        self.short = nn.Sequential()
        if stride > 1 or c != d:
            self.short = nn.Sequential(nn.Conv2d(c, d, 1, stride, bias=False), nn.BatchNorm2d(d))

    def forward(self, x: Tensor) -> Tensor:
        """Two convolutions and a skip."""
        h = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(h)) + self.short(x))


class ViT(nn.Module):
    """ViT-tiny for pictures of 32 x 32 with patches of 4: width 192, depth 12, 3 heads."""

    def __init__(self, width: int = 192, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits from the class token."""
        h = self.patches(x).flatten(2).transpose(1, 2)
        h = torch.cat([self.token.expand(x.shape[0], -1, -1), h], 1) + self.positions
        return self.head(self.norm(self.layers(h))[:, 0])


def mlp(width: int, outputs: int) -> nn.Module:
    """Return 784 - width^3 - outputs with ReLU."""
    sizes = [784, width, width, width, outputs]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cnn() -> nn.Module:
    """Return three convolutions of 32 channels, global average pooling, ten outputs."""
    layers: list[nn.Module] = []
    for c in (3, 32, 32):
        layers += [nn.Conv2d(c, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def resnet18() -> nn.Module:
    """Return ResNet-18 for 32 x 32, in eval mode with statistics that are not the initial ones."""
    blocks, c = [], 64
    for d, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        blocks += [Block(c, d, stride), Block(d, d, 1)]
        c = d
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)]
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), *blocks, *head
    )
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))
    return model.eval()


# name: (network, shape of a sample, outputs, samples)
JOBS = {
    "mlp-full": (lambda: mlp(1024, 10), (784,), "full", 128),
    "mlp-one": (lambda: mlp(1024, 1), (784,), "full", 512),
    "mlp-narrow": (lambda: mlp(100, 10), (784,), "trace", 256),
    "cnn": (cnn, (3, 16, 16), "full", 12),
    "resnet18": (resnet18, (3, 32, 32), "full", 16),
    "vit-tiny": (ViT, (3, 32, 32), "full", 16),
}


def build(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tensor, str]:
    """Return a job's network, inputs and outputs, always the same."""
    torch.manual_seed(0)
    make, shape, outputs, n = JOBS[name]
    model = make()
    x = torch.randn(n, *shape)
    return model.to(dtype).requires_grad_(), x.to(dtype), outputs
