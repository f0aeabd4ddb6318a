"""Networks that read values of their samples: one path that serves all, or a refusal."""

import pytest
import torch
from torch import nn

import ntkit

SIZE = 4


class Masked(nn.Module):
    """Means over the places that are seen; asks first, as many do, whether there is anything to hide."""

    def __init__(self, asks, reads="all"):
        super().__init__()
        self.a, self.o, self.asks, self.reads = nn.Linear(2, 16), nn.Linear(16, 1), asks, reads

    def forward(self, x, mask):
        h = torch.tanh(self.a(x))
        if self.asks and self.hides_nothing(mask):
            return self.o(h.mean(1))
        share = mask / mask.sum(1, keepdim=True)
        return self.o((h * share[..., None]).sum(1))

    def hides_nothing(self, mask):
        if self.reads == "all":
            return bool(mask.bool().all())
        return mask.sum().item() == mask.numel() if self.reads == "item" else 0 not in mask.flatten().tolist()


class Other(nn.Module):
    """Another function for some samples than for others."""

    def __init__(self, by_weights=False):
        super().__init__()
        self.a, self.o, self.by_weights = nn.Linear(2, 16), nn.Linear(16, 1), by_weights

    def forward(self, x):
        h = self.a(x)
        asked = h if self.by_weights else x
        return self.o(torch.tanh(h) if asked.sum() > 0 else torch.sin(h))


def samples(seed=0, hidden=(0, 2, 1)):
    torch.manual_seed(seed)
    x = torch.randn(len(hidden), SIZE, 2, dtype=torch.float64)
    mask = torch.ones(len(hidden), SIZE, dtype=torch.float64)
    for row, count in zip(mask, hidden, strict=True):
        row[SIZE - count :] = 0
    return x, mask


@pytest.mark.parametrize("reads", ["all", "item", "tolist"])
@pytest.mark.parametrize("hidden", [(0, 2, 1), (2, 0, 1), (0, 0, 0)])
def test_masks_that_are_asked_about_are_data(reads, hidden):
    batch = samples(hidden=hidden)
    asking = ntkit.infinite_width(Masked(True, reads).double(), batch)
    plain = ntkit.infinite_width(Masked(False).double(), batch)
    for kind in ("nngp", "ntk"):
        torch.testing.assert_close(
            getattr(asking, kind)(batch), getattr(plain, kind)(batch), rtol=1e-12, atol=0
        )


def test_a_path_for_later_samples_is_looked_for():
    first, later = samples(hidden=(0, 0)), samples(1, hidden=(1, 3, 0))
    asking = ntkit.infinite_width(Masked(True).double(), first)
    plain = ntkit.infinite_width(Masked(False).double(), first)
    torch.testing.assert_close(asking.ntk(later, first), plain.ntk(later, first), rtol=1e-12, atol=0)
    torch.testing.assert_close(asking.ntk.diag(later), plain.ntk.diag(later), rtol=1e-12, atol=0)
    torch.testing.assert_close(asking.nngp(first), plain.nngp(first), rtol=1e-12, atol=0)


def test_samples_that_go_different_ways_are_refused_together():
    x = torch.tensor([[1.0, 2.0], [-1.0, 0.5], [-2.0, 1.0]], dtype=torch.float64)
    torch.manual_seed(0)
    limit = ntkit.infinite_width(Other().double(), x[:1])
    sin = nn.Sequential(nn.Linear(2, 16), Sin(), nn.Linear(16, 1)).double()
    expected = ntkit.infinite_width(sin, x[:1]).ntk(x[1:])
    torch.testing.assert_close(limit.ntk(x[1:]), expected, rtol=1e-12, atol=0)
    with pytest.raises(ntkit.NoRuleError, match="another path for some of these samples"):
        limit.ntk(x)


def test_a_path_that_weights_decide_is_refused():
    with pytest.raises(ntkit.NoRuleError, match="branches on values that its weights make"):
        ntkit.infinite_width(Other(by_weights=True), torch.ones(1, 2))


class Sin(nn.Module):
    """The sine."""

    def forward(self, x):
        return torch.sin(x)
