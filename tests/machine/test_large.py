"""Ridge on features of many rows, against the same sums made at once in float64."""

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import ntkit
from ntkit.machine.kernels import ReLUKernel
from ntkit.machine.large import feature_ridge

rng = np.random.default_rng(0)
X = rng.normal(size=(700, 3))
y = np.sin(X.sum(1))[:, None] * [1.0, 2.0] + 0.1 * rng.normal(size=(700, 2)) + 5.0
MAPS = {
    "ntk": ntkit.RandomFeatures("ntk", 60, depth=2),
    "gaussian": ntkit.RandomFeatures("gaussian", 60),
    "nystrom": ntkit.NystromFeatures(ReLUKernel(1), 40),
}


def exact(model, alpha):
    z, mean = model.features_.transform(X), y.mean(0)
    return mean + z @ np.linalg.solve(z.T @ z + alpha * np.eye(z.shape[1]), z.T @ (y - mean))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("options", [{}, {"solver": "cg", "tol": 1e-12}, {"dtype": "float32"}])
def test_streamed_ridge_is_ridge(name, options, monkeypatch):
    monkeypatch.setattr(feature_ridge, "BATCH", 128)  # several batches
    options = {"dtype": "float64", **options}
    model = ntkit.FeatureRidge(MAPS[name], 0.5, **options).fit(X, y)
    close = 1e-9 if options["dtype"] == "float64" else 1e-3
    np.testing.assert_allclose(model.predict(X), exact(model, 0.5), atol=close)
    assert model.predict(X[:3, :]).shape == (3, 2) and "about" in model.solver_reason_
    z, k = model.features_.transform(X[:200]), model.error_.relative
    kernel = model.features_.kernel_ if name == "nystrom" else model.features_.kernel()
    whole = kernel(X[:200]).numpy()
    assert 0 < k < 3 * np.linalg.norm(z @ z.T - whole) / np.linalg.norm(whole)


def test_gcv_is_that_of_the_hat_matrix():
    model = ntkit.FeatureRidge(MAPS["ntk"], dtype="float64").fit(X, y)
    z, centered = model.features_.transform(X), y - y.mean(0)

    def gcv(alpha):
        hat = z @ np.linalg.solve(z.T @ z + alpha * np.eye(60), z.T)
        rest = ((centered - hat @ centered) ** 2).sum(0) / (centered**2).sum(0)
        return rest.sum() / (len(z) - np.trace(hat)) ** 2

    assert all(gcv(model.alpha_) <= gcv(model.alpha_ * factor) for factor in (0.5, 0.9, 1.1, 2.0))


def test_rows_come_from_anywhere(tmp_path):
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    reference = ntkit.FeatureRidge(MAPS["gaussian"], 0.5).fit(X, y[:, 0])
    for given in (mapped, torch.as_tensor(X), TensorDataset(torch.as_tensor(X))):
        np.testing.assert_array_equal(
            ntkit.FeatureRidge(MAPS["gaussian"], 0.5).fit(given, y[:, 0]).coef_, reference.coef_
        )


@pytest.mark.slow
def test_processes_share_the_rows():
    one = ntkit.FeatureRidge(MAPS["ntk"], 0.5, dtype="float64").fit(X, y)
    two = ntkit.FeatureRidge(MAPS["ntk"], 0.5, dtype="float64", n_jobs=2).fit(X, y)
    np.testing.assert_allclose(two.coef_, one.coef_, rtol=1e-9, atol=1e-12)


def test_landmarks_span_the_kernel():
    features = ntkit.NystromFeatures(ReLUKernel(1), 120).fit(X)
    z, kernel = features.transform(X[:100]), ReLUKernel(1)
    s = features.landmarks_
    k = kernel(X[:100], s).numpy()
    np.testing.assert_allclose(z @ z.T, k @ np.linalg.solve(kernel(s).numpy(), k.T), atol=1e-6)


def test_refusals():
    cases = [
        (lambda: ntkit.FeatureRidge("ntk").fit(X, y), "expected ntkit.RandomFeatures"),
        (lambda: ntkit.FeatureRidge(alpha=-1.0).fit(X, y), "'gcv'"),
        (lambda: ntkit.FeatureRidge(MAPS["ntk"]).fit(X, y[1:]), "for 700 rows"),
        (lambda: ntkit.FeatureRidge(MAPS["ntk"], memory="1kB", solver="normal").fit(X, y), "solver='cg'"),
        (lambda: ntkit.FeatureRidge(MAPS["ntk"], memory="1kB").fit(X, y), "give a number"),
        (lambda: ntkit.FeatureRidge(MAPS["ntk"], 1.0).fit(X, y).predict(X[:, :2]), "columns"),
        (lambda: ntkit.NystromFeatures(m=0).fit(X), "m=0"),
    ]
    for call, text in cases:
        with pytest.raises(ntkit.NtkitError, match=text):
            call()
