"""Estimators as they come: any scale of kernel and inputs, data frames, choices by data, intervals, RKHS."""

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_breast_cancer, make_multilabel_classification
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.preprocessing import StandardScaler

import ntkit
from ntkit.machine.choice.candidates import Candidate
from ntkit.machine.choice.leave_one_out import Targets
from ntkit.machine.choice.search import MARGIN, choose, part
from ntkit.machine.conformal import jackknife_plus
from ntkit.machine.kernels import ReLUKernel

RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(40, 3)), RNG.normal(size=(7, 3))
Y = np.stack([np.sin(X[:, 0]), X[:, 1] * X[:, 2]], 1)
LABELS = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0.5)


def scaled(factor):
    return ConstantKernel(factor) * RBF(1.0)


INVARIANT = {
    "cholesky": lambda s: ntkit.KernelRidge(scaled(s), 0.01 * s),
    "eigen": lambda s: ntkit.KernelRidge(scaled(s), 0.01 * s, solver="eigen"),
    "cg": lambda s: ntkit.KernelRidge(scaled(s), 0.01 * s, solver="cg"),
    "nystrom": lambda s: ntkit.KernelRidge(scaled(s), 0.01 * s, solver="nystrom", rank=15),
    "loo": lambda s: ntkit.KernelRidge(scaled(s)),
    "gcv": lambda s: ntkit.KernelRidge(scaled(s), "gcv"),
    "no penalty": lambda s: ntkit.KernelRidge(scaled(s), 0),
    "process": lambda s: ntkit.GaussianProcess(scaled(s)),
    "process with noise": lambda s: ntkit.GaussianProcess(scaled(s), noise=0.1),
    "flow": lambda s: ntkit.GradientFlow(scaled(s), t=10 / s),
    "stopped flow": lambda s: ntkit.GradientFlow(scaled(s), early_stopping="validation"),
    "steps": lambda s: ntkit.GradientFlow(scaled(s), t=10 / s, learning_rate=0.1 / s),
    "huber": lambda s: ntkit.GradientFlow(scaled(s), t=10 / s, loss="huber"),
    "classifier": lambda s: ntkit.KernelClassifier(scaled(s)),
    "given penalty": lambda s: ntkit.KernelClassifier(scaled(s), alpha=0.1 * s),
    "newton": lambda s: ntkit.KernelClassifier(scaled(s), "cross_entropy", alpha=0.1 * s),
    "lbfgs": lambda s: ntkit.KernelClassifier(scaled(s), "cross_entropy", alpha=0.1 * s, solver="lbfgs"),
    "cross entropy, loo": lambda s: ntkit.KernelClassifier(scaled(s), "cross_entropy"),
}


@pytest.mark.parametrize("name", INVARIANT)
def test_the_scale_of_the_kernel_does_not_matter(name):
    classes = isinstance(INVARIANT[name](1.0), ntkit.KernelClassifier)
    found = [
        (m.predict_proba if classes else m.predict)(Q)
        for m in (INVARIANT[name](s).fit(X, LABELS if classes else Y) for s in (1.0, 1e-8, 1e8))
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=1e-7)


def test_the_scale_of_the_columns_does_not_matter():
    x, y = load_breast_cancer(return_X_y=True)
    x, y = x[::4], y[::4]
    plain = ntkit.KernelClassifier(scale="standardize").fit(x, y)
    assert np.abs(x).max() > 1000 and plain.score(x, y) > 0.97
    moved = ntkit.KernelClassifier(scale="standardize").fit(1e6 * x - 7, y)
    np.testing.assert_allclose(moved.predict_proba(1e6 * x - 7), plain.predict_proba(x), atol=1e-6)
    by_hand = ntkit.KernelClassifier(scale=None).fit(StandardScaler().fit_transform(x), y)
    np.testing.assert_allclose(
        by_hand.predict_proba(StandardScaler().fit_transform(x)), plain.predict_proba(x)
    )


def test_weights_count_in_the_scaling():
    weights = RNG.integers(0, 3, size=40)
    settings = {"alpha": 0.1, "scale": "standardize"}
    one = ntkit.KernelRidge(RBF(1.0), **settings).fit(X, Y, weights)
    two = ntkit.KernelRidge(RBF(1.0), **settings).fit(np.repeat(X, weights, 0), np.repeat(Y, weights, 0))
    np.testing.assert_allclose(one.predict(Q), two.predict(Q), rtol=1e-8, atol=1e-10)


