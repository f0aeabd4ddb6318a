"""Series of Hermite polynomials: identities, functions that differ from entry to entry, the rest."""

import math

import pytest
import torch
from table_of_duals import CASES

import ntkit
from ntkit.infinite.duals.cross import cross, cross_slope
from ntkit.infinite.duals.effort import effort
from ntkit.infinite.duals.hermite import coefficients, contract
from ntkit.infinite.duals.homogeneous import Homogeneous
from ntkit.infinite.duals.polynomial import Polynomial
from ntkit.infinite.duals.smooth import Series

DUALS = {name: case[0] for name, case in CASES.items()}
SMOOTH = [n for n, (dual, _, kinks) in CASES.items() if not kinks]


def float64(*numbers):
    return [torch.tensor(x, dtype=torch.float64) for x in numbers]


@pytest.mark.parametrize("name", SMOOTH)
def test_parseval(name):
    a = DUALS[name].hermite(200)
    assert a.shape == (201,)
    torch.testing.assert_close(a.square().sum(), DUALS[name].square(torch.ones((), dtype=torch.float64)))
    torch.testing.assert_close(
        contract(a, a, *float64([0.3, -0.8])), DUALS[name].value(*float64([0.3, -0.8], 1.0, 1.0))
    )


def test_coefficients_of_relu_are_exact():
    a = ntkit.dual("relu").hermite(60, 4.0)
    wanted = [2 / math.sqrt(2 * math.pi), 1.0, 1 / math.sqrt(math.pi)]  # of 2 relu(z), z standard
    torch.testing.assert_close(a[:3], torch.tensor(wanted, dtype=torch.float64), rtol=1e-13, atol=1e-13)
    assert a[3::2].abs().max() < 1e-13


@pytest.mark.parametrize("degree", range(7))
def test_hermite_polynomials_have_powers_for_duals(degree):
    dual = Polynomial.hermite_polynomial(degree)
    rho = torch.linspace(-1, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(dual(rho, 1.0, 1.0)[0], rho**degree)
    unit = torch.eye(9, dtype=torch.float64)[degree]
    torch.testing.assert_close(dual.hermite(8), unit, rtol=1e-12, atol=1e-12)


def test_the_function_may_differ_from_entry_to_entry():
    shift = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    var = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float32)
    a = coefficients(lambda x: torch.tanh(x + shift[:, None]), var, 50)
    assert a.shape == (3, 51)
    assert a.dtype == torch.float32
    for i in range(3):
        alone = coefficients(lambda x, i=i: torch.tanh(x + shift[i]), var[i].double(), 50)
        torch.testing.assert_close(a[i], alone.float())
    assert (a[0] == 0).all()


def test_a_slow_series_says_so_and_stays_exact_at_the_ends():
    dual = Series(torch.tanh, cap=63)
    var = torch.tensor(30.0, dtype=torch.float64)
    square = dual.square(var)
    torch.testing.assert_close(dual.value(var, var, var), square)
    torch.testing.assert_close(dual.value(-var, var, var), -square)
    precise = Series(torch.tanh, cap=1023).value(0.9 * var, var, var)
    with effort() as found:
        gap = (dual.value(0.9 * var, var, var) - precise).abs() / square
    assert gap <= found.error < 20 * gap
    with effort(fineness=4) as finer:
        dual.value(0.9 * var, var, var)
    assert finer.error < 1e-3 * found.error


def test_crosses_within_families_are_exact():
    one, two = Homogeneous(1, 0), Homogeneous(0.3, -0.5)
    at = float64(0.5, 1.2, 0.8)
    parts = [(1, 0, 1, 0, 0.3), (1, 0, 0, 1, -0.5)]
    wanted = sum(c * _polarized(Homogeneous(a, b), Homogeneous(d, e), at) for a, b, d, e, c in parts)
    torch.testing.assert_close(cross(one, two, *at), wanted)


def _polarized(f, g, at):
    """E[f g] of homogeneous f, g from squares of their sum and difference."""
    plus, minus = Homogeneous(f.a + g.a, f.b + g.b), Homogeneous(f.a - g.a, f.b - g.b)
    mixed = [cross(plus, plus, *at) - cross(minus, minus, *at)]
    return mixed[0] / 4 if at[1] == at[2] else (cross(f, g, *at))


PAIRS = [
    ("relu", "leaky relu"), ("relu", "elu"), ("hardtanh", "elu"), ("cubic", "square"), ("cubic", "elu"),
    ("sin", "fourier"), ("identity", "tanh"), ("identity", "erf"), ("tanh", "identity"), ("relu", "tanh"),
    ("tanh", "sigmoid"), ("gelu", "erf"), ("step", "relu6"), ("relu 2", "selu"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_crosses(first, second):
    from oracle import expectation, functions_of

    (one, f, kinks1), (two, g, kinks2) = CASES[first], CASES[second]
    (f, df, _), (g, dg, _) = functions_of(f), functions_of(g)
    for at in ((0.4, 1.0, 0.8), (-0.5, 0.6, 0.9), (0.0, 1.0, 0.0)):
        found = cross(one, two, *float64(*at)).item()
        assert found == pytest.approx(expectation(f, g, *at, kinks1, kinks2), rel=1e-10, abs=1e-10)
        if at[2]:
            slope = cross_slope(one, two, *float64(*at)).item()
            assert slope == pytest.approx(expectation(df, dg, *at, kinks1, kinks2), rel=1e-9, abs=1e-9)
