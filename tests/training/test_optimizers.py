"""Every described optimizer of torch.optim: the real one, the forward oracle, the network itself."""

from __future__ import annotations

import pytest
import torch
from runs import GRID, ball, batches, forward_oracle, mlp, square, train, worst
from torch import nn, optim

import ntkit
from ntkit.errors import NtkitError, PathMismatchError
from ntkit.training.optimizers import Coefficients, registry

OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.01, fused=True),
    "Adam": lambda p: optim.Adam(p, 1e-2, foreach=True),
    "Adam fused": lambda p: optim.Adam(p, 1e-2, amsgrad=True, fused=True),
    "AdamW": lambda p: optim.AdamW(p, 1e-2, weight_decay=0.1, amsgrad=True),
    "NAdam": lambda p: optim.NAdam(p, 1e-2),
    "NAdam decoupled": lambda p: optim.NAdam(p, 1e-2, weight_decay=0.1, decoupled_weight_decay=True),
    "NAdam foreach": lambda p: optim.NAdam(p, 1e-3, weight_decay=0.01, maximize=True, foreach=True),
    "RAdam": lambda p: optim.RAdam(p, 1e-2, weight_decay=0.01),
    "RAdam foreach": lambda p: optim.RAdam(
        p, 1e-2, weight_decay=0.1, decoupled_weight_decay=True, foreach=True
    ),
    "Adamax": lambda p: optim.Adamax(p, 1e-2, weight_decay=0.01),
    "Adamax foreach": lambda p: optim.Adamax(p, 1e-3, maximize=True, foreach=True),
    "Adagrad": lambda p: optim.Adagrad(p, 1e-2, lr_decay=0.01, weight_decay=0.01),
    "Adagrad fused": lambda p: optim.Adagrad(p, 1e-2, lr_decay=0.01, fused=True),
    "Adadelta": lambda p: optim.Adadelta(p, 1.0, weight_decay=0.01),
    "Adadelta foreach": lambda p: optim.Adadelta(p, 0.1, maximize=True, foreach=True),
    "RMSprop": lambda p: optim.RMSprop(p, 1e-3, weight_decay=0.01),
    "RMSprop momentum": lambda p: optim.RMSprop(p, 1e-3, momentum=0.9),
    "RMSprop centered": lambda p: optim.RMSprop(p, 1e-3, momentum=0.9, centered=True, foreach=True),
    "ASGD": lambda p: optim.ASGD(p, 0.1, lambd=1e-3, weight_decay=0.01),
    "ASGD foreach": lambda p: optim.ASGD(p, 0.1, lambd=1e-3, t0=20, foreach=True),
    "Rprop": lambda p: optim.Rprop(p, 1e-3, step_sizes=(1e-6, 0.02)),
    "Rprop foreach": lambda p: optim.Rprop(p, 1e-3, step_sizes=(1e-6, 0.02), foreach=True),
    "Adafactor": lambda p: optim.Adafactor(p, 1e-2, weight_decay=0.1),
    "Adafactor foreach": lambda p: optim.Adafactor(p, 1e-2, foreach=True),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_residual_is_rounding_and_samples_agree_with_the_oracle(name, tmp_path):
    model, data, queries = mlp(), ball(16), GRID[::9]
    folder = train(tmp_path / "run", model, OPTIMIZERS[name](model.parameters()), data, batches(16, 5, 20))
    a = ntkit.account(folder, model, square, train=data, queries=queries, nodes=6)
    print(f"{name}: residual {worst(a):.1e}, rounding {float(a.rounding.abs().max()):.1e}")
    assert worst(a) <= 1e-14 and a.rounding.abs().max() <= 1e-12
    oracle = forward_oracle(folder, model, data, queries, 6)
    assert (a.contributions[:, 0] - oracle).abs().max() <= 1e-10 * oracle.abs().max()


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if "f" not in name.partition(" ")[2]])
def test_groups_ragged_batches_a_schedule_clipping_a_frozen_bias_and_a_start_in_the_middle(name, tmp_path):
    model, data = mlp(), ball(16)
    groups = [
        {"params": [model[0].weight], "lr": 0.004},
        {"params": [*model[2].parameters(), *model[4].parameters()]},
    ]
    model[0].bias.requires_grad_(False)
    optimizer = OPTIMIZERS[name](groups)
    buffer = registry.description(optimizer).buffer
    for _ in range(5):
        optimizer.zero_grad()
        square(model(data[0]), data[1]).backward()
        optimizer.step()
    scheduler = optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)

    def clip(parameters):
        torch.nn.utils.clip_grad_norm_(parameters, 0.5)
        torch.nn.utils.clip_grad_value_(parameters[2], 0.05)

    indices = [i for epoch in range(3) for i in torch.arange(16).split(6)]
    folder = train(tmp_path / "run", model, optimizer, data, indices, scheduler=scheduler, clip=clip)
    a = ntkit.account(folder, model, square, train=data, queries=GRID[::4])
    assert a.converged and a.relative_residual <= 1e-8
    total = a.initial + a.contributions.sum(-1) + a.decay + a.start + a.rounding + a.residual
    assert torch.allclose(total, a.prediction, rtol=0, atol=1e-13)
    has_momentum = any(state.get(buffer) is not None for state in optimizer.state.values())
    assert (a.start.abs().max() > 1e-4) == has_momentum


