"""Programs written line by line: the same limits as the networks that they are."""

import pytest
import torch
from torch import nn

import ntkit

D = torch.float64
LINES = """
    # a residual network whose second weight is used twice
    g1 = W1 @ x
    h1 = tanh(g1)
    g2 = W2 @ h1 + g1
    g3 = W2 @ relu(g2)
    y = v @ (relu(g3) + 0.5 * h1 ** 2)
"""


class Same(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(*s, bias=False) for s in ((3, width), (width, width), (width, 1)))

    def forward(self, x):
        g = self.a(x)
        h = torch.tanh(g)
        return self.c(torch.relu(self.b(torch.relu(self.b(h) + g))) + 0.5 * h * h)


def points(n=3, d=3):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=D)


def test_the_limit_is_that_of_the_same_network():
    program, x = ntkit.TensorProgram(LINES, {"x": 3}).double(), points()
    limits = [ntkit.infinite_width(net, x) for net in (program, Same().double())]
    for kind in ("nngp", "ntk"):
        a, b = (getattr(limit, kind)(x) for limit in limits)
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_the_forward_pass_is_the_program():
    program, same, x = ntkit.TensorProgram(LINES, {"x": 3}, width=16).double(), Same(16).double(), points()
    with torch.no_grad():
        for own, name in ((same.a, "W1"), (same.b, "W2"), (same.c, "v")):
            own.weight.copy_(program.get_parameter(name))
    torch.testing.assert_close(program(x), same(x), rtol=1e-13, atol=0)
    kernels = [ntkit.EmpiricalNTK(net)(x) for net in (program, same)]
    torch.testing.assert_close(*kernels, rtol=1e-12, atol=0)


def test_two_inputs_and_functions_of_several_vectors():
    lines = ["g = A @ x", "k = B @ z", "y = v @ (sigmoid(g) * k + maximum(g, k))"]
    program = ntkit.TensorProgram(lines, {"x": 3, "z": 2}, width=256).double()
    x = (points(), points(3, 2))
    limit = ntkit.infinite_width(program, x)
    value, error = limit.expect(lambda g1, g2: g1[:, 0] * g2[:, 1], x)
    assert abs(value) < 5 * error + 1e-12
    drawn = ntkit.monte_carlo(program, 40, x)
    assert ((limit.ntk(x) - drawn.ntk).abs() < 5 * drawn.ntk_error + 0.02 * drawn.ntk.max()).all()


def test_a_weight_and_its_transpose():
    lines = ["g = A @ x", "h = W @ tanh(g)", "k = W.T @ tanh(h)", "y = v @ relu(k)"]
    program, x = ntkit.TensorProgram(lines, {"x": 3}).double(), points()
    w = [program.get_parameter(name) for name in ("A", "W", "v")]
    by_hand = torch.relu(torch.tanh(torch.tanh(x @ w[0].T) @ w[1].T) @ w[1]) @ w[2].T
    torch.testing.assert_close(program(x), by_hand, rtol=1e-13, atol=0)
    with pytest.raises(ntkit.NoRuleError, match="'W'"):
        ntkit.infinite_width(program, x)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "no line"),
        (["g1 = W @"], "no line of a program"),
        (["g1"], "expected 'name = expression'"),
        (["g = A @ x", "g = B @ g", "y = v @ g"], "'g' is defined twice"),
        (["g = A @ x", "y = v @ tahn(g)"], "no function 'tahn'. Did you mean 'tanh'"),
        (["g = A @ x", "y = relu(g)"], "no product with a weight"),
        (["g = A @ x", "y = g @ g"], "left of @ expected a weight"),
        (["g = A @ x", "y = (A + A) @ g"], "left of @ expected a weight"),
        (["g = A @ x", "h = A @ g", "y = v @ h"], "'A' is .64, 64. here and .64, 3. before"),
        (["g = A @ x", "h = g + x", "y = v @ h"], "3 and 64 entries"),
        (["g = A @ x", "y = v @ g[0]"], "is no part of a program"),
        (["g = __import__('os').system('true')", "y = v @ g"], "is no part of a program"),
    ],
)
def test_wrong_lines(lines, words):
    with pytest.raises(ntkit.NtkitError, match=words):
        ntkit.TensorProgram(lines, {"x": 3})
