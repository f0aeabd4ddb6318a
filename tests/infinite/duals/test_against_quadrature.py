"""Every dual against brute force."""

import pytest
import torch
from oracle import expectation, functions_of
from table_of_duals import CASES

POINTS = [(1.0, 1.0, 0.5), (1.3, 0.4, -0.9), (0.75, 0.75, 1.0), (2.0, 0.5, -1.0), (1.0, 3.0, 0.0)]
POINTS += [(4.0, 0.3, 0.999999), (1e-3, 2.0, 0.3)]


def float64(*numbers):
    return [torch.tensor(x, dtype=torch.float64) for x in numbers]


@pytest.mark.parametrize("name", CASES)
def test_values_slopes_and_radials(name):
    dual, fn, kinks = CASES[name]
    wanted = functions_of(fn)
    for var1, var2, rho in POINTS:
        at = (rho * (var1 * var2) ** 0.5, var1, var2)
        found = (*dual(*at), dual.radial(*float64(*at)))
        for what, x, f in zip(("value", "slope", "radial"), found, wanted, strict=True):
            one, two = (expectation(f, f, v, v, v, kinks, kinks) for v in at[1:])
            error = abs(x.item() - expectation(f, f, *at, kinks, kinks))
            assert error <= 1e-10 * (one * two) ** 0.5, (what, at, error)


@pytest.mark.parametrize("name", CASES)
def test_means_gains_and_squares(name):
    dual, fn, kinks = CASES[name]
    phi, slope, _ = functions_of(fn)
    for var in (0.4, 1.0, 2.5):
        (v,) = float64(var)
        wanted = {
            "mean": expectation(phi, lambda x: 1 + 0 * x, 0.0, var, 1.0, kinks),
            "gain": expectation(phi, lambda x: x, var, var, var, kinks) / var,
            "mean_slope": expectation(slope, lambda x: 1 + 0 * x, 0.0, var, 1.0, kinks),
            "square": expectation(phi, phi, var, var, var, kinks),
        }
        for what, expected in wanted.items():
            found = getattr(dual, what)(v)
            assert found.shape == ()
            assert found.item() == pytest.approx(expected, rel=1e-11, abs=1e-11), (what, var)
        torch.testing.assert_close(dual.value(v, v, v), dual.square(v), rtol=1e-13, atol=1e-13)