def test_directions_are_seen_as_such():
    """Rows of equal norm where only the direction of a row tells, and not where its norm does."""
    x = RNG.normal(size=(200, 4)) * np.exp(2 * RNG.normal(size=(200, 1)))
    turned = ntkit.KernelRidge().fit(x, x[:, 0] / np.linalg.norm(x, axis=1))
    assert turned.scaling_.name == "unit" and "rows of equal norm" in repr(turned)
    x = RNG.normal(size=(200, 4))
    long = ntkit.KernelRidge().fit(x, np.linalg.norm(x, axis=1))
    assert long.scaling_.name == "standardize" and "columns standardized" in repr(long)
    errors = {
        s: min(t.error for t in long.search_.tried if t.candidate.scale == s) for s in ("standardize", "unit")
    }
    assert errors["standardize"] * (1 - MARGIN) < errors["unit"]


def test_data_frames_with_categories_and_missing_values():
    n = 120
    frame = pd.DataFrame(
        {
            "size": RNG.normal(size=n),
            "kind": pd.Categorical(RNG.choice(list("abc"), n)),
            "flag": RNG.random(n) < 0.5,
        }
    )
    y = frame["size"] + 2.0 * (frame["kind"] == "b") - 1.0 * frame["flag"]
    frame.loc[3, "size"], frame.loc[5, "kind"] = np.nan, None
    model = ntkit.KernelRidge().fit(frame, y)
    assert model.columns_.names == [
        "size", "size missing", "kind=a", "kind=b", "kind=c", "kind missing", "flag=False", "flag=True",
    ]  # fmt: skip
    assert list(model.feature_names_in_) == ["size", "kind", "flag"] and model.score(frame, y) > 0.9
    by_hand = model.columns_.numbers(frame)
    assert by_hand[3, 0] == frame["size"].median() and by_hand[3, 1] == 1 and by_hand[5, 5] == 1
    new = frame.iloc[:2].assign(kind=["new", "a"])  # none of the categories
    assert np.isfinite(model.predict(new)).all() and not model.columns_.numbers(new)[0, 2:6].any()
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["kind", "size", "flag"]])
    with pytest.raises(ntkit.NtkitError, match="data frame with categories"):
        model.predict(by_hand)
    with pytest.raises(ntkit.NtkitError, match="data frame may have missing"):
        ntkit.KernelRidge().fit(np.where(X > 2, np.nan, X) * np.nan, Y)


def test_the_choice_is_that_of_refits():
    """The least of the errors of n refits, with kernel, scaling and penalty in hand."""
    compared = [Candidate("standardize", "ntk", 1, 1.0), Candidate(None, "rbf", length=1.0)]
    x, y = X[:25], Y[:25]
    found = choose(x, Targets(torch.as_tensor(y), None, True), compared, 0.1)
    errors = []
    for tried in found.search.tried:
        gaps = []
        scale = StandardScaler().fit(x) if tried.candidate.scale else None
        z = x if scale is None else scale.transform(x)
        kernel = tried.candidate.made(z)
        for i in range(25):
            rest = np.arange(25) != i
            gaps.append(y[i] - ntkit.KernelRidge(kernel, 0.1).fit(z[rest], y[rest]).predict(z[i : i + 1])[0])
        errors.append(np.mean(np.square(gaps)))
        assert tried.error == pytest.approx(errors[-1], rel=1e-8)
    assert found.search.best is found.search.tried[int(np.argmin(errors))]


def test_many_samples_are_looked_at_in_part():
    labels = RNG.choice(3, size=5000, p=[0.9, 0.08, 0.02])
    index = part(5000, labels, 0)
    assert len(np.unique(index)) == 2000 and (index == part(5000, labels, 0)).all()
    np.testing.assert_allclose(np.bincount(labels[index]) / 2000, np.bincount(labels) / 5000, atol=1e-3)


def test_search_is_told_and_kernels_go_by_name():
    model = ntkit.KernelRidge("laplace").fit(X, Y)
    assert {t.candidate.kernel for t in model.search_.tried} == {"laplace"}
    assert "laplace of length scale" in repr(model) and "40 of 40 samples" in str(model.search_)
    assert ntkit.KernelRidge(depth=2).fit(X, Y).kernel_.depth == 2
    assert ntkit.KernelRidge(ReLUKernel()).fit(X, Y).search_ is None
    exact = ntkit.KernelRidge(alpha=0).fit(X, Y)
    np.testing.assert_allclose(exact.predict(X), Y, atol=1e-6)
    assert np.isfinite([t.error for t in exact.search_.tried]).all()
    with pytest.raises(ntkit.NtkitError, match="depth=2"):
        ntkit.KernelRidge(ReLUKernel(), depth=2).fit(X, Y)
    ranked = ntkit.KernelRidge(ReLUKernel(), 0.1, scale="rank").fit(X, Y)
    other = ntkit.KernelRidge(ReLUKernel(), 0.1, scale="rank").fit(np.exp(X), Y)  # ranks are the same
    np.testing.assert_allclose(ranked.predict(X), other.predict(np.exp(X)), rtol=1e-9)
    with pytest.raises(ntkit.NtkitError, match="scale='minmax'"):
        ntkit.KernelRidge(scale="minmax").fit(X, Y)


