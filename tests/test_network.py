"""A user's module is called with other weights, and is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import ntkit
from ntkit.network import call_with, network

D = torch.float64


class Twice(nn.Module):
    """A module that is there under two names, a weight tied across modules, and a shared batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.two = nn.Linear(3, 3)
        self.norm = self.again = nn.BatchNorm1d(3)
        self.tied = nn.Linear(3, 3, bias=False)
        self.tied.weight = self.one.weight

    def forward(self, x):
        if x.isnan().any():
            raise RuntimeError("not a number")
        return self.tied(self.again(torch.tanh(self.two(self.norm(torch.tanh(self.one(x)))))))


def sequential():
    linear = nn.Linear(3, 3)
    return nn.Sequential(linear, nn.Tanh(), linear, nn.Sequential(nn.Tanh(), linear))


def of_modules():
    block = nn.Sequential(nn.Linear(3, 3), nn.GELU())
    return nn.Sequential(block, block, nn.ModuleDict({"a": block})["a"])


@pytest.mark.parametrize("make", [Twice, sequential, of_modules])
def test_modules_under_two_names_are_as_they_were(make):
    torch.manual_seed(0)
    model, x = make().to(D).eval(), torch.randn(4, 3, dtype=D)
    before = {name: (id(t), t.clone()) for name, t in model.state_dict(keep_vars=True).items()}
    parameters = [id(p) for p in model.parameters()]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(model(a[None])[0, o], list(model.parameters()))])
        for a in x
        for o in range(3)
    ]
    j = torch.stack(rows).reshape(4, 3, -1)
    k = ntkit.EmpiricalNTK(model, outputs="full")
    truth = torch.einsum("nop,mqp->nmoq", j, j)
    for _ in range(2):
        torch.testing.assert_close(k(x), truth, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(ntkit.linearize(model)(x), model(x), rtol=1e-12, atol=1e-12)
    with pytest.raises((RuntimeError, ntkit.NtkitError)):
        call_with(model, {k: 2 * w for k, w in network(model).weights.items()}, (x * torch.nan,), {})
        raise RuntimeError("networks that take anything")
    after = model.state_dict(keep_vars=True)
    assert [id(p) for p in model.parameters()] == parameters
    for name, (number, value) in before.items():
        assert id(after[name]) == number and torch.equal(after[name], value)
        assert isinstance(after[name], nn.Parameter) == (name.split(".")[-1] in ("weight", "bias"))


def test_each_tensor_is_swapped_everywhere():
    model = Twice().to(D).eval()
    doubled = {name: 2 * w for name, w in network(model).weights.items()}
    x = torch.randn(4, 3, dtype=D)
    found = call_with(model, doubled, (x,), {})
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    torch.testing.assert_close(found, model(x), rtol=1e-13, atol=1e-13)
