"""Estimators and solvers with kernels that live on a device: the answers of the processor."""

import numpy as np
import pytest
import torch
from torch import nn

import ntkit
from ntkit.compute.cg import conjugate_gradients
from ntkit.compute.cholesky import cholesky
from ntkit.compute.eigen import leading, spectrum
from ntkit.compute.matrix import Dense
from ntkit.compute.pivoted import pivoted_cholesky

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

D = torch.float64


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator, dtype=D)
    return x, x[:, :2].sin().sum(1), (x[:, 0] > 0).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 32), nn.Tanh(), nn.Linear(32, 1)).double()


ESTIMATORS = {
    "ridge": (lambda k: ntkit.KernelRidge(kernel=k, alpha=0.1), 1),
    "process": (lambda k: ntkit.GaussianProcess(kernel=k, noise=0.1), 1),
    "flow": (lambda k: ntkit.GradientFlow(kernel=k, t=10.0), 1),
    "classifier": (lambda k: ntkit.KernelClassifier(kernel=k, alpha=0.1), 2),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_with_the_tangent_kernel_of_a_network_on_cuda(name):
    x, target, label = data()
    make, which = ESTIMATORS[name]
    y = (None, target, label)[which]
    expected = make(ntkit.EmpiricalNTK(network())).fit(x.numpy(), y.numpy()).predict(x[:7].numpy())
    found = make(ntkit.EmpiricalNTK(network().cuda())).fit(x.cuda(), y.cuda()).predict(x[:7].cuda())
    found = found.cpu().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


def test_solvers_on_cuda():
    generator = torch.Generator().manual_seed(0)
    low = torch.randn(80, 80, generator=generator, dtype=D)
    k, b = low @ low.T + torch.eye(80, dtype=D), torch.randn(80, 3, generator=generator, dtype=D)
    expected = torch.linalg.solve(k, b)
    found = cholesky(k.cuda()).solve(b.cuda())
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-8, atol=1e-8)
    solved = conjugate_gradients(Dense(k.cuda()), b.cuda(), tol=1e-12).x
    torch.testing.assert_close(solved.cpu(), expected, rtol=1e-7, atol=1e-7)
    values = torch.linalg.eigvalsh(k).flip(0)
    torch.testing.assert_close(spectrum(k.cuda()).values.cpu().sort(descending=True).values, values)
    torch.testing.assert_close(leading(Dense(k.cuda()), 4)[0].cpu(), values[:4])
    factor = pivoted_cholesky(Dense(k.cuda()), 80).factor
    torch.testing.assert_close((factor @ factor.T).cpu(), k)


@pytest.mark.parametrize("solver", ["cholesky", "cg"])
def test_ridge_on_a_limit_on_cuda(solver):
    x, target, _ = data()
    limit = ntkit.infinite_width(network(), x[:1], compile=False)
    there = ntkit.infinite_width(network().cuda(), x[:1].cuda(), compile=False)
    expected = ntkit.KernelRidge(kernel=limit.ntk, alpha=0.1, solver="cholesky").fit(
        x.numpy(), target.numpy()
    )
    found = ntkit.KernelRidge(kernel=there.ntk, alpha=0.1, solver=solver).fit(x.cuda(), target.cuda())
    p = found.predict(x[:7].cuda())
    p = p.cpu().numpy() if isinstance(p, torch.Tensor) else p
    np.testing.assert_allclose(p, expected.predict(x[:7].numpy()), rtol=1e-6, atol=1e-6)
