"""Every dual against brute force."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import ntkit

SPEC = importlib.util.spec_from_file_location("duals_oracle", Path(__file__).with_name("oracle.py"))
assert SPEC is not None and SPEC.loader is not None
oracle = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(oracle)

POINTS = [(1.0, 1.0, 0.5), (1.3, 0.4, -0.9), (0.75, 0.75, 1.0), (2.0, 0.5, -1.0), (1.0, 1.0, 0.0)]
CASES = {
    "relu": ("relu", (0.0,)),
    "leaky relu": (torch.nn.LeakyReLU(0.2), (0.0,)),
    "abs": ("abs", (0.0,)),
    "erf": ("erf", ()),
    "gelu": ("gelu", ()),
    "gelu by tanh": (torch.nn.GELU("tanh"), ()),
    "tanh": ("tanh", ()),
    "silu": (torch.nn.SiLU(), ()),
}


def numpy_of(dual):
    def phi(x):
        return dual.phi(torch.tensor(x)).numpy()

    def slope(x):
        x = torch.tensor(x, requires_grad=True)
        y = dual.phi(x).sum()
        return torch.autograd.grad(y, x)[0].numpy() if y.requires_grad else np.zeros(x.shape)

    return phi, slope


@pytest.mark.parametrize("name", CASES)
def test_values_slopes_and_radials(name):
    fn, kinks = CASES[name]
    dual = ntkit.dual(fn)
    phi, slope = numpy_of(dual)
    for var1, var2, rho in POINTS:
        at = (rho * (var1 * var2) ** 0.5, var1, var2)
        value, derivative = dual(*at)
        radial = dual.radial(*(torch.tensor(x, dtype=torch.float64) for x in at))
        for found, f in ((value, phi), (derivative, slope), (radial, lambda x: x * slope(x))):
            expected = oracle.expectation(f, f, *at, kinks, kinks)
            assert found.item() == pytest.approx(expected, rel=1e-10, abs=1e-10), (at, f)
