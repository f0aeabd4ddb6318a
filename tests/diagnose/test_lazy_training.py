"""Laziness and drift, beside plain formulas in float64 and known values."""

import numpy as np
import pytest
import torch
from small_runs import classes, mlp, recorded
from torch import nn
from torch.func import functional_call, jacrev

from ntkit.diagnose import drift, laziness


def jacobian(model, x):
    weights = {k: w.detach() for k, w in model.named_parameters()}
    parts = jacrev(lambda w: functional_call(model, w, (x,)))(weights)
    return torch.cat([p.flatten(2) for p in parts.values()], 2)


def test_it_is_the_plain_formula(tmp_path):
    data = classes()
    start = {k: w.clone() for k, w in mlp().state_dict().items()}
    model = mlp()
    run = recorded(tmp_path / "run", model, data)
    before = mlp()
    before.load_state_dict(start)
    x = data[0]
    j0, j1 = jacobian(before, x), jacobian(model, x)
    k0, k1 = (torch.einsum("nop,mop->nm", j, j) / 3 for j in (j0, j1))
    flat0, flat1 = (torch.cat([w.reshape(-1) for w in s.values()]) for s in (start, model.state_dict()))
    linear = before(x) + torch.einsum("nop,p->no", j0, flat1 - flat0)
    missed = (model(x) - linear).norm() / (model(x) - before(x)).norm()
    found = laziness(run, samples=100, checkpoints=5)
    assert found.kernel.value == pytest.approx(float((k1 - k0).norm() / k0.norm()), rel=1e-8)
    assert found.linear.value == pytest.approx(missed.item(), rel=1e-8)
    assert found.weights == pytest.approx(float((flat1 - flat0).norm() / flat0.norm()), rel=1e-10)
    track = found.drift
    turned = 1 - float((k0 * k1).sum() / k0.norm() / k1.norm())
    assert track.turned[-1] == pytest.approx(turned, rel=1e-6)
    assert track.steps.tolist() == [0, 10, 20, 30, 40] and track.layers == ("0", "2")
    assert track.weights[-1, 1] == pytest.approx(
        float((flat1 - flat0)[48:].norm() / flat0[48:].norm()), rel=1e-10
    )
    assert found.kernel.low < found.kernel.value < found.kernel.high
    assert track.kernel[0] == track.linear[0] == 0
    assert len(track.table()) == 5 and "lazy up to" in found.table()


def test_a_linear_model_is_perfectly_lazy(tmp_path):
    run = recorded(tmp_path / "run", nn.Linear(5, 3).double(), classes())
    found = laziness(run)
    assert found.verdict == "lazy" and found.certain
    assert found.kernel.value == 0 and found.linear.high < 1e-12
    assert found.drift.weights[-1, 0] > 0.1


@pytest.mark.slow
def test_a_wide_network_is_lazier_and_a_narrow_one_is_rich(tmp_path):
    """The scale of the output decides (Chizat et al.): f = alpha (g - g_0), the loss divided by alpha^2."""

    class Scaled(nn.Module):
        def __init__(self, alpha):
            super().__init__()
            self.alpha, self.net, self.start = alpha, mlp(), mlp().requires_grad_(False)

        def forward(self, x):
            return self.alpha * (self.net(x) - self.start(x))

    verdicts = []
    for alpha in (0.1, 3.0, 300.0):

        def loss(f, y, alpha=alpha):
            return (f - nn.functional.one_hot(y, 3)).square().sum(1).mean() / alpha**2

        found = laziness(recorded(tmp_path / str(alpha), Scaled(alpha), classes(), loss, steps=60, rate=0.05))
        verdicts.append(found.verdict)
    assert verdicts[0] == "rich" and verdicts[-1] == "lazy"


@pytest.mark.slow
def test_a_run_of_checkpoints_is_looked_at_where_it_holds_weights(tmp_path):
    run = recorded(tmp_path / "run", mlp(), classes(), steps=20, every=5)
    assert drift(run, checkpoints=4).steps.tolist() == [0, 5, 15, 20]
    whole = recorded(tmp_path / "whole", mlp(), classes(), steps=20)
    assert np.allclose(drift(run, checkpoints=2).kernel, drift(whole, checkpoints=2).kernel, rtol=1e-12)


@pytest.mark.slow
def test_the_interval_covers_what_all_samples_give(tmp_path):
    """Over seeded subsets of 60 of 400 samples, nearly all intervals hold the value of all 400."""
    data = classes(400)
    run = recorded(tmp_path / "run", mlp(), data)
    whole = laziness(run, samples=400, checkpoints=2).kernel.value
    found = [laziness(run, samples=60, checkpoints=2, seed=s).kernel for s in range(20)]
    assert sum(f.low <= whole <= f.high for f in found) >= 17
