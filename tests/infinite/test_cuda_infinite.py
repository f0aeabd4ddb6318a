"""The limits on a device: the same numbers, plain and compiled, of the same code."""

from copy import deepcopy

import pytest
import torch
from torch import nn

import ntkit

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 1))


def flattened() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 1))


def pooled() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1))


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("build, shape", [(mlp, (12,)), (flattened, (3, 6, 6)), (pooled, (3, 6, 6))])
def test_the_same_limits_on_cuda(build, shape, compile):
    torch.manual_seed(0)
    model, x = build(), torch.randn(33, *shape)
    expected = ntkit.infinite_width(model, x[:1], compile=False)
    found = ntkit.infinite_width(deepcopy(model).cuda(), x[:1].cuda(), compile=compile)
    for of in ("nngp", "ntk"):
        ours, theirs = getattr(found, of)(x.cuda()), getattr(expected, of)(x)
        assert ours.is_cuda
        assert (ours.cpu() - theirs).abs().max() <= 1e-5 * theirs.abs().max()
