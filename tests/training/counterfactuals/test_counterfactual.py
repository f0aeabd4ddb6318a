"""Derivatives through training against central differences of training again, in float64."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn, optim
from trained_again import OPTIMIZERS, N, network, recorded, slope

import ntkit
from ntkit.errors import NtkitError, PathMismatchError
from ntkit.training.counterfactuals.result import Counterfactual
from ntkit.training.counterfactuals.sweep import DerivativeSweep

QUICK = ("SGD", "Adam", "RMSprop")


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in OPTIMIZERS]
)
@pytest.mark.parametrize("clip", [None, 0.3])
def test_effects_are_differences_of_training_again(name, clip, tmp_path):
    net, x, y = recorded(tmp_path, OPTIMIZERS[name], clip=clip, every=3 if clip else 1)
    c = ntkit.counterfactual(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:2])
    for sample in (1, 17):
        truth = slope(tmp_path, net, x, y, sample)
        assert (truth + c.effects[..., sample]).abs().max() <= 1e-8 * c.effects.abs().max()


@pytest.mark.slow
def test_several_groups_optimizers_and_parts_of_a_step(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    net[2].requires_grad_(False)
    x, y = torch.randn(N, 5).double(), torch.arange(N) % 3
    groups = [{"params": [net[0].weight], "lr": 0.2}, {"params": [net[0].bias], "weight_decay": 0.1}]
    both = [optim.SGD(groups, 0.1, momentum=0.5), optim.Adam(net[4].parameters(), 0.02)]
    with ntkit.record(tmp_path, net, both, train=(x, y)) as run:
        for _ in range(6):
            for o in both:
                o.zero_grad()
            for batch in torch.randperm(N)[:12].split(7):
                run.batch(batch, weight=0.5)
                (0.5 * F.cross_entropy(net(x[batch]), y[batch])).backward()
            for o in both:
                o.step()
    again = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=[])
    assert again.difference == 0
    c = ntkit.counterfactual(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:2])
    truth = slope(tmp_path, net, x, y, 4)
    assert (truth + c.effects[..., 4]).abs().max() <= 1e-8 * c.effects.abs().max()


def test_outputs_without_an_axis_of_their_own(tmp_path):
    def loss(outputs, targets):
        return ((outputs - targets) ** 2).mean()

    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 1), nn.Flatten(0))
    net, x, y = recorded(tmp_path, OPTIMIZERS["SGD"], net, loss=loss)
    c = ntkit.counterfactual(tmp_path, net, loss, train=(x, y), queries=x[:2])
    truth = slope(tmp_path, net, x, y, 3, loss=loss)
    assert (truth[:, None] + c.effects[..., 3]).abs().max() <= 1e-8 * c.effects.abs().max()


def test_targets_totals_and_tiles(tmp_path):
    net, x, y = recorded(tmp_path / "run", OPTIMIZERS["SGD"])
    ask = {"train": (x, y), "queries": x[:3]}
    every = ntkit.counterfactual(tmp_path / "run", net, "cross_entropy", **ask)
    tiles = ntkit.counterfactual(
        tmp_path / "run", net, "cross_entropy", **ask, memory="10KiB", keep=tmp_path / "kept"
    )
    torch.testing.assert_close(tiles.effects, every.effects, rtol=1e-9, atol=1e-14)
    assert len(list((tmp_path / "kept").iterdir())) > 1
    again = ntkit.counterfactual(
        tmp_path / "run", net, "cross_entropy", **ask, memory="10KiB", keep=tmp_path / "kept"
    )
    assert torch.equal(again.effects, tiles.effects)
    margin = ntkit.counterfactual(tmp_path / "run", net, "cross_entropy", **ask, target=("margin", 2, 0))
    torch.testing.assert_close(margin.effects[:, 0], every.effects[:, 2] - every.effects[:, 0])
    losses = ntkit.counterfactual(tmp_path / "run", net, "cross_entropy", **ask, target="loss", labels=y[:3])
    total = ntkit.counterfactual(
        tmp_path / "run", net, "cross_entropy", **ask, target="loss", labels=y[:3], total=True
    )
    torch.testing.assert_close(total.effects, losses.effects.sum(0, keepdim=True))
    net.eval()
    assert float(total.prediction) == pytest.approx(float(F.cross_entropy(net(x[:3]), y[:3]).detach()) * 3)


def test_leaving_out_a_sample_is_what_training_again_says(tmp_path):
    net, x, y = recorded(tmp_path, OPTIMIZERS["SGD"], network(norm=False))
    c = ntkit.counterfactual(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:4])
    check = c.check(sets=6)
    left = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=check.sets[0])
    whole = ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=[])
    torch.testing.assert_close(
        check.real[0], left.outputs(x[:4]) - whole.outputs(x[:4]), rtol=1e-9, atol=1e-13
    )
    assert check.rank_correlation > 0.9 and check.relative_error < 0.5
    noise = torch.randn(check.real.shape, generator=torch.Generator().manual_seed(0)).double()
    assert type(check)(check.sets, noise, check.real).rank_correlation < 0.5
    assert 0 < c.smoothness() < 0.5
    pair = c.check(sets=4, size=2)
    assert {len(s) for s in pair.sets} == {2}
    torch.testing.assert_close(pair.predicted[0], c.effects[..., pair.sets[0]].sum(-1))


def test_saved_and_loaded(tmp_path):
    net, x, y = recorded(tmp_path / "run", OPTIMIZERS["SGD"])
    c = ntkit.counterfactual(tmp_path / "run", net, F.cross_entropy, train=(x, y), queries=x[:2])
    c.save(tmp_path / "c.safetensors")
    for loaded in (Counterfactual.load(tmp_path / "c.safetensors"), pickle.loads(pickle.dumps(c))):
        assert torch.equal(loaded.effects, c.effects) and loaded.target == "outputs"
        with pytest.raises(NtkitError, match=r"make it anew"):
            loaded.check()
    assert c.to_xarray()["effects"].shape == (2, 3, N)
    table = c.table(0)
    assert len(table) == N and table["effect"].abs().is_monotonic_decreasing
    assert c.top(1, 3)[0].effect == c.effects[1, c.prediction[1].argmax()].tolist()[c.top(1, 3)[0].index]


def test_what_has_no_derivative_is_refused_by_name(tmp_path):
    net, x, y = recorded(tmp_path, lambda p: optim.Rprop(p, 0.01))
    with pytest.raises(NtkitError, match=r"Rprop.*ntkit\.retrain"):
        ntkit.counterfactual(tmp_path, net, F.cross_entropy, train=(x, y), queries=x[:2])
    assert ntkit.retrain(tmp_path, net, F.cross_entropy, train=(x, y), without=[]).difference == 0


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_another_loss_is_refused(name, tmp_path):
    net, x, y = recorded(tmp_path, OPTIMIZERS[name])
    with pytest.raises(PathMismatchError):
        ntkit.counterfactual(
            tmp_path, net, lambda o, t: 1.1 * F.cross_entropy(o, t), train=(x, y), queries=x[:2]
        )


@pytest.mark.parametrize("kind", ["EMA", "SWA from the middle"])
def test_the_averaged_network(tmp_path, kind):
    torch.manual_seed(0)
    net, x, y = network(norm=False).double(), torch.randn(N, 5, dtype=torch.float64), torch.arange(N) % 3
    optimizer, ema = optim.Adam(net.parameters(), 0.03), optim.swa_utils.get_ema_multi_avg_fn(0.7)
    averaged = optim.swa_utils.AveragedModel(net, multi_avg_fn=ema if kind == "EMA" else None)
    with ntkit.record(tmp_path, net, optimizer, train=(x, y), average=averaged) as run:
        for k in range(8):
            batch = torch.randperm(N)[:10]
            run.batch(batch)
            optimizer.zero_grad()
            F.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            if kind == "EMA" or k >= 4:
                averaged.update_parameters(net)
    ask = {"train": (x, y), "average": True}
    again = ntkit.retrain(tmp_path, net, F.cross_entropy, without=[], **ask)
    assert again.difference <= 1e-14
    assert (again.outputs(x) - averaged(x)).abs().max() <= 1e-13
    c = ntkit.counterfactual(tmp_path, net, F.cross_entropy, queries=x[:2], **ask)
    truth = slope(tmp_path, net, x, y, 3, average=True)
    assert (truth + c.effects[..., 3]).abs().max() <= 1e-8 * c.effects.abs().max()
    check = c.check(sets=2)
    left = ntkit.retrain(tmp_path, net, F.cross_entropy, without=check.sets[1], **ask)
    torch.testing.assert_close(check.real[1], left.outputs(x[:2]) - again.outputs(x[:2]))


def test_goes_on_in_the_middle_of_a_row(tmp_path, monkeypatch):
    net, x, y = recorded(tmp_path / "run", OPTIMIZERS["Adam"], clip=0.5)
    ask = {"train": (x, y), "queries": x[:2]}
    expected = ntkit.counterfactual(tmp_path / "run", net, F.cross_entropy, **ask)
    back, seen = DerivativeSweep.back, []

    def dies(sweep, rows):
        seen.append(rows.position)
        if len(seen) == 5:
            raise KeyboardInterrupt
        back(sweep, rows)

    monkeypatch.setattr("ntkit.training.counterfactuals.tiles.PAUSE", 0.0)
    monkeypatch.setattr(DerivativeSweep, "back", dies)
    with pytest.raises(KeyboardInterrupt):
        ntkit.counterfactual(tmp_path / "run", net, F.cross_entropy, **ask, keep=tmp_path / "kept")
    found = ntkit.counterfactual(tmp_path / "run", net, F.cross_entropy, **ask, keep=tmp_path / "kept")
    assert seen == [8, 7, 6, 5, 4, 4, 3, 2, 1]
    assert torch.equal(found.effects, expected.effects)
    kept = ntkit.counterfactual(tmp_path / "run", net, F.cross_entropy, **ask, keep=tmp_path / "kept")
    assert len(seen) == 9 and torch.equal(kept.effects, expected.effects)


@pytest.mark.slow  # processes start in some seconds
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_rows_in_processes(tmp_path, name, every):
    net, x, y = recorded(tmp_path / "run", OPTIMIZERS[name], clip=0.5, every=every)
    ask = {"train": (x, y), "queries": x[:3]}
    expected = ntkit.counterfactual(tmp_path / "run", net, F.cross_entropy, **ask)
    found = ntkit.counterfactual(
        tmp_path / "run", net, F.cross_entropy, **ask, jobs=2, keep=tmp_path / "kept"
    )
    torch.testing.assert_close(found.effects, expected.effects, rtol=1e-10, atol=1e-14)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_a_rough_run_is_told(tmp_path):
    net, x, y = recorded(
        tmp_path / "rough", lambda p: optim.SGD(p, 15.0), network(norm=False), schedule=False
    )
    ask = {"train": (x, y), "queries": x[:2]}
    with pytest.warns(RuntimeWarning, match=r"far from linear.*ntkit\.retrain"):
        rough = ntkit.counterfactual(tmp_path / "rough", net, F.cross_entropy, **ask).smoothness(5)
    assert rough > 0.5
    net, x, y = recorded(tmp_path / "smooth", lambda p: optim.SGD(p, 0.01), network(norm=False))
    assert ntkit.counterfactual(tmp_path / "smooth", net, F.cross_entropy, **ask).smoothness() < 0.05
