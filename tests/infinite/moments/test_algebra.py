"""Values in which None is zero, and the two forms in which a kernel of positions is asked for."""

import pytest
import torch

import ntkit
from ntkit.infinite.variables.algebra import add, at_equal, multiply, times
from ntkit.infinite.variables.positions import Move, expand


def test_none_is_zero():
    one = torch.ones(2)
    assert add([]) is None and add([None, None]) is None
    assert torch.equal(add([None, one, one]), 2 * one)  # pyright: ignore[reportArgumentType]
    assert times(None, 3.0) is None and times(one, 0) is None and times(one, 1) is one
    assert multiply(one, None) is None and torch.equal(multiply(one, 2 * one), 2 * one)


@pytest.mark.parametrize(("left", "right"), [((2, 3), (2, 3)), ((1, 3), (2, 3)), ((2, 1), (1, 3))])
def test_values_at_equal_positions_are_those_of_all_pairs(left, right):
    whole = torch.randn(4, *left, *right, generator=torch.Generator().manual_seed(0))
    equal = at_equal(whole, left, right)
    full = whole.expand(4, 2, 3, 2, 3)
    expected = torch.stack([torch.stack([full[:, i, j, i, j] for j in range(3)], -1) for i in range(2)], 1)
    assert torch.equal(equal, expected)


def test_equal_moves_are_equal_whatever_is_said_of_what_they_fill():
    move = Move((expand, (2,)), (1,), (2,), True)
    assert move == Move((expand, (2,)), (1,), (2,), True, True)
    assert move.apply(torch.ones(3, 1)).shape == (3, 2)


def test_the_budget_is_that_of_the_limit_whichever_lines_are_evaluated():
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
    x = torch.ones(2, 3)
    limit = ntkit.infinite_width(model, x, memory="4MiB")
    assert limit.numerics.budget == 2**20
    limit.layers["h1"].ntk(x)
    assert limit.numerics.budget == 2**20
