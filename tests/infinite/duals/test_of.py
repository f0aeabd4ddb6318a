"""ntkit.dual, the table by ATen operations, and refusals."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ntkit
from ntkit.infinite.duals.dual import find
from ntkit.infinite.duals.homogeneous import Homogeneous
from ntkit.infinite.duals.piecewise import Piecewise
from ntkit.infinite.duals.polynomial import Polynomial
from ntkit.infinite.duals.smooth import Series

aten = torch.ops.aten


@pytest.mark.parametrize(
    ("op", "args", "kwargs", "kind"),
    [
        (aten.relu_.default, (), {}, Homogeneous),
        (aten.leaky_relu.default, (0.1,), {}, Homogeneous),
        (aten.clamp_min.default, (0,), {}, Homogeneous),
        (aten.clamp.default, (0,), {}, Homogeneous),
        (aten.clamp.default, (None, 1.0), {}, Piecewise),
        (aten.clamp.default, (), {"min": -1, "max": 2}, Piecewise),
        (aten.hardtanh.default, (-2,), {}, Piecewise),
        (aten.elu_.default, (0.7,), {}, Piecewise),
        (aten.pow.Tensor_Scalar, (3.0,), {}, Polynomial),
        (aten.gelu.default, (), {"approximate": "tanh"}, Series),
        (aten.softplus.default, (2.0, 20.0), {}, Series),
        (aten.rrelu.default, (), {}, Homogeneous),
    ],
)
def test_the_table(op, args, kwargs, kind):
    found = find(op, args, kwargs)
    assert isinstance(found, kind)
    assert find(op, args, kwargs) is found
    x = torch.linspace(-3, 3, 11, dtype=torch.float64)
    torch.testing.assert_close(found.phi(x), op(x.clone(), *args, **kwargs))


def test_what_is_not_in_the_table():
    assert find(aten.matmul.default, (), {}) is None
    assert find(aten.pow.Tensor_Scalar, (0.5,), {}) is None
    assert find(aten.clamp.default, (torch.ones(()),), {}) is None
    assert find(aten.clamp.default, (1.0, -1.0), {}) is None
    assert find(aten.rrelu.default, (0.1, 0.3, True), {}) is None


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        ("relu", Homogeneous), (torch.relu, Homogeneous), (nn.ReLU(inplace=True), Homogeneous),
        (abs, Homogeneous), (nn.PReLU(), Homogeneous), (nn.Identity(), Homogeneous), (F.hardtanh, Piecewise),
        (lambda x: x**3, Polynomial), (nn.Tanh(), Series), (nn.Softsign(), Series),
        (lambda x: x * torch.sigmoid(x), Series),
    ],
)  # fmt: skip
def test_what_dual_takes(fn, kind):
    assert isinstance(ntkit.dual(fn), kind)


def test_prelu_has_its_slope():
    torch.testing.assert_close(
        ntkit.dual(nn.PReLU(init=0.1))(0.3, 1.0, 2.0), ntkit.dual(nn.LeakyReLU(0.1))(0.3, 1.0, 2.0)
    )


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (nn.PReLU(4), "4 slopes, one per channel"),
        ("rleu", "no function 'rleu'"),
        (3.0, "not float"),
        (nn.Softmax(-1), "mixes entries"),
        (torch.sum, "changes the shape"),
        (nn.Dropout(0.5), "random"),
        (nn.Linear(6, 6), "float64 tensor"),
        (torch.add, "does not take"),
    ],
)
def test_what_dual_refuses(fn, match):
    with pytest.raises(ntkit.NtkitError, match=match):
        ntkit.dual(fn)


@pytest.mark.parametrize(
    ("at", "match"),
    [
        ((1.1, 1.0, 1.0), r"must not exceed sqrt\(var1 var2\)"),
        ((0.1, -1.0, 1.0), "var1 is a variance and must be >= 0; its smallest is -1"),
        ((float("nan"), 1.0, 1.0), "cov must be finite; 1 of 1"),
        ((0.0, torch.ones(2), torch.ones(3)), r"shapes \(\), \(2,\), \(3,\), which do not broadcast"),
        ((torch.zeros(2, dtype=torch.float16), 1.0, 1.0), "float32 or float64"),
    ],
)
def test_what_the_call_refuses(at, match):
    with pytest.raises(ntkit.NtkitError, match=match):
        ntkit.dual("relu")(*at)


def test_what_the_call_takes():
    relu = ntkit.dual("relu")
    assert relu(0, 1, 1)[0].dtype == torch.float64
    assert relu(np.zeros(3, dtype=np.float32), 1, 1)[0].dtype == torch.float32
    assert relu(torch.zeros(3), torch.ones(2, 1), 1.0)[0].shape == (2, 3)
    assert relu(torch.tensor(1.0000001), torch.tensor(1.0), torch.tensor(1.0))[1] == 0.5