@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_intervals_are_those_of_refits(weighted, centered):
    kernel, weights = ReLUKernel(), RNG.uniform(0.5, 2, size=40) if weighted else None
    left, gaps = [], []
    for i in range(40):
        rest = np.arange(40) != i
        one = ntkit.KernelRidge(kernel, 0.1, normalize_y=centered)
        one.fit(X[rest], Y[rest], weights[rest] if weighted else None)
        left.append(one.predict(Q))
        gaps.append(Y[i] - one.predict(X[i : i + 1])[0])
    expected = jackknife_plus(np.stack(left, 1), np.array(gaps), 0.8)
    model = ntkit.KernelRidge(kernel, 0.1, normalize_y=centered).fit(X, Y, weights)
    for found, bound in zip(model.predict_interval(Q, 0.8), expected, strict=True):
        np.testing.assert_allclose(found, bound, rtol=1e-8, atol=1e-10)
    assert np.isinf(model.predict_interval(Q, 0.99)[0]).all()  # 40 samples cannot tell one in a hundred


@pytest.mark.parametrize("model", [ntkit.KernelRidge(), ntkit.GradientFlow(t=20.0), ntkit.GaussianProcess()])
def test_intervals_hold_as_many_as_they_say(model):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(500, 2))
    y = 50 + 20 * (np.sin(2 * x[:, 0]) + 0.5 * rng.standard_t(5, size=500))
    low, high = model.fit(x[:150], y[:150]).predict_interval(x[150:], 0.9)
    held = np.mean((low <= y[150:]) & (y[150:] <= high))
    assert 0.85 <= held <= 0.95
    half = (high - low) / 8  # a quarter as wide holds too few
    assert np.mean(np.abs(y[150:] - (low + high) / 2) <= half) < 0.6


def test_probabilities_are_calibrated():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(600, 2))
    p = 1 / (1 + np.exp(-2 * x[:, 0] + x[:, 1]))
    y = (rng.random(600) < p).astype(int)
    model = ntkit.KernelClassifier().fit(x[:300], y[:300])
    found = model.predict_proba(x[300:])[:, 1]
    best = -np.mean(np.log(np.where(y[300:] == 1, p[300:], 1 - p[300:])))
    loss = -np.mean(model.predict_log_proba(x[300:])[np.arange(300), y[300:]])
    assert loss < best + 0.03 and np.abs(found - p[300:]).mean() < 0.06
    for slope in (model.slope_ / 3, 3 * model.slope_):  # another temperature loses
        f = slope * model.decision_function(x[300:])
        assert np.mean(np.logaddexp(0, np.where(y[300:] == 1, -f, f))) > loss


def test_class_weights_and_several_labels():
    few = np.flatnonzero(LABELS == 2)[:3]
    index = np.concatenate([np.flatnonzero(LABELS < 2), few])
    x, y = X[index], LABELS[index]
    balanced = ntkit.KernelClassifier(ReLUKernel(), alpha=1.0, class_weight="balanced").fit(x, y)
    weights = len(y) / (3 * np.bincount(y))
    by_hand = ntkit.KernelClassifier(ReLUKernel(), alpha=1.0).fit(x, y, weights[y])
    mapped = ntkit.KernelClassifier(ReLUKernel(), alpha=1.0, class_weight=dict(enumerate(weights))).fit(x, y)
    for other in (by_hand, mapped):
        np.testing.assert_allclose(balanced.predict_proba(Q), other.predict_proba(Q), rtol=1e-9)
    with pytest.raises(ntkit.NtkitError, match="class_weight='even'"):
        ntkit.KernelClassifier(class_weight="even").fit(x, y)
    a, b = make_multilabel_classification(100, 8, n_classes=3, random_state=0)
    model = ntkit.KernelClassifier().fit(a, b)
    assert model.predict_proba(a).shape == model.decision_function(a).shape == (100, 3)
    np.testing.assert_array_equal(model.predict(a), model.predict_proba(a) > 0.5)


