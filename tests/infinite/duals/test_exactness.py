"""Where correlations are one, minus one or zero, and variances vanish: values, float32, gradients."""

import math

import pytest
import torch
from table_of_duals import CASES
from torch.fx.experimental.proxy_tensor import make_fx

import ntkit

DUALS = {name: case[0] for name, case in CASES.items()}
CORNERS = [
    (1.0, 1.0, 1.0),
    (-1.0, 1.0, 1.0),
    (0.0, 1.0, 2.0),
    (0.0, 0.0, 1.0),
    (0.0, 0.0, 0.0),
    (1.0, 0.5, 2.0),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_of_equal_and_opposite_inputs(dtype):
    relu, var = ntkit.dual("relu"), torch.rand(1000, dtype=dtype) * 9 + 0.01
    value, slope = relu(var, var, var)
    assert (slope == 0.5).all()
    torch.testing.assert_close(value, var / 2)
    value, slope = relu(-var, var, var)
    assert (slope == 0).all()
    assert (value == 0).all()
    zero = torch.zeros((), dtype=dtype)
    assert relu(zero, zero, 1)[0] == 0
    assert relu(zero, zero, zero)[0] == 0


def test_relu_next_to_equal_inputs():
    for gap in (1e-6, 1e-12, 1e-15):
        rho = 1 - gap
        true = 1 - rho  # rounded once
        angle = 2 * math.asin(math.sqrt(true / 2))
        value, slope = ntkit.dual("relu")(rho, 1.0, 1.0)
        assert slope.item() == pytest.approx((math.pi - angle) / (2 * math.pi), rel=1e-15)
        expected = (math.sin(angle) + (math.pi - angle) * rho) / (2 * math.pi)
        assert value.item() == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("name", DUALS)
def test_gradients_are_finite_everywhere(name):
    dual = DUALS[name]
    at = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in zip(*CORNERS, strict=True)]
    for found in (*dual.both(*at), dual.radial(*at), dual.square(at[1]), dual.mean(at[1])):
        assert found.isfinite().all()
        if found.requires_grad:
            for grad in torch.autograd.grad(found.sum(), at, allow_unused=True, retain_graph=True):
                assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("name", [n for n in DUALS if n not in ("sign", "step")])
def test_the_slope_is_the_derivative_of_the_value(name):
    """Price's theorem; where the function jumps, the derivative has more than the slope."""
    dual = DUALS[name]
    at = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (0.4, 0.9, 1.7)]
    by_cov, by_one, by_two = torch.autograd.grad(
        dual.value(*at), at, allow_unused=True, materialize_grads=True
    )
    if name not in ("hardshrink", "threshold"):
        torch.testing.assert_close(by_cov, dual.slope(*at), rtol=1e-10, atol=1e-12)
    steps = torch.eye(3, dtype=torch.float64) * 1e-4
    for step, grad in zip(steps, (by_cov, by_one, by_two), strict=True):
        numbers = [torch.stack([x + s, x - s]).detach() for x, s in zip(at, step, strict=True)]
        up, down = dual.value(*numbers)
        assert grad.item() == pytest.approx((up - down).item() / 2e-4, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["elu", "hardshrink", "threshold", "relu", "tanh"])
def test_gradients_of_means_gains_squares_and_slopes(name):
    dual = DUALS[name]
    var = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    cov = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for f, x in (
        (dual.mean, var),
        (dual.square, var),
        (lambda c: dual.slope(c, var.detach(), 2 * var.detach()), cov),
    ):
        (grad,) = torch.autograd.grad(f(x), x)
        up, down = f(x.detach() + 1e-4), f(x.detach() - 1e-4)
        assert grad.item() == pytest.approx((up - down).item() / 2e-4, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", DUALS)
def test_float32_and_broadcasting(name):
    dual = DUALS[name]
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    var, cov = x.square().mean(1), x @ x.T / 5
    for f in (dual.both, lambda *a: (dual.radial(*a),)):
        exact = f(cov - 0.02 * torch.eye(7), var[:, None], var)
        single = f((cov - 0.02 * torch.eye(7)).float(), var.float()[:, None], var.float())
        for a, b in zip(exact, single, strict=True):
            assert b.dtype == torch.float32
            assert a.shape == b.shape == (7, 7)
            torch.testing.assert_close(b.double(), a, rtol=2e-5, atol=2e-5 * a.abs().max().item() + 1e-6)


@pytest.mark.parametrize("name", [n for n, d in DUALS.items() if d.traceable])
def test_closed_forms_can_be_traced(name):
    dual = DUALS[name]
    assert dual.how == "closed form"
    at = torch.tensor(0.3), torch.tensor([1.0, 2.0])[:, None], torch.tensor([1.0, 0.5])
    again = tuple(t * 1.1 for t in at)

    def everything(cov, var1, var2):
        pair = *dual.both(cov, var1, var2), dual.radial(cov, var1, var2)
        return *pair, dual.mean(var1), dual.gain(var1), dual.square(var1)

    torch.testing.assert_close(make_fx(everything)(*at)(*again), everything(*again))
