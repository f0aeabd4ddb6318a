"""Estimators among scikit-learn's, with the data and kernels that people have."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.datasets import load_iris
from sklearn.gaussian_process.kernels import RBF
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import ntkit
from ntkit.machine.kernels import ReLUKernel, as_kernel

gpytorch = pytest.importorskip("gpytorch")

ESTIMATORS = [ntkit.KernelRidge, ntkit.GaussianProcess, ntkit.GradientFlow, ntkit.KernelClassifier]
RNG = np.random.default_rng(0)
X, LABELS = load_iris(return_X_y=True)
X, LABELS = X[::3], LABELS[::3]
Y = np.sin(X[:, 0])


def target(estimator):
    return LABELS if is_classifier(estimator) else Y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1)).double()


KERNELS = {
    "empirical": lambda: ntkit.EmpiricalNTK(network()),
    "limit": lambda: ntkit.infinite_width(network(), torch.zeros(1, 4).double()),
    "limit kernel": lambda: ntkit.infinite_width(network(), torch.zeros(1, 4).double()).nngp,
    "sum": lambda: 0.5 * ReLUKernel(depth=1) + ReLUKernel(depth=2),
    "scikit-learn": lambda: RBF(1.3),
    "gpytorch": lambda: gpytorch.kernels.RBFKernel().double(),
    "function": lambda: rbf,
}


def rbf(a, b):
    return np.exp(-((a[:, None] - b) ** 2).sum(-1))


@pytest.mark.parametrize("make", ESTIMATORS)
@pytest.mark.parametrize("name", KERNELS)
def test_any_kernel_cloned_and_pickled(make, name):
    first = make(kernel=KERNELS[name]())
    fitted = first.fit(X, target(first))
    expected = fitted.predict(X[:7])
    assert np.isfinite(expected).all() and expected.dtype in (np.float64, np.int64)
    again = clone(first).fit(X, target(first))
    np.testing.assert_array_equal(again.predict(X[:7]), expected)
    restored = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(restored.predict(X[:7]), expected)
    block = as_kernel(first.kernel)
    matrix = make(kernel="precomputed").fit(block(X).numpy(), target(first))
    np.testing.assert_allclose(matrix.predict(block(X[:7], X).numpy()), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", ESTIMATORS)
@pytest.mark.parametrize("factor", [1.0, 1e3])
def test_networks_in_float32(make, factor):
    """The rounding of such a kernel is no news: neither an error nor a noise to be fitted."""
    kernel = factor * ntkit.EmpiricalNTK(network().float())
    model = make(kernel=kernel).fit(X, target(make()))
    assert np.abs(model.predict(X) - target(model)).mean() < 0.2
    with pytest.raises(ntkit.NtkitError, match="positive"):
        make(kernel=lambda a, b: -rbf(a, b), **({"alpha": 0.1} if hasattr(make(), "alpha") else {})).fit(
            X, target(make())
        )


@pytest.mark.parametrize("make", ESTIMATORS)
def test_tensors_and_data_frames(make):
    estimator = make()
    expected = estimator.fit(X, target(estimator)).predict(X)
    tensors = make().fit(torch.as_tensor(X), torch.as_tensor(target(estimator))).predict(torch.as_tensor(X))
    np.testing.assert_array_equal(tensors, expected)
    frame = pd.DataFrame(X, columns=list("abcd"))
    framed = make().fit(frame, pd.Series(target(estimator)))
    np.testing.assert_array_equal(framed.predict(frame), expected)
    assert list(framed.feature_names_in_) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        framed.predict(frame.rename(columns={"a": "z"}))


def test_names_of_random_features():
    z = ntkit.RandomFeatures(m=4).set_output(transform="pandas").fit_transform(pd.DataFrame(X))
    assert list(z.columns) == [f"randomfeatures{i}" for i in range(4)]


@pytest.mark.parametrize("make", ESTIMATORS)
@pytest.mark.parametrize("kernel", [ReLUKernel(), "limit kernel"])
def test_scales_are_searched_in_a_pipeline(make, kernel):
    kernel = KERNELS[kernel]() if isinstance(kernel, str) else kernel
    estimator = make(kernel=kernel)
    name = type(estimator).__name__.lower()
    pipeline = make_pipeline(StandardScaler(), estimator)
    search = GridSearchCV(pipeline, {f"{name}__kernel__sigma_w": [0.5, 1.5]}, cv=3)
    search.fit(X, target(estimator))
    assert np.isfinite(search.best_score_)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] != scores[1] or is_classifier(estimator)


def test_images_go_to_kernels_of_networks():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 1)).double()
    images = RNG.normal(size=(12, 1, 6, 6))
    limit = ntkit.infinite_width(net, torch.as_tensor(images[:1]))
    for kernel in (limit, ntkit.EmpiricalNTK(net)):
        model = ntkit.KernelRidge(kernel, alpha=1e-6).fit(images, images[:, 0, 0, 0])
        np.testing.assert_allclose(model.predict(images), images[:, 0, 0, 0], atol=1e-3)
    flat = images.reshape(12, -1)
    found = ntkit.KernelRidge().fit(images, images[:, 0, 0, 0]).predict(images)  # a kernel of vectors
    np.testing.assert_array_equal(found, ntkit.KernelRidge().fit(flat, images[:, 0, 0, 0]).predict(flat))


def _tables():
    wide = RNG.normal(size=(3, 4))
    return {
        "duplicated row": (np.concatenate([X, X[:5]]), np.r_[:50, :5]),
        "constant feature": (np.concatenate([X, np.ones((50, 2))], 1), np.arange(50)),
        "all rows equal": (np.ones((6, 3)), np.arange(6)),
        "all zero": (np.zeros((6, 3)), np.arange(6)),
        "fewer samples than features and outputs": (wide, np.array([0, 20, 40])),
        "one sample": (X[:1], np.array([0])),
        "huge": (1e6 * X, np.arange(50)),
        "tiny": (1e-6 * X, np.arange(50)),
    }


@pytest.mark.filterwarnings("ignore:The evidence still grows")  # their targets are noise to any kernel
@pytest.mark.parametrize("name", _tables())
@pytest.mark.parametrize("make", ESTIMATORS)
@pytest.mark.parametrize("kernel", ["auto", None, ReLUKernel(sigma_b=0.0), rbf])
def test_hard_tables_give_numbers(make, name, kernel):
    x, index = _tables()[name]
    y = LABELS[index % 50] if make is ntkit.KernelClassifier else np.stack([Y[index % 50]] * 5, 1)
    model = make(kernel=kernel).fit(x, y)
    assert np.isfinite(model.predict(x)).all()
    assert np.isfinite(model.predict(x + 0.5)).all()
    if make is ntkit.KernelClassifier:
        p = model.predict_proba(x)
        assert np.isfinite(p).all()
        np.testing.assert_allclose(p.sum(1), 1)
    elif make is ntkit.GaussianProcess or (make is ntkit.GradientFlow and kernel is not rbf):
        assert np.isfinite(model.predict(x, return_std=True)[1]).all()


@pytest.mark.parametrize("make", [*ESTIMATORS, ntkit.RandomFeatures])
def test_nan_is_refused(make):
    bad = X.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        make().fit(bad, LABELS)


def test_duplicates_predict_their_mean():
    x, y = np.concatenate([X[:20], X[:1]]), np.append(Y[:20], Y[0] + 2)
    kernel = ReLUKernel()
    flow, process = ntkit.GradientFlow(kernel), ntkit.GaussianProcess(kernel, noise=0)
    for model in (ntkit.KernelRidge(kernel, alpha=0), process, flow):
        assert model.fit(x, y).predict(x)[0] == pytest.approx(Y[0] + 1, abs=1e-6)
