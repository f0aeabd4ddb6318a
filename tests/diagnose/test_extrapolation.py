"""Novelty beside explicit features and inverses in float64; p-values that are uniform."""

import numpy as np
import pytest
import torch
from scipy import stats
from small_runs import classes, mlp, recorded

import ntkit
from ntkit.diagnose import novelty
from ntkit.diagnose.extrapolation import MEASURES

ALPHA = 1e-2


def plain(phi, q, labels, alpha=ALPHA):
    """The three measures from explicit features."""
    n = len(phi)
    k, cross, own = phi @ phi.T, q @ phi.T, (q * q).sum(1)
    a = alpha * np.trace(k) / n
    variance = 1 - np.einsum("qn,nm,qm->q", cross, np.linalg.inv(k + a * np.eye(n)), cross) / own
    cosine = cross / np.sqrt(np.outer(own, np.diag(k)))
    means = np.stack([phi[labels == c].mean(0) for c in np.unique(labels)])
    spread = phi - means[np.unique(labels, return_inverse=True)[1]]
    s = spread.T @ spread / n
    inverse = np.linalg.inv(s + alpha * np.trace(s) * np.eye(len(s)))
    d = q[:, None] - means
    far = np.einsum("qcf,fg,qcg->qc", d, inverse, d).min(1)
    return variance, 1 - cosine.max(1), far, cosine.argmax(1)


@pytest.mark.parametrize("which", ["tangent", "conjugate", "nngp"])
@pytest.mark.parametrize("labelled", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_is_the_plain_formula(which, labelled):
    x, y = classes(30)
    q = torch.cat([classes(6, seed=3)[0], 9 * torch.ones(1, 5, dtype=torch.float64)])
    labels = y if labelled else torch.zeros_like(y)
    if which == "nngp":
        kernel = ntkit.infinite_width(mlp(), x[:1]).nngp
        both = np.linalg.cholesky(kernel(torch.cat([x, q])).numpy())  # features of these points
        phi, of_q = both[:30], both[30:]
    elif which == "conjugate":
        kernel = ntkit.ConjugateKernel(mlp())
        phi, of_q = (kernel.features(t).numpy() for t in (x, q))
    else:
        kernel = ntkit.EmpiricalNTK(mlp())
        phi, of_q = (kernel.features(t).flatten(1).numpy() / 3**0.5 for t in (x, q))
    found = novelty(kernel, x, q, labels=labels if labelled else None, held_out=x, alpha=ALPHA)
    variance, distance, far, nearest = plain(phi, of_q, labels.numpy())
    assert np.allclose(found.variance, variance, atol=1e-8)
    assert np.allclose(found.distance, distance, atol=1e-8)
    assert np.allclose(found.mahalanobis, far, rtol=1e-7)
    assert (found.nearest == nearest).all()
    assert found.p_values["variance"][-1] == 1 / 31 or which == "conjugate"  # far away, tanh says nothing
    assert len(found.table()) == 7


def test_blocks_of_queries_are_the_whole():
    x, _ = classes(30)
    whole, tiled = (novelty(mlp(), x, x, memory=m) for m in ("1GiB", 3000))
    for name in MEASURES:
        assert np.allclose(getattr(whole, name), getattr(tiled, name), atol=1e-10)


@pytest.mark.slow
def test_p_values_of_unseen_data_are_uniform_and_those_of_others_are_not():
    x, _ = classes(400, d=4)
    q, _ = classes(700, d=4, seed=0)
    q = q[400:]
    model = mlp(4)
    found = novelty(model, x[:200], q, held_out=x[200:])
    for name in MEASURES:
        p = found.p_values[name]
        assert stats.ks_2samp(p, np.arange(1, 202) / 201).pvalue > 0.01, name
        far = novelty(model, x[:200], 2.5 * q, held_out=x[200:]).p_values[name]
        if name == "mahalanobis":
            assert stats.ks_2samp(far, np.arange(1, 202) / 201).pvalue < 1e-6


@pytest.mark.slow
def test_a_sketch_is_close_and_a_run_knows_its_data(tmp_path):
    data = classes()
    q = classes(10, seed=5)[0]
    run = recorded(tmp_path / "run", mlp(), data)
    exact, rough = (novelty(run, queries=q, sketch=s, alpha=0.1) for s in (None, 4000))
    assert np.abs(exact.variance - rough.variance).max() < 0.05
    assert not np.array_equal(exact.variance, rough.variance)


def test_what_is_nothing_to_a_kernel_is_wholly_new():
    x = torch.eye(4, dtype=torch.float64)
    q = torch.stack([x[0], torch.zeros(4, dtype=torch.float64)])
    kernel = ntkit.EmpiricalNTK(torch.nn.Linear(4, 1, bias=False).double())
    found = novelty(kernel, torch.cat([x, 0 * x[:1]]), q, held_out=x)
    assert found.variance[1] == found.distance[1] == 1 > found.variance[0]
