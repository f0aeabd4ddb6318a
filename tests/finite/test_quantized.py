"""Frozen weights of 4 and 8 bits under trained ones of low rank: autograd's kernel, where packages are."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn

import ntkit

pytestmark = [
    pytest.mark.filterwarnings("ignore:There is a performance drop"),  # vmap, of operations without a rule
    pytest.mark.filterwarnings("ignore:.*autograd kernel was not registered"),  # bitsandbytes has a Function
    pytest.mark.filterwarnings("ignore:.*Enum subclass"),  # torchao, as it is imported
]


class LowRank(nn.Module):
    """A frozen map and a trained one of low rank beside it."""

    def __init__(self, base):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 3, bias=False)
        self.b = nn.Linear(3, base.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


def network(make):
    torch.manual_seed(0)
    return nn.Sequential(LowRank(make(64, 64)), nn.Tanh(), LowRank(make(64, 32)), nn.Tanh(), nn.Linear(32, 3))


def assert_right(model):
    x = torch.randn(5, 64)
    k, truth = ntkit.EmpiricalNTK(model), mean_kernel(model, x)
    assert_kernel(k(x), truth, 1e-5)
    assert_kernel(k.operator(x) @ torch.eye(5), truth, 1e-5)
    assert not any("base" in name for name in k(x, per_parameter=True))
    return {row.way for row in k.explain(x).rows}


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_bitsandbytes(kind):
    layers = pytest.importorskip("bitsandbytes").nn

    def make(inputs, outputs):
        if kind == "int8":
            layer = layers.Linear8bitLt(inputs, outputs, has_fp16_weights=False)
        else:
            layer = layers.Linear4bit(inputs, outputs, quant_type=kind, compute_dtype=torch.float32)
        layer.load_state_dict(nn.Linear(inputs, outputs).state_dict())
        return layer

    assert_right(network(make).to("cpu"))  # moving them quantizes


@pytest.mark.parametrize("bits", [4, 8])
def test_torchao(bits):
    of = pytest.importorskip("torchao.quantization")
    config = of.Int8WeightOnlyConfig() if bits == 8 else of.IntxWeightOnlyConfig(weight_dtype=torch.int4)
    model = network(nn.Linear)
    of.quantize_(model, config, filter_fn=lambda _, name: name.endswith("base"))
    for m in (model[0], model[2]):
        m.base.requires_grad_(False)
        assert type(m.base.weight) is not nn.Parameter
    assert assert_right(model) == {"structure"}
