"""Detection beside plain formulas of each usual score, and where the answer is known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from small_runs import classes, mlp, recorded

from ntkit.diagnose import Detectors, novelty, ood_report, shift_report
from ntkit.diagnose.uncertainty import auroc


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    data = classes(90)
    model = mlp()
    recorded(tmp_path_factory.mktemp("ood") / "run", model, data, steps=80)
    return model, data


def test_each_score_is_the_plain_formula(trained):
    model, (x, y) = trained
    q, other = classes(20, seed=4)[0], mlp(seed=1)
    found = Detectors(model, (x, y), ensemble=[other], neighbors=5).scores(q)
    f = model(q).detach().numpy()
    p, p2 = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (f, other(q).detach().numpy()))
    assert np.allclose(found["softmax"], -p.max(1), rtol=1e-8)
    assert np.allclose(found["energy"], -np.log(np.exp(f).sum(1)), rtol=1e-8)
    assert np.allclose(found["ensemble"], -((p + p2) / 2).max(1), rtol=1e-8)
    h, hq = (torch.tanh(model[0](t)).detach().numpy() for t in (x, q))
    means = np.stack([h[y.numpy() == c].mean(0) for c in range(3)])
    spread = h - means[y]
    inverse = np.linalg.inv(spread.T @ spread / 90)
    d = hq[:, None] - means
    assert np.allclose(
        found["feature mahalanobis"], np.einsum("qcf,fg,qcg->qc", d, inverse, d).min(1), rtol=1e-7
    )
    unit, unit_q = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (h, hq))
    distance = np.sort(np.linalg.norm(unit_q[:, None] - unit, axis=2), axis=1)[:, 4]
    assert np.allclose(found["feature neighbors"], distance, atol=1e-7)
    alone = novelty(model, x, q, labels=y, held_out=q)
    assert np.allclose(found["tangent, variance"], alone.variance, atol=1e-10)
    assert np.allclose(found["tangent, mahalanobis"], alone.mahalanobis, rtol=1e-8)


def test_far_queries_are_told_and_the_same_ones_are_not(trained):
    model, data = trained
    detectors = Detectors(model, data)
    same, other = classes(120, seed=0)[0][90:], classes(30, seed=9)[0] * 4
    report = ood_report(detectors, inside=same, outside={"far": other, "the same": same})
    name, auroc = report.best(0, kernels=True)
    assert auroc > 0.9 and name.startswith(("tangent", "conjugate"))
    assert np.allclose(report.auroc[:, 1], 0.5) and (report.fpr95[:, 1] >= 0.9).all()
    own, far = (detectors.scores(q)["energy"] for q in (same, other))
    row = report.methods.index("energy")
    assert report.auroc[row, 0] == pytest.approx(roc_auc_score([0] * 30 + [1] * 30, np.r_[own, far]))
    assert (report.low <= report.auroc + 1e-12).all() and (report.auroc <= report.high + 1e-12).all()
    assert len(report.table()) == 2 * len(report.methods)


@pytest.mark.slow
def test_a_shift_moves_error_and_novelty(trained):
    model, data = trained
    x, y = classes(60, seed=0)
    draw = torch.Generator().manual_seed(0)
    noise = torch.randn(x.shape, generator=draw, dtype=torch.float64)
    report = shift_report(Detectors(model, data), {"noise": [x + s * noise for s in (0, 1, 2, 4)]}, y)
    assert report.error[0][0] < report.error[0][-1]
    row = report.methods.index("tangent, variance")
    assert report.correlation[row, 0] > 0.1 and np.ptp(report.mean[0][row]) > 0.1
    assert len(report.table()) == len(report.methods)


def test_delongs_interval_covers_the_truth():
    truth, held = 0.7602, 0  # of N(0, 1) against N(1, 1): Phi(1 / sqrt 2)
    for seed in range(100):
        draw = np.random.default_rng(seed)
        a, b = draw.normal(size=60), draw.normal(1, 1, size=80)
        found = auroc(a, b)
        assert found.value == pytest.approx(roc_auc_score([0] * 60 + [1] * 80, np.r_[a, b]))
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 100 <= 0.99
