"""Solvers against dense linear algebra, on well- and ill-conditioned matrices."""

import numpy as np
import pytest
import torch
from torch import nn

import ntkit
from ntkit.compute.cg import conjugate_gradients, low_rank_inverse
from ntkit.compute.cholesky import JitterWarning, cholesky
from ntkit.compute.eigen import leading, spectrum
from ntkit.compute.matrix import Dense, MatrixFree
from ntkit.compute.nystrom import nystrom
from ntkit.compute.pivoted import pivoted_cholesky

N = 150


@pytest.fixture
def ill():
    """A kernel matrix whose eigenvalues fall by ten orders of magnitude."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.normal(size=(N, N)))[0]
    return torch.as_tensor((q * np.logspace(2, -8, N)) @ q.T)


@pytest.fixture
def b():
    return torch.as_tensor(np.random.default_rng(1).normal(size=(N, 3)))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)).double()


def test_cholesky_tells_condition_and_smallest_eigenvalue(ill, b):
    f = cholesky(ill, 1e-3)
    a = ill + 1e-3 * torch.eye(N, dtype=torch.float64)
    torch.testing.assert_close(f.solve(b), torch.linalg.solve(a, b), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(f.inverse_diagonal(), torch.linalg.inv(a).diagonal(), rtol=1e-9, atol=0)
    assert f.logdet == pytest.approx(float(torch.linalg.slogdet(a)[1]))
    assert f.condition == pytest.approx(float(torch.linalg.cond(a)), rel=1e-2)
    assert f.jitter == 0
    assert f.min_eigenvalue == pytest.approx(0, abs=1e-5)


def test_jitter_is_told(ill):
    twice = torch.cat([torch.cat([ill, ill], 1)] * 2)
    with pytest.warns(JitterWarning, match="was added to its diagonal"):
        f = cholesky(twice)
    assert 0 < f.jitter <= 1e-8 * float(ill.diagonal().mean())
    with pytest.raises(ntkit.NtkitError, match="smallest eigenvalue is -"):
        cholesky(ill - torch.eye(N, dtype=torch.float64))


def test_spectrum_refuses_negative_eigenvalues_and_clears_rounding(ill):
    low = ill[:, :5] @ ill[:5]
    s = spectrum(low @ low.T)
    assert (s.values >= 0).all() and int((s.values > 0).sum()) <= 5
    torch.testing.assert_close(s.vectors @ torch.diag(s.values) @ s.vectors.T, low @ low.T)
    with pytest.raises(ntkit.NtkitError, match="not positive semi-definite"):
        spectrum(ill - torch.eye(N, dtype=torch.float64))


def test_leading_eigenvalues_by_lanczos(ill):
    values, vectors = leading(Dense(ill), 4)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(ill).flip(0)[:4])
    torch.testing.assert_close(ill @ vectors, vectors * values)
    with pytest.raises(ntkit.NtkitError, match="between 1 and"):
        leading(Dense(ill), N)


@pytest.mark.parametrize("rank", [20, 60, N])
def test_pivoted_cholesky_is_a_nystrom_approximation(ill, rank):
    low = pivoted_cholesky(Dense(ill), rank)
    s = low.pivots
    exact = ill[:, s] @ torch.linalg.pinv(ill[s][:, s], hermitian=True) @ ill[s]
    assert float((low.factor @ low.factor.T - exact).norm()) < 1e-6 * float(ill.norm())
    best = float(torch.linalg.eigvalsh(ill)[: N - len(s)].sum())
    assert low.trace < 10 * best + 1e-9
    assert len(set(s.tolist())) == len(s)
    torch.testing.assert_close(pivoted_cholesky(Dense(ill), rank).factor, low.factor, rtol=0, atol=0)


def test_a_preconditioner_halves_the_iterations_at_least(ill, b):
    shift = 1e-6 * float(ill.diagonal().mean())
    plain = conjugate_gradients(Dense(ill), b, shift, tol=1e-8)
    low = pivoted_cholesky(Dense(ill), 100)
    found = conjugate_gradients(Dense(ill), b, shift, precondition=low_rank_inverse(low, shift), tol=1e-8)
    assert found.converged and 2 * found.iterations <= plain.iterations
    true = (b - ill @ found.x - shift * found.x).norm(dim=0) / b.norm(dim=0)
    torch.testing.assert_close(true, found.residual)
    assert float(true.max()) <= 1e-8


def test_conjugate_gradients_end_where_rounding_does(ill, b):
    found = conjugate_gradients(Dense(ill), b, 0.0, tol=1e-15, max_iter=400)
    assert not found.converged and torch.isfinite(found.x).all()
    assert float(conjugate_gradients(Dense(ill), 0 * b, 1.0).x.abs().max()) == 0
    with pytest.raises(ntkit.NtkitError, match="not positive definite"):
        conjugate_gradients(Dense(-ill), b)


def test_a_matrix_that_is_not_formed(network, b):
    k, x = ntkit.EmpiricalNTK(network), np.random.default_rng(0).normal(size=(N, 3))
    for kernel in (k, k.normalized()):  # with an operator, and by blocks of rows
        free, dense = MatrixFree(kernel, x, budget=8 * N * 7), Dense(kernel(x))
        torch.testing.assert_close(free @ b, dense @ b)
        torch.testing.assert_close(free.diag(), dense.diag())
        index = torch.tensor([3, 1])
        torch.testing.assert_close(free.columns(index), dense.columns(index))
    torch.testing.assert_close(leading(MatrixFree(k, x), 3)[0], leading(Dense(k(x)), 3)[0])
    low = pivoted_cholesky(MatrixFree(k, x), 20)
    found = conjugate_gradients(MatrixFree(k, x), b, 1e-2, precondition=low_rank_inverse(low, 1e-2))
    expected = torch.linalg.solve(k(x) + 1e-2 * torch.eye(N, dtype=torch.float64), b)
    torch.testing.assert_close(found.x, expected, rtol=1e-6, atol=1e-5)
    with pytest.raises(ntkit.NtkitError, match="one number for two samples"):
        MatrixFree(ntkit.EmpiricalNTK(nn.Linear(3, 2).double(), outputs="full"), x)


def test_nystrom_on_all_samples_is_the_solution(b):
    x = np.random.default_rng(2).normal(size=(N, 4))
    gram = torch.as_tensor(np.exp(-((x[:, None] - x) ** 2).sum(-1)))
    low = pivoted_cholesky(Dense(gram), N)
    c = torch.zeros_like(b)
    c[low.pivots] = nystrom(low, b, 0.1)
    torch.testing.assert_close(
        gram @ c, gram @ torch.linalg.solve(gram + 0.1 * torch.eye(N, dtype=torch.float64), b)
    )


@pytest.mark.parametrize("below", [1e-13, 1e-11, 1e-9])
def test_what_a_kink_makes_of_parallel_samples_is_rounding(below):
    turned, _ = torch.linalg.qr(torch.randn(N, N, dtype=torch.float64, generator=torch.manual_seed(1)))
    values = torch.linspace(0.5, 1, N, dtype=torch.float64)
    values[0], values[1] = -below, below / 2
    s = spectrum(turned @ torch.diag(values) @ turned.T)
    assert s.values[0] == 0 and s.values[1] == 0 and (s.values[2:] > 0.4).all()
    assert s.floor >= below
    with pytest.raises(ntkit.NtkitError, match="rounding explains 1e-08"):
        values[0] = -1e-7
        spectrum(turned @ torch.diag(values) @ turned.T)
