"""Rules of one's own: limits of operations, and duals of functions, named where they go wrong."""

import types

import pytest
import torch
from torch.nn import Linear
from wide_networks import Net

import ntkit
from ntkit.infinite.duals.dual import DUAL_RULES
from ntkit.infinite.duals.polynomial import Polynomial
from ntkit.infinite.program import LIMIT_RULES  # with the rules of all layers
from ntkit.infinite.reading.rules import register_rule, rule
from ntkit.infinite.reading.values import Wide
from ntkit.infinite.variables.positions import Move
from ntkit.infinite.variables.vectors import Moved

CUMSUM, DEGREES = torch.ops.aten.cumsum.default, torch.ops.aten.deg2rad.default


@pytest.fixture(autouse=True)
def as_before():
    """Leave the tables of rules as they were."""
    tables = [(table, dict(table)) for table in (LIMIT_RULES, DUAL_RULES)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


def running(of):
    model = Net(lambda s, x: s.o(of(torch.relu(s.a(x))).mean(1)), a=Linear(3, 16), o=Linear(16, 1)).double()
    x = torch.randn(3, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return ntkit.infinite_width(model, x[:1]), x


def summed(t, axis, rank):
    return t.cumsum(t.ndim - rank + axis)


@pytest.mark.parametrize("fills", [{}, {"fills": False}])
@pytest.mark.parametrize("register", [ntkit.register_limit_rule, register_rule])
def test_a_rule_of_ones_own_is_used(register, fills):
    @register(CUMSUM)
    def cumsum(read, a, dim, **_):
        """Sums over the positions up to each: a linear map of positions."""
        (axis,) = a.dims[dim]
        move = Move((summed, axis, len(a.shape)), a.shape, a.shape, False, **fills)
        value = Wide(tuple((w, Moved(a.shape, move, e)) for w, e in a.pieces), a.shape, a.channels, a.dims)
        return read.write("LinComb", f"cumsum({read.name(a)})", value)

    limit, x = running(lambda h: h.cumsum(1))
    weights = torch.tensor([4.0, 3.0, 2.0, 1.0]).double()[:, None]
    same, _ = running(lambda h: h * weights)
    torch.testing.assert_close(limit.ntk(x), same.ntk(x), rtol=1e-12, atol=0)
    assert "cumsum(h1)" in str(limit.program)


def test_a_rule_that_raises_is_named_with_its_cause():
    @ntkit.register_limit_rule(CUMSUM)
    def mistaken(read, a, dim, **_):
        return a.there_is_no_such_thing

    with pytest.raises(ntkit.NoRuleError, match=r"test_rules\S*mistaken raised AttributeError") as caught:
        running(lambda h: h.cumsum(1))
    assert isinstance(caught.value.__cause__, AttributeError)
    assert "aten.cumsum.default (cumsum)" in str(caught.value)


def test_a_rule_that_refuses_says_so_itself():
    @ntkit.register_limit_rule(CUMSUM)
    def cumsum(read, a, dim, **_):
        raise read.refuse("not today.")

    with pytest.raises(ntkit.NoRuleError, match=r"cumsum.*not today") as caught:
        running(lambda h: h.cumsum(1))
    assert caught.value.__cause__ is None


def test_what_a_rule_returns_is_a_value():
    @ntkit.register_limit_rule(CUMSUM)
    def expression(read, a, dim, **_):
        return a.only

    with pytest.raises(ntkit.NoRuleError, match=r"test_rules\S*expression returned a Apply, expected a Wide"):
        running(lambda h: h.cumsum(1))


@pytest.mark.parametrize("register", [ntkit.register_limit_rule, ntkit.register_dual])
def test_a_rule_belongs_to_an_overload(register):
    with pytest.raises(ntkit.NtkitError, match="an overload such as"):
        register(torch.ops.aten.cumsum)


def test_a_dual_of_ones_own_is_used():
    before = ntkit.dual(torch.deg2rad)(0.5, 1.0, 2.0)

    @ntkit.register_dual(DEGREES)
    def degrees():
        return Polynomial(0.0, torch.pi / 180)

    dual = ntkit.dual(torch.deg2rad)
    assert isinstance(dual, Polynomial)
    for value, same in zip(dual(0.5, 1.0, 2.0), before, strict=True):
        torch.testing.assert_close(value, same, rtol=1e-10, atol=0)


def test_a_dual_of_an_operation_of_ones_own_is_used():
    @torch.library.custom_op("ntkit_tests::cube", mutates_args=())
    def cube(x: torch.Tensor) -> torch.Tensor:
        return x**3

    cube.register_fake(torch.empty_like)
    cube.register_autograd(
        lambda ctx, grad: 3 * ctx.saved_tensors[0] ** 2 * grad,
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
    )
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def limit(of):
        model = Net(lambda s, x: s.o(of(s.a(x))), a=Linear(4, 16), o=Linear(16, 1)).double()
        return ntkit.infinite_width(model, x[:1])

    with pytest.raises(ntkit.NoRuleError, match=r"ntkit_tests.cube.default"):
        limit(cube)

    @ntkit.register_dual(torch.ops.ntkit_tests.cube.default)
    def cubed():
        return Polynomial(0.0, 0.0, 0.0, 1.0)

    own, same = limit(cube), limit(lambda h: h**3)
    assert "cube(g1)   [closed form]" in str(own.program)
    torch.testing.assert_close(own.ntk(x), same.ntk(x), rtol=1e-12, atol=0)


def test_a_dual_that_raises_or_is_none_is_named():
    @ntkit.register_dual(DEGREES)
    def mistaken():
        return 1 / 0

    with pytest.raises(ntkit.NtkitError, match=r"test_rules\S*mistaken raised ZeroDivisionError") as caught:
        ntkit.dual(torch.deg2rad)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)

    @ntkit.register_dual(DEGREES)
    def number():
        return 1.0

    with pytest.raises(ntkit.NtkitError, match=r"test_rules\S*number returned a float; expected a Dual"):
        ntkit.dual(torch.deg2rad)


def test_a_rule_of_ntkits_own_leaves_ones_own():
    def mine(*_):
        return None

    ntkit.register_limit_rule(CUMSUM)(mine)
    rule(CUMSUM)(print)
    assert LIMIT_RULES[CUMSUM] is mine


def test_a_fault_in_ntkit_is_not_told_as_the_networks(monkeypatch):
    def broken(graph):
        raise TypeError("ours")

    def theirs(h):
        raise TypeError("theirs")

    with pytest.raises(ntkit.NoRuleError, match="TypeError: theirs"):
        running(theirs)
    broken = types.FunctionType(broken.__code__.replace(co_filename=ntkit.__file__), globals())
    monkeypatch.setattr("ntkit.graph.refuse_random", broken)
    with pytest.raises(TypeError, match="ours"):
        running(torch.relu)
