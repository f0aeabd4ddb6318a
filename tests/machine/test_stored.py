"""Estimators on stored matrices without room in memory, against themselves with the matrix in memory."""

import numpy as np
import pytest

import ntkit
from ntkit.machine.kernels import ReLUKernel

N, SMALL = 300, "400kB"  # the dense solvers would take 2 MB
KERNEL = ReLUKernel()


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X, Q = rng.normal(size=(N, 5)), rng.normal(size=(20, 5))
    y = np.sin(X[:, :2]).sum(1, keepdims=True) + 0.1 * rng.normal(size=(N, 2))
    return X, y, Q


@pytest.fixture(scope="module", params=["float64", pytest.param("float32", marks=pytest.mark.slow)])
def stored(request, data, tmp_path_factory):
    X, _, Q = data
    folder, options = tmp_path_factory.mktemp("stored"), {"tile": 80, "dtype": request.param}
    train = ntkit.TiledKernel(KERNEL, X, folder=folder / "train", **options).build()
    cross = ntkit.TiledKernel(KERNEL, Q, X, folder=folder / "cross", **options).build()
    close = 1e-7 if request.param == "float64" else 2e-5
    return train, cross, np.array(train), np.array(cross), close


@pytest.mark.parametrize("alpha", [1.0, "loo"])
@pytest.mark.parametrize("solver", ["auto", "cg", "cholesky"])
def test_ridge(alpha, solver, stored, data):
    train, cross, K, C, close = stored
    model = ntkit.KernelRidge("precomputed", alpha, solver=solver, memory=SMALL).fit(train, data[1])
    dense = ntkit.KernelRidge("precomputed", alpha).fit(K, data[1])
    assert model.alpha_ == pytest.approx(dense.alpha_, rel=1e-3)
    dense = ntkit.KernelRidge("precomputed", model.alpha_).fit(K, data[1])
    assert model.residual_ < 1e-8 and "about" in model.solver_reason_
    np.testing.assert_allclose(model.predict(cross), dense.predict(C), atol=close)
    np.testing.assert_allclose(model.predict(C), dense.predict(C), atol=close)


def test_time_is_told_before_it_runs(stored, data, capsys):
    ntkit.KernelRidge("precomputed", 1.0, memory=SMALL, verbose=True).fit(stored[0], data[1])
    before, after = capsys.readouterr().err.splitlines()[:2]
    assert before.startswith("ntkit: 300 samples, c") and "; about " in before and "residual" in after


def test_classifier(stored, data):
    train, cross, K, C, close = stored
    labels = (data[1] > [0, 1]).sum(1)
    model = ntkit.KernelClassifier("precomputed", memory=SMALL).fit(train, labels)
    dense = ntkit.KernelClassifier("precomputed").fit(K, labels)
    np.testing.assert_allclose(model.predict_proba(cross), dense.predict_proba(C), atol=10 * close)
    two = ntkit.KernelClassifier("precomputed", memory=SMALL).fit(train, labels > 0)
    dense = ntkit.KernelClassifier("precomputed").fit(K, labels > 0)
    np.testing.assert_allclose(two.decision_function(cross), dense.decision_function(C), atol=10 * close)


@pytest.mark.parametrize("solver", ["cg", "cholesky"])
def test_gaussian_process(solver, stored, data):
    train, cross, _, _, close = stored
    X, y, Q = data
    options = {"noise": 0.05, "amplitude": 1.3}
    model = ntkit.GaussianProcess("precomputed", solver=solver, memory=SMALL, **options).fit(train, y)
    dense = ntkit.GaussianProcess(KERNEL, **options).fit(X, y)
    for one, two in zip(
        model.predict(cross, return_std=True), dense.predict(Q, return_std=True), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=10 * close)
    if close > 1e-6:
        return  # the evidence sees what rounding to float32 leaves
    found = ntkit.GaussianProcess("precomputed", solver=solver, memory=SMALL).fit(train, y)
    sought = ntkit.GaussianProcess(KERNEL).fit(X, y)
    assert found.noise_ == pytest.approx(sought.noise_, rel=1e-2)


@pytest.mark.parametrize("options", [{}, {"learning_rate": 0.05, "momentum": 0.5}])
def test_gradient_flow(options, stored, data):
    train, cross, K, C, close = stored
    times = [1.0, 50.0, 1000.0]
    start = 0.1 * data[1]
    model = ntkit.GradientFlow("precomputed", times, memory=SMALL, **options).fit(train, data[1], start)
    dense = ntkit.GradientFlow("precomputed", times, **options).fit(K, data[1], start)
    zero = np.zeros((20, 2))
    np.testing.assert_allclose(model.predict(cross, f0=zero), dense.predict(C, f0=zero), atol=10 * close)
    assert model.max_learning_rate_ == pytest.approx(dense.max_learning_rate_)


def test_end_of_gradient_flow(stored, data):
    train, cross, K, C, close = stored
    if close > 1e-6:
        pytest.skip("the least eigenvalues of a matrix in float32 are rounding")
    model = ntkit.GradientFlow("precomputed", memory=SMALL, tol=1e-10).fit(train, data[1])
    dense = ntkit.GradientFlow("precomputed").fit(K, data[1])
    np.testing.assert_allclose(model.predict(cross), dense.predict(C), atol=1e-6)


def test_refusals(stored, data):
    train, cross, _, C, _ = stored
    y = data[1]
    cases = [
        (
            lambda: ntkit.KernelRidge("precomputed", memory=SMALL).fit(train, y[1:]),
            "for each of the 300 rows",
        ),
        (lambda: ntkit.KernelRidge("precomputed", memory=SMALL).fit(train, y, np.ones(N)), "without weights"),
        (lambda: ntkit.KernelRidge(memory=SMALL).fit(train, y), "kernel='precomputed'"),
        (lambda: ntkit.KernelRidge("precomputed", memory=SMALL).fit(cross, y[:20]), "must be square"),
        (lambda: ntkit.KernelRidge("precomputed", solver="eigen", memory=SMALL).fit(train, y), "solver"),
        (
            lambda: ntkit.KernelClassifier("precomputed", "cross_entropy", memory=SMALL).fit(
                train, y[:, 0] > 0
            ),
            "only loss='squared'",
        ),
        (
            lambda: ntkit.GradientFlow("precomputed", early_stopping="loo", memory=SMALL).fit(train, y),
            "at given times",
        ),
        (
            lambda: (
                ntkit.GaussianProcess("precomputed", memory=SMALL).fit(train, y).predict(C, return_std=True)
            ),
            r"needs k\(x, x\)",
        ),
        (
            lambda: ntkit.KernelRidge("precomputed", 1.0, memory=SMALL).fit(train, y).leave_one_out(),
            "give more",
        ),
    ]
    for call, text in cases:
        with pytest.raises(ntkit.NtkitError, match=text):
            call()
