"""The benchmark of attributions: its measures by hand, its methods against autograd, its cache."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, hessian, vmap

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import attribution
from attributions import methods, retrained
from attributions.measures import auroc, mean_spearman, spearman
from attributions.setting import Setting, draw, key, losses, train

TINY = Setting("mlp", "digits", samples=30, queries=4, batch=10, epochs=2, rate=0.1)


@pytest.fixture(scope="module")
def data():
    return draw(TINY)


@pytest.fixture(scope="module")
def model(data):
    return train(TINY, data)


def test_measures_by_hand():
    assert np.allclose(spearman(np.array([[1, 2, 3], [1, 2, 3]]), np.array([[1, 9, 4], [7, 7, 7]])), [0.5, 0])
    perfect = mean_spearman(np.arange(20.0).reshape(2, 10), np.exp(np.arange(20.0)).reshape(2, 10))
    assert np.allclose(perfect, 1)
    score, wrong = np.array([0.1, 0.4, 0.35, 0.8] * 5), np.array([False, False, True, True] * 5)
    found = auroc(score, wrong)
    assert found.value == 0.75 and found.low < 0.75 < found.high


def test_data_have_as_many_wrong_labels_as_asked_for(data):
    clean = draw(replace(TINY, flipped=0.0))
    assert int(data.wrong.sum()) == 3 and torch.equal(data.y != clean.y, data.wrong)


def gradients(model, x, y, of=""):
    """Return the gradient of each sample's loss by the parameters whose names begin so, ``[n, P]``."""
    weights = {k: w.detach() for k, w in model.named_parameters() if k.startswith(of)}

    def loss(weights, x, y):
        return losses(functional_call(model, weights, x[None]), y[None])[0]

    found = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    return torch.cat([found[k].flatten(1) for k in weights], 1).detach()


def test_tracin_is_the_product_of_gradients(data, model):
    loss, _ = methods.tracin(data, [model, model], [0.1, 0.3])
    g, g_query = gradients(model, data.x, data.y), gradients(model, data.query_x, data.query_y)
    assert np.allclose(loss.on_queries, -0.4 * g_query @ g.T)
    assert np.allclose(loss.own, 0.4 * (g**2).sum(1))


def test_last_layer_influence_is_that_of_autograd(data, model):
    first = next(iter(methods.last_layer(data, model)))
    weights = torch.cat([model[2].weight, model[2].bias[:, None]], 1).detach()
    h = torch.cat([model[:2](data.x), torch.ones(30, 1, dtype=torch.float64)], 1).detach()
    full = hessian(lambda w: losses(h @ w.T, data.y).mean())(weights).reshape(170, 170)
    damped = full + methods.DAMPINGS[0] * full.diagonal().mean() * torch.eye(170, dtype=torch.float64)
    order = torch.cat([torch.arange(160).reshape(10, 16), torch.arange(160, 170)[:, None]], 1).flatten()
    g, g_query = (
        gradients(model, x, y, of="2.")[:, order] for x, y in ((data.x, data.y), (data.query_x, data.query_y))
    )
    assert np.allclose(first.on_queries, -g_query @ torch.linalg.solve(damped, g.T))


def test_accounts_add_up_and_resume(data, model, tmp_path):
    loss, margin = methods.accounts(TINY, data, tmp_path, 1e-8)
    start = methods.network(TINY, 0)
    with torch.no_grad():
        moved = [losses(m(data.query_x), data.query_y).numpy() for m in (start, model)]
    assert np.allclose(loss.on_queries.sum(1), moved[1] - moved[0], atol=1e-7)
    (tmp_path / "queries.seconds").unlink()  # as if killed before the end of the first account
    again, _ = methods.accounts(TINY, data, tmp_path, 1e-8)
    assert np.array_equal(again.on_queries, loss.on_queries) and margin.on_queries.shape == (4, 30)


def test_retrainings_differ_by_the_samples_left_out_and_resume(data, model, tmp_path):
    first = retrained.removals(TINY, data, [0, 7], tmp_path)
    halves = retrained.of_halves(TINY, data, 3, tmp_path)
    assert first.shape == (4, 2) and halves.shape == (4, 3) and (first != 0).all()
    assert retrained.halves(30, 3).sum(1).tolist() == [15, 15, 15]
    files = sorted((tmp_path / "retrained").iterdir())
    files[-1].unlink()
    assert np.array_equal(retrained.removals(TINY, data, [0, 7], tmp_path), first)
    base = retrained.of_seeds(TINY, data, range(1), tmp_path)[:, 0]
    assert np.array_equal(base, losses(model(data.query_x), data.query_y).detach().numpy())


def test_other_data_or_settings_have_another_folder(data):
    other = replace(data, y=data.y.roll(1))
    assert len({key(TINY, data), key(TINY, other), key(replace(TINY, decay=True), data)}) == 3


def test_the_start_does_not_depend_on_the_default_dtype(data):
    before = key(TINY, data)
    torch.set_default_dtype(torch.float64)
    try:
        assert key(TINY, data) == before
    finally:
        torch.set_default_dtype(torch.float32)


def test_half_of_the_removals_are_random(data, model):
    scores = [methods.representation(data, model), *methods.last_layer(data, model)]
    chosen = attribution.chosen_removals(scores, 10, 30)
    assert len(set(chosen)) == 10
    assert int(np.abs(scores[0].on_queries).sum(0).argmax()) in chosen


@pytest.mark.slow
def test_the_quick_table_has_every_method(tmp_path):
    lines = attribution.measure(attribution.QUICK, tmp_path, 4, 4, 1e-4, other_seed=False)
    assert sum(line.startswith("| ") for line in lines) == 1 + 10
