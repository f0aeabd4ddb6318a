"""Records that a table holds more than once say no more than once, whoever chooses by leaving out."""

from __future__ import annotations

import numpy as np
import pytest

import ntkit
from ntkit.machine.choice.copies import copies_once, merged

RNG = np.random.default_rng(0)
X, Q = RNG.normal(size=(60, 3)), RNG.normal(size=(200, 3))
SHAPE = np.sin(X[:, 0]) + 0.5 * X[:, 1]
TRUTH = np.sin(Q[:, 0]) + 0.5 * Q[:, 1]
Y = SHAPE + 0.3 * RNG.normal(size=60)
NEW = TRUTH + 0.3 * RNG.normal(size=200)
CLASSES = (SHAPE + 0.6 * RNG.normal(size=60) > 0).astype(int)


def twice(*arrays):
    """The same table with every record twice, in another order."""
    order = np.random.default_rng(1).permutation(120)
    return (np.concatenate([a, a])[order] for a in arrays)


def test_a_table_that_holds_all_records_twice_teaches_ridge_the_same():
    a, b = ntkit.KernelRidge().fit(X, Y), ntkit.KernelRidge().fit(*twice(X, Y))
    assert b.alpha_ == pytest.approx(2 * a.alpha_, rel=1e-5)
    assert str(b.search_.best.candidate) == str(a.search_.best.candidate)
    np.testing.assert_allclose(b.predict(Q), a.predict(Q), atol=1e-6)
    for one, other in zip(a.predict_interval(Q), b.predict_interval(Q), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5)
    low, high = b.predict_interval(Q)
    assert ((low <= NEW) & (high >= NEW)).mean() > 0.8  # none, where a copy stays as its record is left out
    left, (_, y) = b.leave_one_out(), twice(X, Y)
    assert left.shape == y.shape and np.abs(left).mean() > 0.2


def test_leaving_a_record_out_is_leaving_out_its_copies():
    x, y = np.concatenate([X, X[:20], X[:5]]), np.concatenate([Y, Y[:20], Y[:5]])
    model = ntkit.KernelRidge("rbf", 0.5, scale=None, normalize_y=False).fit(x, y)
    left = model.leave_one_out()
    for i in (0, 3, 17, 40, 62, 84):
        others = (x != x[i]).any(1)
        refit = ntkit.KernelRidge(model.kernel_, 0.5, normalize_y=False).fit(x[others], y[others])
        np.testing.assert_allclose(left[i], y[i] - refit.predict(x[i : i + 1])[0], rtol=1e-8)


def test_weights_are_copies():
    weights = np.random.default_rng(2).integers(0, 4, 60)
    a = ntkit.KernelRidge().fit(X, Y, sample_weight=weights)
    b = ntkit.KernelRidge().fit(np.repeat(X, weights, 0), np.repeat(Y, weights))
    np.testing.assert_allclose(b.predict(Q), a.predict(Q), atol=1e-5)
    c = ntkit.KernelClassifier().fit(X, CLASSES, sample_weight=weights)
    d = ntkit.KernelClassifier().fit(np.repeat(X, weights, 0), np.repeat(CLASSES, weights))
    np.testing.assert_allclose(d.predict_proba(Q), c.predict_proba(Q), atol=1e-4)


def test_classes_and_their_probabilities_stay():
    a = ntkit.KernelClassifier().fit(X, CLASSES).predict_proba(Q)
    b = ntkit.KernelClassifier().fit(*twice(X, CLASSES)).predict_proba(Q)
    np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("copies", [5, 20, 60])
def test_the_evidence_finds_the_noise(copies):
    x, y = np.concatenate([X, X[:copies]]), np.concatenate([Y, Y[:copies]])
    gp = ntkit.GaussianProcess().fit(x, y)
    assert gp.noise_ == pytest.approx(
        ntkit.GaussianProcess().fit(X, Y).noise_, rel=0.02
    )  # columns are scaled by all
    assert 0.02 < gp.noise_ < 0.15  # 0.09
    low, high = gp.predict_interval(Q)
    assert 0.85 < ((low <= NEW) & (high >= NEW)).mean() < 0.99
    given = ntkit.GaussianProcess(gp.kernel_, 0.1, amplitude=1.0, normalize_y=False).fit(gp.scaling_(x), y)
    k = np.asarray(gp.kernel_(gp.scaling_(x))) + 0.1 * np.eye(len(x))
    sign, logdet = np.linalg.slogdet(k)
    expected = -0.5 * (y @ np.linalg.solve(k, y) + logdet + len(x) * np.log(2 * np.pi))
    assert sign == 1
    assert given.log_marginal_likelihood_ == pytest.approx(expected, rel=1e-9)  # of all samples, as they are


def test_the_flow_holds_copies_out_together():
    low, high = ntkit.GradientFlow(t=20.0).fit(*twice(X, Y)).predict_interval(Q)
    assert 0.85 < ((low <= NEW) & (high >= NEW)).mean() < 0.995


def test_observations_that_agree_by_chance_are_no_copies():
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 3, (200, 2)), rng.integers(0, 5, 200)  # few values: many agree
    assert len(copies_once(x, y, np.arange(200))) == 200
    assert merged(x, y, None) == (None, None)
    replicates = np.repeat(X, 2, 0), np.repeat(SHAPE, 2) + 0.3 * rng.normal(size=120)
    assert len(copies_once(*replicates, np.arange(120))) == 120
    noise = ntkit.GaussianProcess().fit(*replicates).noise_
    assert 0.05 < noise < 0.15


def test_what_weights_of_merged_records_are():
    x, y = np.array([[1.0], [2.0], [1.0], [3.0], [1.0]]), np.array([0.3, 0.1, 0.3, 0.2, 0.3])
    weights, same = merged(x, y, None)
    assert weights.tolist() == [3, 1, 0, 1, 0] and same.tolist() == [0, 1, 0, 2, 0]
    weights, same = merged(x, y, np.array([0.0, 2, 1, 1, 4]))
    assert weights.tolist() == [0, 2, 5, 1, 0] and same.tolist() == [0, 1, 2, 1]
