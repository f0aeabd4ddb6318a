"""Kernel ridge regression against linear algebra and against refits."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process.kernels import RBF
from sklearn.kernel_ridge import KernelRidge as Theirs
from torch import nn

import ntkit
from ntkit.compute.cholesky import JitterWarning
from ntkit.machine.kernels import ReLUKernel

RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(40, 3)), RNG.normal(size=(7, 3))
KERNEL = ReLUKernel()  # read once, and not for each fit
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1)


@pytest.mark.parametrize("solver", ["auto", "cholesky", "eigen", "cg", "nystrom"])
def test_it_is_scikit_learns(solver):
    ours = ntkit.KernelRidge(RBF(1.5), 0.3, normalize_y=False, solver=solver, rank=40, tol=1e-12).fit(X, Y)
    theirs = Theirs(alpha=0.3, kernel="precomputed").fit(RBF(1.5)(X), Y)
    np.testing.assert_allclose(ours.predict(Q), theirs.predict(RBF(1.5)(Q, X)), rtol=1e-8, atol=1e-9)
    assert ours.predict(Q).shape == (7, 2) and ours.solver_reason_


def test_sample_weights_count_as_repetitions():
    weights = RNG.integers(0, 4, size=40)
    ours = ntkit.KernelRidge(KERNEL, alpha=0.1).fit(X, Y, weights)
    again = ntkit.KernelRidge(KERNEL, alpha=0.1).fit(np.repeat(X, weights, 0), np.repeat(Y, weights, 0))
    np.testing.assert_allclose(ours.predict(Q), again.predict(Q), rtol=1e-8, atol=1e-8)
    gram = ntkit.KernelRidge(kernel="precomputed", alpha=0.1).fit(ours.kernel_(X), Y, weights)
    np.testing.assert_allclose(gram.predict(ours.kernel_(Q, X)), ours.predict(Q), rtol=1e-9)


@pytest.mark.parametrize("solver", ["cholesky", "eigen", "cg"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("centered", [False, True])
def test_leave_one_out_is_n_refits(solver, weighted, centered):
    weights = RNG.uniform(0.5, 2, size=40) if weighted else None
    options = {"alpha": 0.05, "normalize_y": centered}
    ours = ntkit.KernelRidge(KERNEL, solver=solver, tol=1e-13, **options).fit(X, Y, weights)
    refits = []
    for i in range(40):
        rest = np.arange(40) != i
        one = ntkit.KernelRidge(KERNEL, **options).fit(X[rest], Y[rest], weights[rest] if weighted else None)
        refits.append(Y[i] - one.predict(X[i : i + 1])[0])
    np.testing.assert_allclose(ours.leave_one_out(), refits, rtol=1e-8, atol=1e-8)


def test_a_path_is_a_fit_for_each_alpha():
    alphas = np.logspace(-4, 2, 5)
    path = ntkit.KernelRidge(KERNEL).fit(X, Y).path(alphas)
    for i, alpha in enumerate(alphas):
        one = ntkit.KernelRidge(KERNEL, alpha=alpha).fit(X, Y)
        np.testing.assert_allclose(path.predict(Q)[i], one.predict(Q), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(path.loo[i], (one.leave_one_out() ** 2).mean(), rtol=1e-8)
        np.testing.assert_allclose(path.gcv[i], one.gcv(), rtol=1e-8)
        gram = one.kernel_(X).numpy()
        hat = np.linalg.solve(gram + alpha * np.eye(40), gram).T
        z = Y - Y.mean(0)
        residual = z - hat @ z
        expected = 40 * (residual**2).sum() / 2 / (40 - np.trace(hat)) ** 2
        np.testing.assert_allclose(one.gcv(), expected, rtol=1e-6)


@pytest.mark.parametrize("score", ["loo", "gcv"])
def test_alpha_is_chosen(score):
    noisy = Y + 0.3 * RNG.normal(size=Y.shape)
    ours = ntkit.KernelRidge(KERNEL, alpha=score).fit(X, noisy / noisy.std(0))
    path = ours.path(np.logspace(-4, 3, 40))
    best = (ours.leave_one_out() ** 2).mean() if score == "loo" else ours.gcv()
    assert best <= getattr(path, score).min() * (1 + 1e-6)
    free = ntkit.KernelRidge(KERNEL, alpha=score, solver="cg").fit(X, noisy / noisy.std(0))
    assert free.solver_ == "cg" and free.alpha_ == ours.alpha_


def test_duplicates_at_alpha_zero_get_their_mean():
    twice, y = np.concatenate([X, X[:1]]), np.append(Y[:, 0], Y[0, 0] + 1)
    ours = ntkit.KernelRidge(KERNEL, alpha=0).fit(twice, y)
    np.testing.assert_allclose(ours.predict(twice), [Y[0, 0] + 0.5, *Y[1:, 0], Y[0, 0] + 0.5], atol=1e-8)
    assert ours.condition_ == np.inf and "null space" in ours.solver_reason_
    with pytest.warns(JitterWarning):
        close = ntkit.KernelRidge(KERNEL, alpha=0, solver="cholesky").fit(twice, y)
    assert close.jitter_ > 0
    np.testing.assert_allclose(close.predict(Q), ours.predict(Q), atol=1e-3)


def test_reports():
    ours = ntkit.KernelRidge(KERNEL, alpha=0.1).fit(X, Y)
    values = np.linalg.eigvalsh(ours.kernel_(X).numpy())
    assert (ours.solver_, ours.jitter_) == ("cholesky", 0)
    assert ours.condition_ == pytest.approx((values[-1] + 0.1) / (values[0] + 0.1), rel=1e-2)
    assert ours.min_eigenvalue_ == pytest.approx(values[0], abs=1e-3)
    free = ntkit.KernelRidge(KERNEL, alpha=0.1, memory="10KiB").fit(X, Y)
    assert free.solver_ == "cg" and free.residual_ <= 1e-8 and np.isnan(free.condition_)
    np.testing.assert_allclose(free.predict(Q), ours.predict(Q), rtol=1e-6)


@pytest.mark.parametrize("solver", ["cg", "nystrom"])
def test_kernels_that_are_never_formed(solver):
    torch.manual_seed(0)
    k = ntkit.EmpiricalNTK(nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Linear(64, 1)).double())
    free = ntkit.KernelRidge(k, alpha=0.1, solver=solver, rank=40, tol=1e-12).fit(X, Y)
    np.testing.assert_allclose(
        free.predict(Q), ntkit.KernelRidge(k, alpha=0.1).fit(X, Y).predict(Q), rtol=1e-6, atol=1e-8
    )


def test_refusals():
    with pytest.raises(ntkit.NtkitError, match="smallest eigenvalue is -"):
        ntkit.KernelRidge("precomputed", alpha=0.1).fit(-KERNEL(X), Y)
    with pytest.raises(ntkit.NtkitError, match="not symmetric"):
        ntkit.KernelRidge("precomputed").fit(np.triu(np.ones((3, 3))), [1.0, 2.0, 3.0])
    with pytest.raises(ntkit.NtkitError, match="is a network, not a kernel"):
        ntkit.KernelRidge(nn.Linear(3, 1)).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="NaN"):
        ntkit.KernelRidge(lambda a, b: np.full((len(a), len(b)), np.nan)).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="one number"):
        ntkit.GaussianProcess(ntkit.EmpiricalNTK(nn.Linear(3, 2), outputs="full")).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="values for 2 outputs; expected targets with as many, got 1"):
        ntkit.KernelRidge(ntkit.EmpiricalNTK(nn.Linear(3, 2), outputs="full")).fit(X, Y[:, 0])
    with pytest.raises(ntkit.NtkitError, match="alpha=-1"):
        ntkit.KernelRidge(alpha=-1).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="solver='lu'"):
        ntkit.KernelRidge(solver="lu").fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="Did you mean 'rbf'"):
        ntkit.KernelRidge("rbff").fit(X, Y)
