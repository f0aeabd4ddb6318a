"""Gaussian processes against scikit-learn's and against finite differences of themselves."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from torch import nn

import ntkit
from ntkit.machine import gaussian

RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(30, 2)), RNG.normal(size=(6, 2))
Y = np.stack([np.sin(2 * X[:, 0]), X[:, 1]], 1) + 0.1 * RNG.normal(size=(30, 2))


@pytest.mark.parametrize("most", [2500, 20])  # of samples whose spectrum is made
@pytest.mark.parametrize("outputs", [1, 2])
def test_it_is_scikit_learns(outputs, most, monkeypatch):
    monkeypatch.setattr(gaussian, "MOST", most)
    y = Y[:, 0] if outputs == 1 else Y
    plain = {"amplitude": 1.7, "normalize_y": False}
    ours = ntkit.GaussianProcess(RBF(0.8), noise=0.05, **plain).fit(X, y)
    theirs = GaussianProcessRegressor(ConstantKernel(1.7) * RBF(0.8), alpha=0.05, optimizer=None).fit(X, y)
    for options in ({"return_std": True}, {"return_cov": True}):
        for a, b in zip(ours.predict(Q, **options), theirs.predict(Q, **options), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.log_marginal_likelihood_, theirs.log_marginal_likelihood_value_)
    assert ours.condition_ > 1 and ours.jitter_ == 0 and ours.min_eigenvalue_ > -1e-9
    assert ours.sample_y(Q, 3).shape == (*y[:6].shape, 3)


def test_targets_of_any_mean_and_size():
    """(a y + b) has the mean a f + b, intervals a times as wide, and the evidence less n log a."""
    first = ntkit.GaussianProcess(RBF(0.8)).fit(X, Y)
    y = 1e4 * Y + np.array([-3e5, 70.0])
    second = ntkit.GaussianProcess(RBF(0.8)).fit(X, y)
    mean, std = first.predict(Q, return_std=True)
    np.testing.assert_allclose(second.predict(Q), 1e4 * mean + np.array([-3e5, 70.0]), rtol=1e-6)
    np.testing.assert_allclose(second.predict(Q, return_std=True)[1], 1e4 * std, rtol=1e-5)
    drop = 2 * len(X) * np.log(1e4)
    assert second.log_marginal_likelihood_ == pytest.approx(first.log_marginal_likelihood_ - drop, abs=1e-6)
    np.testing.assert_allclose(second.noise_, 1e8 * np.asarray(first.noise_), rtol=1e-6)


@pytest.mark.parametrize("factor", [1e-8, 1e-3, 1e4, 1e8])
def test_the_scale_of_the_kernel_does_not_matter(factor):
    scaled = ntkit.GaussianProcess(ConstantKernel(factor) * RBF(0.8)).fit(X, Y[:, 0])
    plain = ntkit.GaussianProcess(RBF(0.8)).fit(X, Y[:, 0])
    for a, b in zip(plain.predict(Q, return_std=True), scaled.predict(Q, return_std=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
    assert scaled.noise_ == pytest.approx(plain.noise_, rel=1e-4)
    assert scaled.amplitude_ == pytest.approx(plain.amplitude_ / factor, rel=1e-4)


def test_the_evidence_is_the_density_of_the_targets():
    """Of the normal law with mean m and covariance a K + s^2, whatever was chosen."""
    options = ({}, {"amplitude": 2.0}, {"noise": 0.03}, {"noise": 0.03, "amplitude": 2.0})
    for chosen in options:
        gp = ntkit.GaussianProcess(RBF(0.8), **chosen).fit(X, Y)
        noise, amplitude = (np.broadcast_to(v, 2) for v in (gp.noise_, gp.amplitude_))
        total = 0.0
        for o in range(2):
            cov = amplitude[o] * RBF(0.8)(X) + noise[o] * np.eye(30)
            total += multivariate_normal(np.full(30, Y[:, o].mean()), cov).logpdf(Y[:, o])
        assert gp.log_marginal_likelihood_ == pytest.approx(total, abs=1e-8)
        assert all(np.all(getattr(gp, f"{name}_") == value) for name, value in chosen.items())


def test_noise_by_evidence():
    ours = ntkit.GaussianProcess(RBF(0.8)).fit(X, Y[:, 0])
    assert ours.noise_ == pytest.approx(0.01, rel=1)
    for factor in (0.9, 1.1):
        for name in ("noise", "amplitude"):
            scales = {"noise": ours.noise_, "amplitude": ours.amplitude_}
            scales[name] *= factor
            other = ntkit.GaussianProcess(RBF(0.8), **scales).fit(X, Y[:, 0])
            assert other.log_marginal_likelihood_ < ours.log_marginal_likelihood_


def test_intervals_hold_new_targets_and_densities_are_theirs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(400, 2))
    y = 50 + 20 * (np.sin(2 * x[:, 0]) + 0.3 * rng.normal(size=400))
    gp = ntkit.GaussianProcess().fit(x[:200], y[:200])
    low, high = gp.predict_interval(x[200:], 0.9)
    assert 0.84 <= np.mean((low < y[200:]) & (y[200:] < high)) <= 0.96
    mean, std = gp.predict(x[200:], return_std=True, noise=True)
    np.testing.assert_allclose(std**2, gp.predict(x[200:], return_std=True)[1] ** 2 + gp.noise_, rtol=1e-10)
    np.testing.assert_allclose(
        gp.log_predictive_density(x[200:], y[200:]),
        -0.5 * ((y[200:] - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi),
    )
    cov = gp.predict(x[200:205], return_cov=True, noise=True)[1]
    np.testing.assert_allclose(cov.diagonal(), std[:5] ** 2, rtol=1e-8)


def test_targets_of_noise_alone_are_told():
    rng = np.random.default_rng(0)
    with pytest.warns(ConvergenceWarning, match="nothing but noise"):
        gp = ntkit.GaussianProcess(RBF(100.0)).fit(rng.normal(size=(60, 1)), rng.normal(size=60))
    assert gp.noise_ == pytest.approx(1.0, rel=0.5)


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
    gp = ntkit.GaussianProcess(None, noise=0, amplitude=1.0).fit(twice, y)
    mean, std = gp.predict(twice, return_std=True)
    np.testing.assert_allclose(mean, y, atol=1e-8)
    assert (std < 1e-5).all() and (gp.predict(Q, return_std=True)[1] > 0.01).all()


def test_refusals():
    with pytest.raises(ntkit.NtkitError, match="noise='mle'"):
        ntkit.GaussianProcess(noise="mle").fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="amplitude=0"):
        ntkit.GaussianProcess(amplitude=0).fit(X, Y)
    with pytest.raises(ntkit.NtkitError, match="coverage=95"):
        ntkit.GaussianProcess(noise=0.1).fit(X, Y).predict_interval(Q, 95)
    with pytest.raises(ntkit.NtkitError, match="not positive semi-definite"):
        ntkit.GaussianProcess("precomputed").fit(-np.eye(30), Y)
    fitted = ntkit.GaussianProcess("precomputed", noise=0.1).fit(np.eye(30), Y)
    with pytest.raises(ntkit.NtkitError, match="give the kernel as a function"):
        fitted.predict(np.eye(30), return_std=True)
    with pytest.raises(ntkit.NtkitError, match="not for both"):
        fitted.predict(np.eye(30), return_std=True, return_cov=True)


@pytest.mark.filterwarnings("ignore:The evidence still grows")
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_column_far_larger_than_the_others_makes_rows_that_are_nearly_parallel(seed):
    """Incomes beside zeros and ones: the angles of rows of equal norm are next to rounding."""
    rng = np.random.default_rng(seed)
    income = np.exp(rng.normal(14, 2, 97)).round()
    x = np.c_[income, np.eye(2)[rng.integers(0, 2, 97)], np.eye(2)[rng.integers(0, 2, 97)]]
    y = np.log(income) + 0.1 * rng.normal(size=97)
    for scale in ("unit", "auto"):
        gp = ntkit.GaussianProcess(scale=scale).fit(x, y)
        assert np.isfinite(gp.predict(x, return_std=True)).all()
    assert gp.score(x, y) > 0.5