@pytest.mark.parametrize("name", ["NAdam", "RAdam", "RMSprop centered", "Rprop", "Adafactor", "ASGD"])
def test_float32_runs_pass_the_check_of_their_steps(name, tmp_path):
    model, data = mlp(torch.float32), ball(16, torch.float32)
    folder = train(tmp_path / "run", model, OPTIMIZERS[name](model.parameters()), data, batches(16, 5, 40))
    a = ntkit.account(folder, model, square, train=data, queries=GRID[::4].float())
    assert a.converged and 1e-9 < a.rounding.abs().max() < 1e-3
    wrong = data[0], -data[1]
    with pytest.raises(PathMismatchError, match=r"sha256|Step 0"):
        ntkit.account(folder, model, square, train=wrong, queries=GRID[::4].float())


ADAGRADS = [optim.Adagrad, optim.Adadelta, optim.Adafactor, optim.Adamax]


@pytest.mark.parametrize(
    "kind", [*ADAGRADS, optim.ASGD, optim.NAdam, optim.RAdam, optim.RMSprop, optim.Rprop]
)
def test_rates_that_are_float32_tensors(kind, tmp_path):
    model, data = mlp(), ball(16)
    options = {} if kind is optim.Rprop else {"weight_decay": 0.1}
    if kind in (optim.NAdam, optim.RAdam):
        options["decoupled_weight_decay"] = True
    if kind is optim.Adagrad:
        options["lr_decay"] = 0.1
    optimizer = kind(model.parameters(), torch.tensor(0.01), **options)
    folder = train(tmp_path / "run", model, optimizer, data, batches(16, 5, 6))
    a = ntkit.account(folder, model, square, train=data, queries=GRID[::9])
    assert a.converged and a.rounding.abs().max() <= 1e-14


def test_momentum_and_rate_that_cycle_and_gradients_that_come_and_go(tmp_path):
    for kind in (optim.SGD, optim.AdamW, optim.RMSprop):
        model, (x, y) = mlp(), ball(16)
        extra = {} if kind is optim.AdamW else {"momentum": 0.9}
        optimizer = kind(model.parameters(), 1e-3, **extra)
        scheduler = optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=30, cycle_momentum=True)
        folder = tmp_path / kind.__name__
        with ntkit.record(folder, model, optimizer) as run:
            for k, index in enumerate(batches(16, 5, 30)):
                run.batch(index)
                optimizer.zero_grad()
                square(model(x[index]), y[index]).backward()
                if k % 3 == 1:
                    model[2].weight.grad = None
                optimizer.step()
                scheduler.step()
        a = ntkit.account(folder, model, square, train=(x, y), queries=GRID[::9])
        assert a.converged, kind
        oracle = forward_oracle(folder, model, (x, y), GRID[::9], 8)
        assert (a.contributions[:, 0] - oracle).abs().max() <= 1e-7 * oracle.abs().max()


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason=f"torch {torch.__version__} has no torch.optim.Muon")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "options", [{}, {"nesterov": False}, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}]
)
def test_muon_multiplies_from_a_side_and_rounds(options, dtype, tmp_path):
    torch.manual_seed(0)
    shapes = ((2, 10), (10, 8), (8, 1))  # tall and wide
    layers = [m for i, o in shapes for m in (nn.Linear(i, o, bias=False), nn.GELU())]
    model, (x, y) = nn.Sequential(*layers[:-1]).to(dtype), ball(16, dtype)
    optimizer = optim.Muon(model.parameters(), 0.01, **options)
    folder = train(tmp_path / "run", model, optimizer, (x, y), batches(16, 5, 20), hashed=False)
    queries = GRID[::9].to(dtype)
    a = ntkit.account(folder, model, square, train=(x, y), queries=queries, nodes=6)
    assert worst(a) <= 1e-14
    assert 0 < a.rounding.abs().max() < 0.03 * (a.prediction - a.initial).abs().max()
    if dtype == torch.float64:
        oracle = forward_oracle(folder, model, (x, y), queries, 6)
        assert (a.contributions[:, 0] - oracle).abs().max() <= 1e-10 * oracle.abs().max()
    wrong = y.clone()
    wrong[batches(16, 5, 30)[0][0]] *= -1
    with pytest.raises(PathMismatchError, match=r"^Step 0 "):
        ntkit.account(folder, model, square, train=(x, wrong), queries=queries)


