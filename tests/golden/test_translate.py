"""The translator is right: finite draws of the networks that it builds have the golden kernels."""

import pytest
from translate import CASES, build, values

import ntkit


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (i % 3 > 0)) for i, n in enumerate(CASES)]
)
def test_finite_draws_have_the_golden_kernels(name):
    case = CASES[name]
    width = 96 if any(layer[0] == "conv" for layer in case["layers"]) else 512
    model, sigma_w, sigma_b = build(case, width)
    v = values(case)
    found = ntkit.monte_carlo(model, 16, v["x1"], v["x2"], sigma_w=sigma_w, sigma_b=sigma_b)
    for kernel, error, expected in (
        (found.nngp, found.nngp_error, v["nngp"]),
        (found.ntk, found.ntk_error, v["ntk"]),
    ):
        assert ((kernel - expected).abs() <= 4 * error + 0.01 * expected.abs().max()).all()
        assert error.max() < 0.1 * expected.abs().max()
