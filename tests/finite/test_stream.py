"""Weights handed over one after the other make the same kernel, and fewer are held at a time."""

import pytest
import torch
from networks import CASES, build, jacobian

import ntkit
from ntkit.finite.jacobian import recipe as passes


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (1 - i % 2)) for i, n in enumerate(CASES)]
)
def test_every_network_in_parts(monkeypatch, name):
    monkeypatch.setattr(passes, "_SHORT", 0)
    model, x = build(name)
    j = jacobian(model, x)
    full = torch.einsum("nop,mqp->nmoq", j, j)
    for outputs, truth in (("full", full), ("mean", torch.diagonal(full, dim1=2, dim2=3).mean(-1))):
        for memory in ("1GiB", "100kB"):
            k = ntkit.EmpiricalNTK(model, outputs=outputs, memory=memory)
            assert (k(x) - truth).abs().max() <= 1e-10 * truth.abs().max()
            assert (k(x[:2], x) - truth[:2]).abs().max() <= 1e-10 * truth.abs().max()


def test_parts_come_as_the_backward_pass_gets_to_them(monkeypatch):
    monkeypatch.setattr(passes, "_SHORT", 0)
    model, x = build("TransformerEncoderLayer")
    k = ntkit.EmpiricalNTK(model)
    k(x)
    (((recipe, size),),) = k._recipes.values()
    assert recipe.streams
    parts: list[dict] = []
    recipe.stream(x, torch.eye(size.outputs, dtype=torch.float64), parts.append)
    names = [name for part in parts for name in part]
    assert sorted(names) == sorted(recipe.wanted)
    assert len([part for part in parts if part]) >= 6 and max(map(len, parts)) <= 2
    whole = recipe.jacobian(x, torch.eye(size.outputs, dtype=torch.float64))
    for part in parts:
        for name, groups in part.items():
            made = [f.dense() for part in groups for f in part.factors]
            expected = [f.dense() for part in whole[name] for f in part.factors]
            for a, b in zip(made, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
