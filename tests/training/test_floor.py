"""Networks that compute in float32 inside: a floor that is told, instead of nodes without end."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ntkit


class Inside(nn.Module):
    """A network in float64 with one function computed in float32, as transformers do."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 12), nn.Linear(12, 2), function

    def forward(self, x):
        h = self.a(x)
        return self.b(torch.tanh(self.function(h)))


FUNCTIONS = {
    "RMS norm": lambda h: h * torch.rsqrt(h.float().square().mean(-1, keepdim=True) + 1e-6).to(h.dtype),
    "layer norm": lambda h: F.layer_norm(h.float(), (12,)).to(h.dtype),
    "softmax": lambda h: 5 * torch.softmax(h.float(), -1).to(h.dtype),
}
WIDE = {"RMS norm": lambda h: h, "ReLU": torch.relu, "layer norm": lambda h: F.layer_norm(h, (12,))}


def accounted(folder, function, tol):
    torch.manual_seed(0)
    net = Inside(function).double()
    x, y = torch.randn(16, 4, dtype=torch.float64), torch.arange(16) % 2
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with ntkit.record(folder, net, optimizer) as run:
        for _ in range(5):
            run.batch(range(16))
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return ntkit.account(folder, net, F.cross_entropy, train=(x, y), queries=x[:3], tol=tol)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_floor_is_told_and_nodes_are_few(name, tmp_path):
    with pytest.warns(RuntimeWarning, match="computes in less than float64 inside"):
        a = accounted(tmp_path, FUNCTIONS[name], 1e-10)
    assert max(a.nodes) <= 5  # they went up to hundreds, in search of what is not there
    assert 1e-9 < a.plan.floor < 1e-4 and a.relative_residual <= a.plan.floor
    assert "rounding within the network leaves" in str(a.plan)


def test_above_the_floor_it_converges(tmp_path):
    a = accounted(tmp_path, FUNCTIONS["softmax"], 1e-4)
    assert a.converged and a.relative_residual < 1e-4


@pytest.mark.parametrize("name", WIDE)
def test_in_float64_there_is_none(name, tmp_path):
    a = accounted(tmp_path, WIDE[name], 1e-8)
    assert a.converged and a.plan.floor < 1e-12
