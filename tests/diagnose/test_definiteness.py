"""Positive definiteness on the sphere, with polynomials as the counter-example; eigenvalues and norms."""

import pytest
import torch
from torch import nn
from wide_networks import mlp

import ntkit
from ntkit.diagnose.definiteness import definiteness, harmonics, operator_norm, smallest_eigenvalue, sphere
from ntkit.kernel import Kernel


class Power(nn.Module):
    def __init__(self, degree):
        super().__init__()
        self.degree = degree

    def forward(self, x):
        return x**self.degree


def limit(act, d=3, depth=1, sigma_b=0.5):
    return ntkit.infinite_width(
        mlp(16, act, d=d, depth=depth).double(), torch.ones(1, d).double(), sigma_w=1.2, sigma_b=sigma_b
    )


@pytest.mark.parametrize("act", [nn.ReLU, nn.Tanh, nn.GELU, nn.LeakyReLU, nn.Sigmoid])
@pytest.mark.parametrize("depth", [1, 2])
def test_the_ntk_of_a_nonlinearity_that_is_no_polynomial_is_positive_definite(act, depth):
    x = sphere(24, 6, seed=0)
    assert torch.allclose(x.norm(dim=1), torch.ones(24).double())
    found = definiteness(limit(act, 6, depth).ntk, x)
    assert found.positive and found.rank == found.size == 24 and "positive definite" in repr(found)
    assert smallest_eigenvalue(limit(act, 6, depth).ntk, x) == found.smallest > 0


@pytest.mark.parametrize(("degree", "depth"), [(1, 1), (1, 3), (2, 1), (3, 1), (2, 2)])
def test_polynomials_have_the_rank_of_their_degree(degree, depth):
    x, bound = sphere(60, 3, seed=1), harmonics(3, degree**depth)
    k = limit(lambda: Power(degree), depth=depth)
    for kernel in (k.nngp, k.ntk):
        found = definiteness(kernel, x)
        assert not found.positive and found.rank <= bound < 60
        assert f"of rank {found.rank}" in repr(found) and abs(found.smallest) <= found.rounding
    assert definiteness(k.ntk, x).rank == bound  # a bias brings in all lower degrees
    assert definiteness(k.ntk, x[:bound]).positive


def test_a_relu_without_bias_does_not_tell_opposite_points_apart_at_all_orders():
    half = sphere(20, 3, seed=2)
    x = torch.cat([half, -half])
    assert not definiteness(limit(nn.ReLU, sigma_b=0.0).nngp, x).positive
    assert definiteness(limit(nn.ReLU, sigma_b=0.5, depth=2).ntk, x).positive


def test_harmonics_are_counted():
    assert [harmonics(3, p) for p in range(4)] == [1, 4, 9, 16]
    assert [harmonics(2, p) for p in range(4)] == [1, 3, 5, 7]


def test_the_operator_norm_is_the_largest_value_of_its_definition():
    k = limit(nn.ReLU).ntk
    x = sphere(30, 3, seed=3)
    norm, matrix = operator_norm(k, x), k(x)
    _, vectors = torch.linalg.eigh(matrix)
    f = vectors[:, -1] * 30**0.5  # E f^2 = 1
    assert norm == pytest.approx(float((f @ matrix @ f / 30**2).sqrt()), rel=1e-12)
    other = torch.randn(30, generator=torch.Generator().manual_seed(0)).double()
    other = other / other.square().mean().sqrt()
    assert float((other @ matrix @ other / 30**2).clamp(min=0).sqrt()) < norm
    assert operator_norm(4.0 * k, x) == pytest.approx(2 * norm, rel=1e-12)
    assert operator_norm(k, torch.cat([x, x])) == pytest.approx(norm, rel=1e-6)  # does not grow with n
    assert operator_norm(k, sphere(300, 3, seed=4)) == pytest.approx(norm, rel=0.1)


def test_any_kernel_can_be_checked():
    model = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 2)).double()
    x = sphere(8, 3, seed=5)
    full = ntkit.EmpiricalNTK(model, outputs="full")
    assert definiteness(full, x).size == 16 and definiteness(full, x).positive
    assert operator_norm(full, x) >= operator_norm(ntkit.EmpiricalNTK(model), x)
    with pytest.raises(ntkit.NtkitError, match="outputs='full'"):
        definiteness(ntkit.EmpiricalNTK(model, outputs="diagonal"), x)


class Given(Kernel):
    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, x1, x2=None):
        return self.matrix

    def diag(self, x):
        return self.matrix.diagonal()


def test_what_is_no_kernel_is_refused_or_named():
    with pytest.raises(ntkit.NtkitError, match="not symmetric"):
        definiteness(Given(torch.tensor([[1.0, 0.5], [0.0, 1.0]])), None)
    with pytest.raises(ntkit.NtkitError, match="not finite"):
        smallest_eigenvalue(Given(torch.full((2, 2), torch.nan)), None)
    found = definiteness(Given(torch.tensor([[1.0, 2.0], [2.0, 1.0]])), None)
    assert not found.positive and "not positive semi-definite" in repr(found)
