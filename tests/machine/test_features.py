"""Random features against the kernels that they stand for."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import ntkit
from ntkit.machine.features import KINDS
from ntkit.machine.solving.densities import frequencies

X = np.random.default_rng(0).normal(size=(40, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_features_tend_to_the_kernel(kind):
    few, many = (
        np.mean([ntkit.RandomFeatures(kind, m, s).fit(X).error_.relative for s in range(4)])
        for m in (100, 1600)
    )
    assert many < 0.4 * few and many < 0.15
    features = ntkit.RandomFeatures(kind, 1600, 1).fit(X)
    z, k = features.transform(X), features.kernel()(X).numpy()
    assert features.error_.largest == pytest.approx(np.abs(z @ z.T - k).max())
    np.testing.assert_array_equal(z, ntkit.RandomFeatures(kind, 1600, 1).fit_transform(X))


@pytest.mark.parametrize("kind", ["laplacian", "cauchy", "matern", "gaussian"])
def test_draws_follow_their_densities(kind):
    w = frequencies(kind, 1, 2**14, "sobol", 0, nu=2.5)[:, 0]
    for r in (0.3, 1.0, 2.5):  # Bochner: the characteristic function is the kernel
        exact = ntkit.RandomFeatures(kind, 2, nu=2.5).kernel()(np.array([[0.0]]), np.array([[r]])).item()
        assert np.cos(w * r).mean() == pytest.approx(exact, abs=2e-3)


@pytest.mark.parametrize("draw", ["orthogonal", "sobol"])
@pytest.mark.parametrize("kind", ["gaussian", "arccos1"])
def test_better_draws_have_smaller_errors(kind, draw):
    def error(draw):
        return np.mean(
            [
                ntkit.RandomFeatures(kind, 64, s, draw=draw, lengthscale=3.0).fit(X).error_.relative
                for s in range(20)
            ]
        )

    assert error(draw) < 0.9 * error("iid")


@pytest.mark.parametrize("kind", KINDS)
def test_features_as_a_network(kind):
    features = ntkit.RandomFeatures(kind, 60, 3).fit(X)
    x, z = torch.as_tensor(X), features.transform(X)
    np.testing.assert_allclose(features.to_module()(x).detach().numpy(), z)
    top = Ridge(0.1).fit(z, X[:, :2])
    net = features.to_module(top.coef_, top.intercept_)
    np.testing.assert_allclose(net(x).detach().numpy(), top.predict(z), atol=1e-10)
    one = Ridge(0.1).fit(z, X[:, 0])
    np.testing.assert_allclose(
        features.to_module(one.coef_, one.intercept_)(x).detach().numpy()[:, 0], one.predict(z), atol=1e-10
    )


def test_a_layer_of_relus_has_the_arc_cosine_kernel_as_its_limit():
    net = ntkit.RandomFeatures("arccos1", 8).fit(X).to_module(np.zeros(8))
    limit = ntkit.infinite_width(torch.nn.Sequential(net[0], torch.nn.ReLU(), net[2]), torch.as_tensor(X[:1]))
    exact = ntkit.RandomFeatures("arccos1").fit(X).kernel()(X)
    torch.testing.assert_close(limit.layers["h1"].nngp(X), exact / 4)  # sigma_w^2 / d = 1 / 2, half of it


def test_zero_inputs_and_refusals():
    for kind in KINDS:
        z = ntkit.RandomFeatures(kind, 100).fit_transform(np.zeros((3, 2)))
        assert np.isfinite(z).all()
    for options, match in (
        ({"kind": "rbf"}, "kind='rbf'"),
        ({"m": 3}, "even, for cosines"),
        ({"m": 0}, ">= 1"),
        ({"draw": "halton"}, "draw='halton'"),
        ({"kind": "cauchy", "draw": "orthogonal"}, "the same in all directions"),
        ({"nu": 0}, "must be positive"),
    ):
        with pytest.raises(ntkit.NtkitError, match=match):
            ntkit.RandomFeatures(**options).fit(X)
