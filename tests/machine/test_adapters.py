import gpytorch
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import KernelPCA
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.svm import SVC
from torch import nn

import ntkit
from ntkit.machine.adapters import FromGPyTorch, FromSklearn, ToSklearn, to_gpytorch


@pytest.fixture
def kernel():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 1)).double()
    return ntkit.EmpiricalNTK(model)


@pytest.fixture
def digits():
    x, y = load_digits(return_X_y=True)
    keep = y < 2
    return x[keep][:120] / 16, y[keep][:120]


def test_scikit_learns_kernels_are_ours():
    x = torch.randn(6, 3, dtype=torch.float64)
    k = FromSklearn(RBF(0.7))
    torch.testing.assert_close(k(x, x[:2]), torch.as_tensor(RBF(0.7)(x.numpy(), x[:2].numpy())))
    torch.testing.assert_close((k + 2.0 * k).diag(x), 3 * torch.ones(6, dtype=torch.float64))
    assert k(x.float()).dtype == torch.float32
    with pytest.raises(ntkit.NtkitError, match=r"sklearn\.gaussian_process\.kernels"):
        FromSklearn(lambda x: x)


def test_ours_are_scikit_learns(kernel, digits):
    x, y = digits
    theirs = ToSklearn(kernel)
    gram = kernel(torch.as_tensor(x)).numpy()
    np.testing.assert_allclose(theirs(x), gram)
    np.testing.assert_allclose(theirs.diag(x), gram.diagonal())
    target = y + 0.3 * np.random.default_rng(0).normal(size=len(y))  # so that there is a noise to fit
    gp = GaussianProcessRegressor(theirs + WhiteKernel(0.1), random_state=0).fit(x[:80], target[:80])
    noise = gp.kernel_.k2.noise_level
    expected = gram[80:, :80] @ np.linalg.solve(gram[:80, :80] + noise * np.eye(80), target[:80])
    np.testing.assert_allclose(gp.predict(x[80:]), expected, rtol=1e-6, atol=1e-8)
    assert SVC(kernel=theirs).fit(x[:80], y[:80]).score(x[80:], y[80:]) >= 0.95
    parts = KernelPCA(3, kernel="precomputed").fit_transform(theirs(x))
    assert np.isfinite(parts).all()
    with pytest.raises(ntkit.NtkitError, match="outputs='mean'"):
        ToSklearn(ntkit.EmpiricalNTK(kernel.model, outputs="full"))(x[:3])


def test_gpytorchs_kernels_are_ours():
    x = torch.randn(6, 3, dtype=torch.float64)
    theirs = gpytorch.kernels.RBFKernel().double()
    k = FromGPyTorch(theirs)
    torch.testing.assert_close(k(x, x[:2]), theirs(x, x[:2]).to_dense().detach())
    torch.testing.assert_close(k.diag(x), torch.ones(6, dtype=torch.float64))
    with pytest.raises(ntkit.NtkitError, match=r"gpytorch\.kernels\.Kernel"):
        FromGPyTorch(RBF())


@pytest.mark.parametrize("matrix_free", [False, True])
def test_ours_are_gpytorchs(kernel, digits, matrix_free):
    x, y = (torch.as_tensor(a, dtype=torch.float64) for a in digits)

    class GP(gpytorch.models.ExactGP):
        def __init__(self, x, y, likelihood):
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = to_gpytorch(kernel, matrix_free)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    likelihood.noise = 0.1
    model = GP(x[:80], y[:80], likelihood).eval()
    likelihood.eval()
    gram = kernel(x)
    expected = gram[80:, :80] @ torch.linalg.solve(gram[:80, :80] + 0.1 * torch.eye(80).double(), y[:80])
    with torch.no_grad():
        torch.testing.assert_close(model(x[80:]).mean, expected, rtol=1e-6, atol=1e-8)
        assert (model(x[80:]).variance > 0).all()
    if matrix_free:
        with pytest.raises(ntkit.NtkitError, match="no operator"):
            to_gpytorch(kernel.normalized(), matrix_free=True)
