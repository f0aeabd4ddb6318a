"""The duals under test: each with the function, written apart from the library, and its kinks."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

import ntkit
from ntkit.infinite.duals.erf import Erf
from ntkit.infinite.duals.exponential import Exponential, Gaussian, Sinusoid
from ntkit.infinite.duals.homogeneous import Homogeneous
from ntkit.infinite.duals.polynomial import Polynomial
from ntkit.infinite.duals.rectified import RectifiedPower, Step

CASES = {
    "identity": (ntkit.dual("identity"), lambda x: x + 0, ()),
    "relu": (ntkit.dual("relu"), F.relu, (0,)),
    "leaky relu": (ntkit.dual(nn.LeakyReLU(0.2)), partial(F.leaky_relu, negative_slope=0.2), (0,)),
    "abs": (ntkit.dual(torch.abs), torch.abs, (0,)),
    "homogeneous": (Homogeneous(-0.3, 0.7), lambda x: 0.7 * x - 1.0 * F.relu(x), (0,)),
    "erf": (ntkit.dual("erf"), torch.erf, ()),
    "erf scaled": (Erf(0.6), lambda x: torch.erf(0.6 * x), ()),
    "gelu": (ntkit.dual(nn.GELU()), F.gelu, ()),
    "exp": (Exponential(0.4), lambda x: torch.exp(0.4 * x), ()),
    "sin": (ntkit.dual("sin"), torch.sin, ()),
    "cos": (ntkit.dual("cos"), torch.cos, ()),
    "fourier": (Sinusoid(1.3, 1, 1), lambda x: 2**0.5 * torch.sin(1.3 * x + torch.pi / 4), ()),
    "gaussian": (Gaussian(0.8), lambda x: torch.exp(-0.8 * x * x), ()),
    "sign": (ntkit.dual("sign"), torch.sign, (0,)),
    "step": (Step(), lambda x: (x > 0).double(), (0,)),
    "square": (ntkit.dual("square"), torch.square, ()),
    "cubic": (Polynomial(0.3, -1, 0.2, 0.5), lambda x: 0.3 - x + 0.2 * x**2 + 0.5 * x**3, ()),
    "power 6": (ntkit.dual(lambda x: x**6), lambda x: x**6, ()),
    "hermite 3": (Polynomial.hermite_polynomial(3), lambda x: (x**3 - 3 * x) / 6**0.5, ()),
    "relu 1": (RectifiedPower(1), F.relu, (0,)),
    "relu 2": (RectifiedPower(2), lambda x: F.relu(x) ** 2, (0,)),
    "relu 3": (RectifiedPower(3), lambda x: F.relu(x) ** 3, (0,)),
    "relu 6": (RectifiedPower(6), lambda x: F.relu(x) ** 6, (0,)),
    "tanh": (ntkit.dual("tanh"), torch.tanh, ()),
    "sigmoid": (ntkit.dual("sigmoid"), torch.sigmoid, ()),
    "silu": (ntkit.dual(nn.SiLU()), F.silu, ()),
    "softplus": (ntkit.dual(nn.Softplus(beta=2.0)), lambda x: torch.log1p(torch.exp(2 * x)) / 2, ()),
    "mish": (ntkit.dual(nn.Mish()), F.mish, ()),
    "gelu by tanh": (ntkit.dual(nn.GELU("tanh")), partial(F.gelu, approximate="tanh"), ()),
    "logsigmoid": (ntkit.dual(nn.LogSigmoid()), F.logsigmoid, ()),
    "one's own": (ntkit.dual(lambda x: x * torch.tanh(x) + 1), lambda x: x * torch.tanh(x) + 1, ()),
    "elu": (ntkit.dual(nn.ELU(0.7)), partial(F.elu, alpha=0.7), (0,)),
    "selu": (ntkit.dual("selu"), F.selu, (0,)),
    "celu": (ntkit.dual(nn.CELU(0.5)), partial(F.celu, alpha=0.5), (0,)),
    "hardtanh": (ntkit.dual(nn.Hardtanh(-2, 1)), partial(F.hardtanh, min_val=-2, max_val=1), (-2, 1)),
    "relu6": (ntkit.dual(nn.ReLU6()), F.relu6, (0, 6)),
    "hardswish": (ntkit.dual("hardswish"), F.hardswish, (-3, 3)),
    # F.hardsigmoid's own derivative is 1 / 6 to float32 only
    "hardsigmoid": (ntkit.dual("hardsigmoid"), lambda x: ((x + 3) / 6).clamp(0, 1), (-3, 3)),
    "softshrink": (ntkit.dual(nn.Softshrink(0.3)), partial(F.softshrink, lambd=0.3), (-0.3, 0.3)),
    "hardshrink": (ntkit.dual(nn.Hardshrink()), F.hardshrink, (-0.5, 0.5)),
    "threshold": (ntkit.dual(nn.Threshold(0.1, 2.0)), lambda x: F.threshold(x, 0.1, 2.0), (0.1,)),
    "clamp": (ntkit.dual(lambda x: x.clamp(max=0.3)), lambda x: x.clamp(max=0.3), (0.3,)),
}
