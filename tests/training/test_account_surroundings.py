"""Accounts of networks that read values, and under any state of torch around the call."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import ntkit

D = torch.float64


class Pool(nn.Module):
    """Means over the first ``length`` positions, whose numbers it reads as a list."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, h, length):
        h = torch.tanh(self.a(h))
        return self.o(torch.stack([h[i, :n].mean(0) for i, n in enumerate(length.tolist())]))


class Masked(nn.Module):
    """Attention that looks at its mask first."""

    def __init__(self):
        super().__init__()
        self.qkv, self.o = nn.Linear(3, 12), nn.Linear(4, 1)

    def forward(self, h, mask):
        q, k, v = self.qkv(h).unsqueeze(1).chunk(3, -1)
        bias = None if bool(mask.all()) else mask[:, None, None].bool()
        return self.o(F.scaled_dot_product_attention(q, k, v, bias)[:, 0, 0])


class Powers(nn.Module):
    """Raises each sample to a power that is a number of Python's."""

    def __init__(self):
        super().__init__()
        self.a, self.o = nn.Linear(3, 8), nn.Linear(8, 1)

    def forward(self, h, n):
        h = torch.sigmoid(self.a(h.mean(1)))
        return self.o(torch.stack([row ** (1 + int(k)) for row, k in zip(h, n, strict=True)]))


DATA = {
    "a list": (Pool, torch.tensor([3, 5, 1, 2, 4, 5, 5, 1])),
    "a mask": (Masked, torch.tensor([[1] * 5, [1, 1, 0, 0, 0], [1] * 5, [1, 1, 1, 0, 0]] * 2)),
    "numbers": (Powers, torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])),
}
STATES = {
    "nothing": contextlib.nullcontext,
    "inference mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
}


@pytest.mark.parametrize("name", DATA)
def test_accounts_of_networks_that_read_values(name, tmp_path):
    torch.manual_seed(0)
    make, second = DATA[name]
    model, loss = make().to(D), nn.MSELoss()
    x, y = (torch.randn(8, 5, 3, dtype=D), second), torch.randn(8, 1, dtype=D)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for _ in range(4):
            index = torch.randperm(8)[:4]
            run.batch(index)
            optimizer.zero_grad()
            loss(model(*(t[index] for t in x)), y[index]).backward()
            optimizer.step()
    queries = tuple(t[:3] for t in x)
    accounts = []
    for state in STATES.values():
        with state():
            accounts.append(ntkit.account(tmp_path / "run", model, loss, train=(x, y), queries=queries))
        assert accounts[-1].converged
        torch.testing.assert_close(
            accounts[-1].prediction.clone(), model(*queries).detach(), rtol=1e-9, atol=1e-12
        )
        assert torch.equal(accounts[-1].contributions, accounts[0].contributions)
    kernel = ntkit.PathKernel(tmp_path / "run", model)
    expected = kernel(queries)
    for state in STATES.values():
        with state():
            assert torch.equal(kernel(queries).clone(), expected)