def test_optimizers_that_torch_lacks_are_left_out_by_name():
    assert registry.of_torch("SGD", "FromAFutureTorch") == (optim.SGD,)
    assert ("Muon" in str(registry.known_optimizers())) == hasattr(optim, "Muon")


class Heavy(optim.Optimizer):
    """A heavy ball of one's own, whose class ntkit has not seen."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p -= group["lr"] * m.mul_(0.8).add_(p.grad)


@pytest.fixture
def own(monkeypatch):
    monkeypatch.setattr(registry, "_DESCRIPTIONS", dict(registry._DESCRIPTIONS))


def test_an_optimizer_of_ones_own(tmp_path, own):
    model, data = mlp(), ball(16)
    optimizer = Heavy(model.parameters(), 0.02)
    with pytest.raises(NtkitError, match=r"Heavy.*register_optimizer\(Heavy\)"):
        ntkit.record(tmp_path / "none", model, optimizer)

    @ntkit.register_optimizer(Heavy, buffer="m")
    def heavy(made):
        return Coefficients(mu=0.0 if made.fresh else 0.8, nu=1.0, b=made.group["lr"])

    folder = train(tmp_path / "run", model, optimizer, data, batches(16, 5, 40))
    assert ntkit.account(folder, model, square, train=data, queries=GRID[::4]).converged


@pytest.mark.parametrize(
    ("wrong", "first"),
    [({"b": 0.021}, 0), ({"mu": 0.81}, 1), ({"nu": 1 + 1e-9}, 0), ({"d": 1e-9}, 0), ({"decay": 1e-6}, 0)],
)
def test_a_wrong_description_is_refused_at_the_first_step_it_is_wrong(wrong, first, tmp_path, own):
    @ntkit.register_optimizer(Heavy, buffer="m")
    def heavy(made):
        return Coefficients(**{"mu": 0.8, "nu": 1.0, "b": made.group["lr"], **wrong})

    model, data = mlp(), ball(16)
    folder = train(tmp_path / "run", model, Heavy(model.parameters(), 0.02), data, batches(16, 5, 10))
    with pytest.raises(PathMismatchError, match=rf"^Step {first} .*Heavy"):
        ntkit.account(folder, model, square, train=data, queries=GRID[::4])


def test_descriptions_that_cannot_be_used(tmp_path, own):
    for thing in (torch.nn.Linear, optim.SGD([torch.zeros(1)]), 3):
        with pytest.raises(NtkitError, match="register_optimizer"):
            ntkit.register_optimizer(thing)
    model, data = mlp(), ball(16)
    for made, message in (
        (None, "returned None"),
        (Coefficients(a=torch.ones(3)), r"\(3,\) to '0\.weight'"),
        (Coefficients(b=float("nan")), "NaN"),
        (Coefficients(left=torch.eye(2)), r"left of shape \(2, 2\) to '0\.weight'.*\(10, 10\)"),
    ):
        ntkit.register_optimizer(Heavy, buffer="m")(lambda _, made=made: made)
        with pytest.raises(NtkitError, match=message):
            train(tmp_path / str(message), model, Heavy(model.parameters(), 0.02), data, batches(16, 5, 2))


def test_two_optimizers_make_one_step(tmp_path):
    model, (x, y) = mlp(), ball(16)
    matrices = [p for p in model.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    both = [optim.SGD(matrices, 0.05, momentum=0.9), optim.AdamW(others, 1e-2)]
    with ntkit.record(tmp_path / "run", model, both, train=(x, y)) as run:
        for k, index in enumerate(batches(16, 5, 20)):
            run.batch(index)
            for optimizer in both:
                optimizer.zero_grad()
            square(model(x[index]), y[index]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            for optimizer in both[k % 2 :] + both[: k % 2]:
                if k % 5 != 4 or optimizer is both[0]:  # the second sits some steps out
                    optimizer.step()
    assert run.steps == 20
    a = ntkit.account(tmp_path / "run", model, square, train=(x, y), queries=GRID[::9], nodes=6)
    assert worst(a) <= 1e-14
    oracle = forward_oracle(tmp_path / "run", model, (x, y), GRID[::9], 6)
    assert (a.contributions[:, 0] - oracle).abs().max() <= 1e-10 * oracle.abs().max()
    for nothing in (None, [], "Adam"):
        with pytest.raises(NtkitError, match="Expected a"):
            ntkit.record(tmp_path / "b", model, nothing)
    with pytest.raises(NtkitError, match="in two groups"):
        ntkit.record(tmp_path / "b", model, [both[0], optim.SGD(model.parameters(), 0.1)])
