"""Gaussian processes against scikit-learn's and against finite differences of themselves."""

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from torch import nn

import ntkit

RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(30, 2)), RNG.normal(size=(6, 2))
Y = np.stack([np.sin(2 * X[:, 0]), X[:, 1]], 1) + 0.1 * RNG.normal(size=(30, 2))


@pytest.mark.parametrize("outputs", [1, 2])
def test_it_is_scikit_learns(outputs):
    y = Y[:, 0] if outputs == 1 else Y
    ours = ntkit.GaussianProcess(RBF(0.8), noise=0.05).fit(X, y)
    theirs = GaussianProcessRegressor(RBF(0.8), alpha=0.05, optimizer=None).fit(X, y)
    for options in ({"return_std": True}, {"return_cov": True}):
        for a, b in zip(ours.predict(Q, **options), theirs.predict(Q, **options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.log_marginal_likelihood_, theirs.log_marginal_likelihood_value_)
    assert ours.condition_ > 1 and ours.jitter_ == 0 and ours.min_eigenvalue_ > -1e-9
    assert ours.sample_y(Q, 3).shape == (*y[:6].shape, 3)


def test_noise_by_evidence():
    ours = ntkit.GaussianProcess(RBF(0.8)).fit(X, Y)
    assert ours.noise_ == pytest.approx(0.01, rel=1)
    for factor in (0.9, 1.1):
        other = ntkit.GaussianProcess(RBF(0.8), noise=ours.noise_ * factor).fit(X, Y)
        assert other.log_marginal_likelihood_ < ours.log_marginal_likelihood_


def test_scales_of_a_limit_by_evidence():
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)).double()
    kernel = ntkit.infinite_width(model, torch.zeros(1, 2).double(), sigma_b=0.1).nngp
    first = ntkit.GaussianProcess(kernel).fit(X, Y)
    best = ntkit.GaussianProcess(kernel, optimize=("sigma_w", "sigma_b")).fit(X, Y)
    assert best.log_marginal_likelihood_ > first.log_marginal_likelihood_ + 1
    assert kernel.sigma_b == 0.1 and best.kernel_.sigma_b != 0.1
    with pytest.raises(ntkit.NtkitError, match="only positive numbers"):
        ntkit.GaussianProcess(kernel, optimize=("model",)).fit(X, Y)


def test_draws_have_the_posterior_mean_and_covariance():
    gp = ntkit.GaussianProcess(noise=0.1).fit(X, Y[:, 0])
    mean, cov = gp.predict(Q, return_cov=True)
    draws = gp.sample_y(Q, 20000)
    np.testing.assert_allclose(draws.mean(1), mean, atol=5 * np.sqrt(cov.diagonal().max() / 20000))
    np.testing.assert_allclose(np.cov(draws), cov, atol=0.05 * cov.diagonal().max())


def test_without_noise_the_training_points_are_certain():
    twice, y = np.concatenate([X, X[:1]]), np.append(Y[:, 0], Y[0, 0])
    gp = ntkit.GaussianProcess(noise=0).fit(twice, y)
    mean, std = gp.predict(twice, return_std=True)
    np.testing.assert_allclose(mean, y, atol=1e-8)
    assert (std < 1e-5).all() and (gp.predict(Q, return_std=True)[1] > 0.01).all()


def test_refusals():
    with pytest.raises(ntkit.NtkitError, match="noise='mle'"):
        ntkit.GaussianProcess(noise="mle").fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="not positive semi-definite"):
        ntkit.GaussianProcess("precomputed").fit(-np.eye(30), Y)
    fitted = ntkit.GaussianProcess("precomputed", noise=0.1).fit(np.eye(30), Y)
    with pytest.raises(ntkit.NtkitError, match="give the kernel as a function"):
        fitted.predict(np.eye(30), return_std=True)
    with pytest.raises(ntkit.NtkitError, match="not for both"):
        fitted.predict(np.eye(30), return_std=True, return_cov=True)
