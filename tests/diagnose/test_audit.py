"""The label audit beside plain formulas in float64, and labels that were flipped."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score
from small_runs import classes, mlp, recorded
from torch import nn
from torch.func import functional_call, grad, vmap

import ntkit
from ntkit.data.digits import digits
from ntkit.diagnose import label_audit
from ntkit.diagnose.audit import WEIGHTS, _sharpened
from ntkit.diagnose.noise_model import Regression, leave_one_out, noise_model
from ntkit.diagnose.sample_scores import Combined


def flipped(y, share, seed, classes=10):
    draw = np.random.default_rng(seed)
    wrong = np.zeros(len(y), bool)
    wrong[draw.permutation(len(y))[: round(share * len(y))]] = True
    other = (y.numpy() + draw.integers(1, classes, len(y))) % classes
    return torch.as_tensor(np.where(wrong, other, y.numpy())), wrong


def test_the_regression_is_in_a_gaussian_kernel_of_normalized_features():
    x, _ = classes(20)
    features = ntkit.EmpiricalNTK(mlp()).features(x).flatten(1)
    u = features / features.norm(dim=1, keepdim=True)
    squared = torch.cdist(u, u, compute_mode="donot_use_mm_for_euclid_dist").square()
    expected = torch.exp(-squared / (squared / 2).median())
    cosine = ntkit.EmpiricalNTK(mlp()).normalized()(x)
    assert torch.allclose(_sharpened(cosine), expected, rtol=1e-8)
    assert torch.equal(_sharpened(torch.ones(3, 3)), torch.ones(3, 3))


def test_a_run_is_asked_in_some_directions_of_its_outputs():
    x, _ = classes(9)
    model = nn.Sequential(nn.Linear(x.shape[1], 4), nn.Tanh(), nn.Linear(4, 7)).double().eval()
    some = Combined(model, None, x[:1], 3, seed=0)
    assert torch.allclose(some.combinations.T @ some.combinations, torch.eye(3).double(), atol=1e-12)
    full = ntkit.EmpiricalNTK(model, outputs="full")(x)
    expected = torch.einsum("nmop,oq,pq->nm", full, some.combinations, some.combinations)
    assert torch.allclose(ntkit.EmpiricalNTK(some, outputs="trace")(x), expected, rtol=1e-10)
    for directions in (7, 20, None):
        found = ntkit.EmpiricalNTK(Combined(model, None, x[:1], directions, seed=0))(x)
        assert torch.equal(found, ntkit.EmpiricalNTK(model)(x))


@pytest.mark.slow
def test_its_parts_are_the_plain_formulas(tmp_path):
    x, y = classes(45)
    y = torch.where(torch.arange(45) == 7, (y + 1) % 3, y)
    q, q_y = classes(12, seed=2)
    run = recorded(tmp_path / "run", mlp(), (x, y), steps=20)
    found = label_audit(run, held_out=(q, q_y), checkpoints=2, exact=True)
    losses, norms = [], []
    for step in (10, 20):
        model = run.network(step)
        weights = {k: w.detach() for k, w in model.named_parameters()}

        def loss(w, x, y, model=model):
            return nn.functional.cross_entropy(functional_call(model, w, (x[None],)), y[None])

        g = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
        norms.append(sum(part.flatten(1).square().sum(1) for part in g.values()))
        losses.append(nn.functional.cross_entropy(model(x), y, reduction="none").detach())
    assert np.allclose(found.scores["self_influence"], torch.stack(norms).mean(0), rtol=1e-8)
    assert np.allclose(found.scores["loss"], torch.stack(losses).mean(0), rtol=1e-8)
    row = ntkit.counterfactual(
        run.folder, run.model, "cross_entropy", train=(x, y), queries=q, labels=q_y, target="loss"
    )
    assert np.allclose(found.scores["counterfactual"], -row.effects.sum((0, 1)), rtol=1e-7, atol=1e-12)
    own = ntkit.account(
        run.folder, run.model, "cross_entropy", train=(x, y), queries=x, labels=y, target="loss"
    )
    assert np.allclose(found.scores["account"], -own.self_influence()[:, 0], rtol=1e-3, atol=1e-6)
    ranks = sum(
        WEIGHTS[name] * (rankdata(found.scores[name]) - 1)
        for name in ("ridge", "loss", "self_influence", "counterfactual", "account")
    )
    assert np.allclose(found.score, ranks / 44, atol=1e-8)
    unit = x / x.norm(dim=1, keepdim=True)
    similarities = {"before": run.kernel(0).normalized()(x), "after": run.kernel().normalized()(x)}
    similarities["inputs"] = unit @ unit.T
    before, after, inputs = (torch.exp(2 * (c - 1) / (1 - c).median()) for c in similarities.values())
    together = {"ridge": before / 4 + after / 4 + inputs / 2, "ridge before": before / 2 + inputs / 2}
    one = nn.functional.one_hot(y, 3).double()
    for name, gram in together.items():
        first = noise_model(leave_one_out(gram, one - one.mean(0), 0.5), y).wrong
        weights = torch.as_tensor(np.where(first < 0.01, 1.0, np.clip(1 - first, 1e-3, 1)))
        again = noise_model(leave_one_out(gram, one - one.mean(0), 0.5, weights), y)
        assert np.allclose(found.scores[name], again.wrong, rtol=1e-5, atol=1e-8)
    assert np.allclose(found.model.wrong, found.scores["ridge before"])
    assert found.order[0] == 7
    table = found.table()
    assert len(table) == 45 and table["index"][0] == 7 and table["suggested"][0] != table["label"][0]
    assert found.save_table(tmp_path / "suspects.csv").read_text().count("\n") == 46


def test_the_residual_is_that_of_regression_without_the_sample():
    x, y = classes(30)
    k = ntkit.EmpiricalNTK(mlp()).normalized()(x)
    one = nn.functional.one_hot(y, 3).double()
    weights = torch.rand(30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 0.1
    weights[::3] = 1.0
    again = Regression(k, one, 0.3)
    assert torch.allclose(again.leave_one_out(weights), leave_one_out(k, one, 0.3, weights), rtol=1e-8)
    assert torch.allclose(again.leave_one_out(), leave_one_out(k, one, 0.3), rtol=1e-8)
    found = leave_one_out(k, one, 0.3, weights)
    for i in (0, 11, 29):
        rest = torch.arange(30) != i
        system = k[rest][:, rest] + torch.diag(0.3 / weights[rest])
        assert torch.allclose(found[i], k[i, rest] @ torch.linalg.solve(system, one[rest]), rtol=1e-8)


@pytest.mark.parametrize(
    "share", [0.1, pytest.param(0.05, marks=pytest.mark.slow), pytest.param(0.2, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_flipped_digits_are_found_and_their_number_is_estimated(share):
    data = digits(600, dtype=torch.float64)
    y, wrong = flipped(data.train_y, share, seed=4)
    found = label_audit(
        nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double(), data.train_x, y
    )
    assert roc_auc_score(wrong, found.score) > 0.97
    estimate = found.wrong
    assert estimate.low - 0.02 * 600 <= wrong.sum() <= estimate.high + 0.02 * 600
    k = round(share * 600)
    precision = found.precision(k)
    assert precision.low - 0.03 <= wrong[found.order[:k]].mean() <= precision.high + 0.03


@pytest.mark.parametrize("kind", ["uniform", "by class"])
def test_flips_that_go_to_one_class_are_seen_as_such(kind):
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 5, (1500,), generator=draw)
    f = nn.functional.one_hot(y, 5) + 0.35 * torch.randn(1500, 5, generator=draw).double()
    flip = torch.rand(1500, generator=draw) < (0.1 if kind == "uniform" else torch.where(y == 1, 0.5, 0.0))
    by = torch.randint(1, 5, (1500,), generator=draw) if kind == "uniform" else 1
    model = noise_model(f, torch.where(flip, (y + by) % 5, y))
    found = model.count(np.arange(1500), draws=20)
    assert abs(found.value - int(flip.sum())) < 15 and 5 < found.high - found.low < 60
    if kind == "uniform":
        assert model.strength >= 300
    else:
        assert model.strength <= 100 and abs(float(model.transitions[1, 2]) - 0.5) < 0.06
    assert roc_auc_score(flip, model.wrong) > (0.98 if kind == "uniform" else 0.995)


@pytest.mark.slow
def test_without_wrong_labels_there_are_few_and_noise_is_noise():
    data = digits(400)
    clean = label_audit(nn.Linear(64, 10).double(), data.train_x, data.train_y)
    assert clean.wrong.value < 0.03 * 400
    draw = torch.Generator().manual_seed(0)
    y = torch.randint(0, 10, (400,), generator=draw)
    noise = label_audit(nn.Linear(64, 10).double(), data.train_x, y)
    assert not noise.model.informative and "cannot be said" in noise.words
    assert noise.precision(10)[1:] == (0, 1) and clean.model.informative


@pytest.mark.slow
def test_the_interval_of_the_precision_covers():
    """Labels drawn from the model itself: its 95 % interval holds the truth about 19 times of 20."""
    held = 0
    for seed in range(30):
        draw = torch.Generator().manual_seed(seed)
        f = torch.randn(500, 4, generator=draw, dtype=torch.float64)
        y = torch.multinomial(torch.softmax(4 * f, 1), 1, generator=draw)[:, 0]
        flip = torch.rand(500, generator=draw) < 0.15
        given = torch.where(flip, (y + torch.randint(1, 4, (500,), generator=draw)) % 4, y)
        model = noise_model(f, given)
        top = np.argsort(-model.wrong)[:60]
        found = model.count(top, draws=60)
        held += found.low <= float((given != y)[top].sum()) <= found.high
    assert held >= 25
