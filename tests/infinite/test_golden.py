"""Limits of ordinary modules against kernels that neural-tangents computed (`tests/golden`)."""

import pytest
import torch
from translate import CASES, build, values

import ntkit

LOOSE = {"gelu", "layernorm"}  # neural-tangents' own GELU and layer norm are that exact


def tolerance(layers):
    names = {word for layer in layers for word in (layer[0], layer[-1]) if isinstance(word, str)}
    return 1e-6 if names & LOOSE else 1e-8


@pytest.mark.parametrize("name", CASES)
def test_the_limit_is_the_golden_one(name):
    case = CASES[name]
    model, sigma_w, sigma_b = build(case)
    v, rtol = values(case), tolerance(case["layers"])
    limit = ntkit.infinite_width(model, v["x1"][:1], sigma_w=sigma_w, sigma_b=sigma_b)
    for kernel in ("nngp", "ntk"):
        k = getattr(limit, kernel)
        torch.testing.assert_close(k(v["x1"], v["x2"]), v[kernel], rtol=rtol, atol=0)
        torch.testing.assert_close(k(v["x1"]), v[f"{kernel}_sym"], rtol=rtol, atol=0)
        torch.testing.assert_close(k.diag(v["x1"]), v[f"{kernel}_sym"].diagonal(), rtol=rtol, atol=0)
