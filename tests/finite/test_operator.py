import numpy as np
import pytest
import torch
from linear_operator.utils.linear_cg import linear_cg
from networks import CASES, build
from scipy.sparse.linalg import cg, eigsh

import ntkit


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (i % 2)) for i, n in enumerate(CASES)]
)
def test_products_are_those_of_the_matrix(name):
    model, x = build(name)
    for outputs in ("full", "mean"):  # whose sum over outputs is the trace
        k = ntkit.EmpiricalNTK(model, outputs=outputs)
        operator = k.operator(x, x[1:])
        block = k(x, x[1:])
        dense = block.transpose(1, 2).reshape(operator.shape) if outputs == "full" else block
        v = torch.randn(dense.shape[1], 3, dtype=dense.dtype, generator=torch.Generator().manual_seed(0))
        expected = dense @ v
        assert ((operator @ v) - expected).abs().max() <= 1e-10 * expected.abs().max()
        assert ((operator @ v[:, 0]) - expected[:, 0]).abs().max() <= 1e-10 * expected.abs().max()
        back = dense.T @ dense
        assert ((operator.mT @ dense) - back).abs().max() <= 1e-10 * back.abs().max()
        torch.testing.assert_close(operator.to_dense(), dense, rtol=1e-12, atol=1e-12)
        own = k.operator(x)
        torch.testing.assert_close(own.diagonal(), torch.diagonal(own.to_dense()), rtol=1e-10, atol=1e-12)


def test_small_budgets_change_no_product():
    model, x = build("conv, zero padding")
    v = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = ntkit.EmpiricalNTK(model, outputs="full").operator(x) @ v
    small = ntkit.EmpiricalNTK(model, outputs="full", memory=3000).operator(x) @ v
    torch.testing.assert_close(small, whole, rtol=1e-12, atol=1e-12)


def test_scipy_finds_eigenvalues_and_solutions():
    model, _ = build("MLP")
    x = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    operator = ntkit.EmpiricalNTK(model, outputs="full").operator(x)
    dense = operator.to_dense().numpy()
    found = eigsh(operator.to_scipy(), k=4, return_eigenvectors=False)
    np.testing.assert_allclose(np.sort(found), np.linalg.eigvalsh(dense)[-4:], rtol=1e-10)
    scalar = ntkit.EmpiricalNTK(model).operator(x)
    matrix = scalar.to_dense().numpy()
    b = np.sin(np.arange(12.0))
    solution, info = cg(scalar.to_scipy(), b, rtol=1e-12, maxiter=500)
    assert info == 0
    np.testing.assert_allclose(matrix @ solution, b, atol=1e-9)
    np.testing.assert_allclose(scalar.to_scipy().rmatvec(b), matrix.T @ b, rtol=1e-10)


def test_linear_operator_solves_with_it():
    model, _ = build("MLP")
    x = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    operator = ntkit.EmpiricalNTK(model).operator(x)
    b = torch.sin(torch.arange(24.0, dtype=torch.float64)).reshape(12, 2)
    solution = linear_cg(operator.matmul, b, tolerance=1e-10, eps=1e-40, max_iter=200, max_tridiag_iter=0)
    residual = operator.to_dense() @ solution - b
    assert residual.abs().max() < 1e-8
    noisy = operator.add_jitter(0.5)
    expected = torch.linalg.solve(operator.to_dense() + 0.5 * torch.eye(12, dtype=torch.float64), b)
    torch.testing.assert_close(noisy.solve(b), expected, rtol=1e-8, atol=1e-10)


def test_the_diagonal_has_no_one_operator():
    model, x = build("MLP")
    with pytest.raises(ntkit.NtkitError, match="outputs='diagonal' is one matrix for each output"):
        ntkit.EmpiricalNTK(model, outputs="diagonal").operator(x)
