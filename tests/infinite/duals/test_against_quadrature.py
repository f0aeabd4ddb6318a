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


@pytest.mark.parametrize("name", CASES)
def test_slopes_weighted_by_squares(name):
    # E[u^2 phi'(u) phi'(v)] and E[(u^2 / var - 1) phi'(u)]: what several trained scales meet
    dual, fn, kinks = CASES[name]
    _, slope, _ = functions_of(fn)

    def squared(x):
        return x * x * slope(x)

    for var1, var2, rho in POINTS:
        at = (rho * (var1 * var2) ** 0.5, var1, var2)
        found = dual.weighted(*float64(*at)).item()
        one = expectation(squared, squared, var1, var1, var1, kinks, kinks)
        two = expectation(slope, slope, var2, var2, var2, kinks, kinks)
        error = abs(found - expectation(squared, slope, *at, kinks, kinks))
        assert error <= 1e-9 * (one * two) ** 0.5, (at, error)
    for var in (0.4, 1.0, 2.5, 1e-3):
        (v,) = float64(var)
        wanted = expectation(
            lambda x, var=var: (x * x / var - 1) * slope(x), lambda x: 1 + 0 * x, 0, var, 1, kinks
        )
        size = expectation(slope, slope, var, var, var, kinks, kinks) ** 0.5
        assert abs(dual.curvature(v).item() - wanted) <= 1e-9 * size + 1e-15, var


@pytest.mark.parametrize("name", CASES)
def test_weighted_slopes_where_a_variance_is_zero(name):
    dual, _, _ = CASES[name]
    zero, one = float64(0.0, 1.0)
    assert dual.weighted(zero, zero, one).item() == 0  # u is zero
    assert dual.weighted(zero, zero, zero).item() == 0
    alone = (dual.curvature(one) + dual.mean_slope(one)).item()  # E[u^2 phi'(u)]
    assert dual.weighted(zero, one, zero).item() == pytest.approx(
        alone * dual.mean_slope(zero).item(), abs=1e-9
    )
    assert dual.curvature(zero).item() == 0


NEAR = [(1.0, 2.0, 1 - 1e-4), (0.6, 0.5, 1e-9 - 1), (1.5, 1.5, 1 - 1e-12)]


@pytest.mark.parametrize("name", CASES)
def test_slopes_along_both_directions(name):
    # E[phi'(u) phi'(v) w] for w = a^2 - 1, a b, b^2 - 1 with u = sd1 a and v = sd2 (rho a + q b)
    dual, fn, kinks = CASES[name]
    _, slope, _ = functions_of(fn)

    def times(power):
        return lambda x: x**power * slope(x)

    for var1, var2, rho in POINTS + NEAR:
        at = (rho * (var1 * var2) ** 0.5, var1, var2)
        found = [t.item() for t in dual.curved(*float64(*at))]
        q2 = (1 - rho) * (1 + rho)
        size = [expectation(times(2), times(2), v, v, v, kinks, kinks) ** 0.5 / v for v in (var1, var2)]
        scale = (size[0] * size[1]) + 1e-15
        uu, uv, vv, one = (
            expectation(times(i), times(j), *at, kinks, kinks) / (var1**i * var2**j) ** 0.5
            for i, j in ((2, 0), (1, 1), (0, 2), (0, 0))
        )
        assert abs(found[0] - (uu - one)) <= 1e-9 * scale, at
        if q2 > 1e-4:
            assert abs(found[1] - (uv - rho * uu) / q2**0.5) <= 1e-8 * scale, at
            assert abs(found[2] - ((vv - 2 * rho * uv + rho**2 * uu) / q2 - one)) <= 1e-8 * scale, at
        else:  # they vanish with the second direction
            assert max(map(abs, found[1:])) <= 20 * max(q2**0.5, 1e-9) * scale, at
