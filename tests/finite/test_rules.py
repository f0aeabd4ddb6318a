"""Rules of one's own: used when right, named when they raise, and never believed unproved."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ntkit
from ntkit.errors import NtkitError
from ntkit.faults import _strict
from ntkit.finite.rules import RULES, RuleError

OP = torch.ops.aten.linear.default


@pytest.fixture
def model(monkeypatch):
    monkeypatch.setattr("ntkit.finite.jacobian.taps.RULES", rules := dict(RULES))
    monkeypatch.setattr("ntkit.finite.rules.RULES", rules)
    monkeypatch.setattr("ntkit.finite.jacobian.coverage.RULES", rules)
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def truth(model, x):
    j = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(model(a[None])[0, 0], list(model.parameters()))]
            )
            for a in x
        ]
    )
    return j @ j.T


def broken(use):
    raise KeyError("nowhere")


def test_a_rule_that_raises_is_named(model):
    ntkit.register_rule(OP, "weight", "bias")(broken)
    x = torch.randn(5, 3, dtype=torch.float64)
    with pytest.raises(RuleError, match=r"test_rules\.broken raised KeyError"):  # in the tests' strict mode
        ntkit.EmpiricalNTK(model)(x)
    token = _strict.set(False)
    try:
        k = ntkit.EmpiricalNTK(model)
        with pytest.warns(UserWarning, match=r"broken raised KeyError.*contraction instead") as told:
            torch.testing.assert_close(k(x), truth(model, x), rtol=1e-10, atol=1e-12)
        assert "in broken" in str(told[0].message)  # its traceback
        assert "broken raised KeyError" in str(k.explain(x))
    finally:
        _strict.reset(token)


def test_only_the_weights_that_a_raising_rule_serves_leave_structure(model):
    right = RULES[OP][1]
    ntkit.register_rule(OP, "weight", "bias")(
        lambda use: broken(use) if use.slot[0] == "bias" else right(use)
    )
    x = torch.randn(5, 3, dtype=torch.float64)
    token = _strict.set(False)
    try:
        k = ntkit.EmpiricalNTK(model)
        with pytest.warns(UserWarning, match="contraction instead"):
            torch.testing.assert_close(k(x), truth(model, x), rtol=1e-10, atol=1e-12)
        assert [row.way for row in k.explain(x).rows] == ["structure", "contraction"] * 2
    finally:
        _strict.reset(token)


def test_a_rule_that_returns_something_else_is_refused(model):
    ntkit.register_rule(OP, "weight", "bias")(lambda use: use.g)
    with pytest.raises(NtkitError, match="returned a Tensor; expected a Factor, or None"):
        ntkit.EmpiricalNTK(model)(torch.randn(5, 3, dtype=torch.float64))


def test_a_wrong_rule_is_not_believed(model):
    right = RULES[OP][1]
    ntkit.register_rule(OP, "weight", "bias")(lambda use: right(use).scaled(2.0))
    x = torch.randn(5, 3, dtype=torch.float64)
    k = ntkit.EmpiricalNTK(model)
    torch.testing.assert_close(k(x), truth(model, x), rtol=1e-10, atol=1e-12)
    assert {row.way for row in k.explain(x).rows} == {"contraction"}


def test_what_is_not_an_operation_is_refused():
    with pytest.raises(TypeError, match="overload"):
        ntkit.register_rule(torch.relu, "weight")
