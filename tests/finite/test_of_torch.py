"""What torch itself does with a network: wrong gradients for a batch of one, operations in place."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn

import ntkit
from ntkit.errors import NotPerSampleError

D = torch.float64
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def together(model, x):
    """Return the mean kernel by autograd through the module on the whole batch."""
    y, rows = model(x), []
    for value in y.reshape(-1):
        grads = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in grads]))
    j = torch.stack(rows).reshape(*y.shape, -1)
    return torch.einsum("nop,mop->nm", j, j) / y.shape[1]


class Patches(nn.Module):
    """Convolution, batch norm, then positions before channels, written anew in memory."""

    def __init__(self, d):
        super().__init__()
        self.conv, self.norm, self.out = CONVOLUTIONS[d](3, 8, 3, padding=1), NORMS[d](8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.norm(self.conv(x)).flatten(2).transpose(1, 2).contiguous().tanh()).sum(1)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_the_gradient_of_a_batch_counts_where_that_of_one_sample_is_wrong(d):
    torch.manual_seed(0)
    model = Patches(d).double().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    x = torch.randn(3, 3, *[4] * d, dtype=D)
    assert_kernel(ntkit.EmpiricalNTK(model)(x), together(model, x))


class Powers(nn.Module):
    """Raises to a power in place."""

    def __init__(self, power):
        super().__init__()
        self.a, self.b, self.power = nn.Linear(3, 4), nn.Linear(4, 2), power

    def forward(self, x):
        return self.b((self.a(x).square() + 1).pow_(self.power(x)))


POWERS = {"negative": lambda x: -0.5, "whole": lambda x: 3, "tensor": lambda x: x[:, :1]}


@pytest.mark.parametrize("power", POWERS)
def test_powers_in_place(power):
    torch.manual_seed(0)
    model, x = Powers(POWERS[power]).double(), torch.rand(4, 3, dtype=D)
    k = ntkit.EmpiricalNTK(model)
    assert_kernel(k(x), mean_kernel(model, x))
    assert {row.way for row in k.explain(x).rows} == {"structure"}


class Rescales(nn.Linear):
    """Writes into its weight: at its first call, or at each."""

    def __init__(self, once):
        super().__init__(3, 2)
        self.once, self.done = once, False

    def forward(self, x):
        if not (self.once and self.done):
            with torch.no_grad():
                self.weight.mul_(0.5)
            self.done = True
        return super().forward(x)


def test_a_network_that_writes_into_its_weights_is_left_as_its_call_left_it():
    x = torch.randn(4, 3)
    model = Rescales(once=True)
    weight = model.weight.detach().clone()
    with pytest.raises(NotPerSampleError, match="call it once before"):
        ntkit.EmpiricalNTK(model)(x)
    assert model.done and torch.equal(model.weight, weight * 0.5)
    assert_kernel(ntkit.EmpiricalNTK(model)(x), mean_kernel(model, x), 1e-5)
    with pytest.raises(NotPerSampleError, match="writes into its parameter 'weight'"):
        ntkit.EmpiricalNTK(Rescales(once=False))(x)
