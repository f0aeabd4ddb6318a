"""Factors of covariances, of those too that were sampled and are none."""

import pytest
import torch
from torch import nn

import ntkit
from ntkit.infinite.variables.numerics import Numerics

D = torch.float64


def numerics(dtype=D):
    return Numerics(64, 0, dtype, torch.device("cpu"))


def gram(m, rank, seed=0):
    a = torch.randn(m, rank, generator=torch.Generator().manual_seed(seed), dtype=D)
    return a @ a.T


@pytest.mark.parametrize("rank", [3, 20, 40])
def test_factors_of_covariances_and_of_singular_ones(rank):
    covariance = torch.stack([gram(20, rank), 1e8 * gram(20, rank, 1), torch.zeros(20, 20, dtype=D)])
    found = numerics()
    factor = found.factor(covariance)
    assert torch.equal(factor, factor.tril()) and found.jitter < 1e-10
    torch.testing.assert_close(factor @ factor.mT, covariance, rtol=1e-11, atol=1e-5)


def test_what_is_no_covariance_keeps_its_variances_and_tells_the_change():
    covariance = gram(20, 30) / 30
    covariance[:10, 10:] *= 1.5  # correlations above one
    covariance[10:, :10] *= 1.5
    assert torch.linalg.eigvalsh(covariance)[0] < -0.1
    found = numerics()
    both = found.factor(torch.stack([gram(20, 30, 1), covariance]))
    assert torch.equal(both[0], numerics().factor(gram(20, 30, 1)[None])[0])  # not what stands beside it
    torch.testing.assert_close(both, both.tril(), rtol=0, atol=1e-14)
    made = both[1] @ both[1].T
    torch.testing.assert_close(made.diagonal(), covariance.diagonal(), rtol=1e-12, atol=0)
    change = (made - covariance).abs().max() / covariance.diagonal().max()
    assert 0.05 < change < 0.5 and found.jitter == pytest.approx(float(change), rel=1e-9)


@pytest.mark.slow
def test_two_poolings_with_fewer_points_than_positions():
    pooled = (nn.ReLU(), nn.MaxPool2d(2))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *pooled, nn.Conv2d(4, 4, 3, padding=1), *pooled)
    model = model.extend([nn.Flatten(), nn.Linear(64, 1)]).double()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=D)
    few, many = (ntkit.infinite_width(model, x, samples=s, compile=False) for s in (64, 2**11))
    for kind in ("nngp", "ntk"):
        rough, fine = (getattr(limit, kind)(x) for limit in (few, many))
        scale = fine.diagonal().outer(fine.diagonal()).sqrt()
        assert ((rough - fine).abs() / scale).max() < 4 * few.error