def test_functions_in_the_space_of_their_kernel():
    kernel = ReLUKernel()
    f = ntkit.KernelRidge(kernel, 0.1).fit(X, Y)
    g = ntkit.GradientFlow(ReLUKernel(), t=10.0).fit(X[:20], Y[:20])
    gram, cross = kernel(X).numpy(), kernel(X, X[:20]).numpy()
    c, d = f.dual_coef_, g.dual_coef_
    assert f.norm_ == pytest.approx(np.sqrt(np.sum(c * (gram @ c))))
    assert f.inner(g) == pytest.approx(np.sum(c * (cross @ d))) and f.inner(g) == pytest.approx(g.inner(f))
    apart = f.norm_**2 + g.norm_**2 - 2 * f.inner(g)
    assert f.distance(g) == pytest.approx(apart**0.5) and f.distance(f) == pytest.approx(0, abs=1e-6)
    matrix = ntkit.KernelRidge("precomputed", 0.1).fit(gram, Y)
    assert matrix.norm_ == pytest.approx(f.norm_)
    with pytest.raises(ntkit.NtkitError, match="two spaces"):
        f.inner(ntkit.KernelRidge(ReLUKernel(1), 0.1).fit(X, Y))
    assert not hasattr(ntkit.KernelRidge(), "norm_")
    with pytest.raises(ntkit.NtkitError, match="not fitted yet"):
        f.inner(ntkit.KernelRidge())
    with pytest.raises(ntkit.NtkitError, match="several times"):
        _ = ntkit.GradientFlow(kernel, t=[1.0, 2.0]).fit(X, Y).norm_


def test_matrices_with_values_for_outputs():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).double()
    kernel = ntkit.EmpiricalNTK(net, outputs="full")
    x, y = X[:15], LABELS[:15]
    block, cross = kernel(x).numpy(), kernel(Q, x).numpy()
    for loss in ("squared", "cross_entropy"):
        one = ntkit.KernelClassifier(kernel, loss).fit(x, y)
        two = ntkit.KernelClassifier("precomputed", loss).fit(block, y)
        np.testing.assert_allclose(two.decision_function(cross), one.decision_function(Q), atol=1e-8)
        assert two.norm_ == pytest.approx(one.norm_)


@pytest.mark.parametrize("outputs", ["full", "diagonal"])
def test_ridge_of_outputs_that_a_kernel_couples(outputs):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2)).double()
    kernel, x, y = ntkit.EmpiricalNTK(net, outputs=outputs), X[:12], Y[:12]
    model = ntkit.KernelRidge(kernel).fit(x, y)
    gram, cross = kernel(x), kernel(Q, x)
    if outputs == "diagonal":
        gram, cross = torch.diag_embed(gram), torch.diag_embed(cross)
    flat = gram.permute(0, 2, 1, 3).reshape(24, 24).numpy() + model.alpha_ * np.eye(24)
    c = np.linalg.solve(flat, (y - y.mean(0)).ravel())
    expected = cross.permute(0, 2, 1, 3).reshape(14, 24).numpy() @ c
    np.testing.assert_allclose(model.predict(Q), expected.reshape(7, 2) + y.mean(0), rtol=1e-8)
    matrix = ntkit.KernelRidge("precomputed", model.alpha_).fit(kernel(x).numpy(), y)
    np.testing.assert_allclose(matrix.predict(kernel(Q, x).numpy()), model.predict(Q), rtol=1e-8)
    for i in (0, 7):
        rest = np.arange(12) != i
        one = ntkit.KernelRidge(kernel, model.alpha_).fit(x[rest], y[rest])
        gap = y[i] - one.predict(x[i : i + 1])[0]
        np.testing.assert_allclose(model.leave_one_out()[i], gap, rtol=1e-7, atol=1e-10)
    with pytest.raises(ntkit.NtkitError, match="couples the outputs"):
        model.predict_interval(Q)


def test_how_they_compute():
    before = torch.get_num_threads()
    model = ntkit.KernelRidge(n_jobs=1, verbose=True).fit(X, Y)
    np.testing.assert_array_equal(model.predict(Q), ntkit.KernelRidge().fit(X, Y).predict(Q))
    assert torch.get_num_threads() == before and not hasattr(model, "partial_fit")
    with pytest.raises(ntkit.NtkitError, match="KernelRidge has no partial_fit"):
        _ = model.partial_fit
    with pytest.raises(ntkit.NtkitError, match="n_jobs=0"):
        ntkit.KernelRidge(n_jobs=0).fit(X, Y)
    same = [ntkit.RandomFeatures(m=8, **k).fit_transform(X) for k in ({"seed": 5}, {"random_state": 5}, {})]
    np.testing.assert_array_equal(same[0], same[1])
    assert (same[0] != same[2]).any()


def test_the_evidence_is_climbed():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gp = ntkit.GaussianProcess("ntk", depth=1).fit(X, Y[:, 0])
    assert gp.kernel_.depth == 1
    z = gp.X_fit_
    for factor in (0.8, 1.25):
        other = ReLUKernel(1, sigma_b=gp.kernel_.sigma_b * factor)
        evidence = ntkit.GaussianProcess(other).fit(z, Y[:, 0]).log_marginal_likelihood_
        assert evidence < gp.log_marginal_likelihood_ + 1e-3
