"""Loops that do something to the gradients: clipping, accumulation, loss scales, steps that are skipped."""

from __future__ import annotations

import copy

import pytest
import torch
from runs import GRID, ball, batches, forward_oracle, mlp, square, train, worst
from torch import nn, optim

import ntkit
from ntkit.errors import NtkitError, PathMismatchError
from ntkit.training.folder.run import Run

QUERIES = GRID[::9]
CLIPS = {
    "norm": lambda p: nn.utils.clip_grad_norm_(p, 0.05),
    "norm, tensor by tensor": lambda p: [nn.utils.clip_grad_norm_(q, 0.02) for q in p],
    "value": lambda p: nn.utils.clip_grad_value_(p, 0.01),
    "value through .data": lambda p: [q.grad.data.clamp_(-0.01, 0.01) for q in p],
    "value, then norm": lambda p: (nn.utils.clip_grad_value_(p, 0.01), nn.utils.clip_grad_norm_(p, 0.03)),
}


def loop(folder, model, optimizer, data, steps, clip=None):
    train(folder, model, optimizer, data, batches(len(data[0]), 5, steps), clip=clip)


def check(folder, model, data, oracle=True, loss=square):
    a = ntkit.account(folder, model, loss, train=data, queries=QUERIES.to(data[0].dtype), nodes=6)
    total = a.initial + a.contributions.sum(-1) + a.decay + a.start + a.rounding + a.residual
    assert torch.allclose(total, a.prediction, rtol=0, atol=1e-13)
    assert worst(a) <= 2e-14 and a.rounding.abs().max() <= 1e-12
    if oracle:
        expected = forward_oracle(folder, model, data, QUERIES, 6)
        assert (a.contributions[:, 0] - expected).abs().max() <= 1e-10 * expected.abs().max()
    return a


@pytest.mark.parametrize("clip", CLIPS)
@pytest.mark.parametrize("kind", [optim.SGD, optim.AdamW])
def test_clipping(kind, clip, tmp_path):
    model, data = mlp(), ball(16)
    extra = {"momentum": 0.9, "nesterov": True} if kind is optim.SGD else {}
    optimizer = kind(model.parameters(), 0.02, weight_decay=0.01, **extra)
    loop(tmp_path / "run", model, optimizer, data, 15, CLIPS[clip])
    check(tmp_path / "run", model, data)
    with Run(tmp_path / "run") as run:
        scale = torch.as_tensor(run.step(0).coefficients.scale)
        assert scale.min() < 0.9 and scale.max() <= 1
        tensors, _ = run.log.read(1)
    assert any(name.startswith("scale/") for name in tensors) == clip.startswith("value")


def test_clipping_in_float32_and_of_zero_gradients(tmp_path):
    model, data = mlp(torch.float32, nn.ReLU), ball(16, torch.float32)
    nn.init.constant_(model[0].bias, -1.0)  # dead units: raw and clipped gradients are zero
    loop(tmp_path / "run", model, optim.SGD(model.parameters(), 0.05), data, 20, CLIPS["value"])
    a = ntkit.account(tmp_path / "run", model, square, train=data, queries=QUERIES.float(), nodes=8)
    assert a.rounding.abs().max() < 1e-5


def test_accumulated_batches_of_different_sizes_and_weights(tmp_path):
    model, data = mlp(), ball(16)
    x, y = data
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    with ntkit.record(tmp_path / "run", model, optimizer, train=data) as run:
        for step in range(10):
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            for index, weight in zip(batches(16, 5 + step % 2, 3, seed=step), (0.5, 0.3, 0.2), strict=True):
                run.batch(index, weight=weight)
                (square(model(x[index]), y[index]) * weight).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert run.steps == 10
    check(tmp_path / "run", model, data, oracle=False)
    with Run(tmp_path / "run") as run:
        assert run.step(1).parts == ((6, 0.5), (6, 0.3), (6, 0.2))


def test_one_batch_in_pieces_is_the_whole_batch(tmp_path):
    accounts = []
    for pieces in (1, 4):
        model, data = mlp(), ball(16)
        x, y = data
        optimizer = optim.AdamW(model.parameters(), 1e-2)
        folder = tmp_path / str(pieces)
        with ntkit.record(folder, model, optimizer) as run:
            for _ in range(10):
                optimizer.zero_grad()
                for index in torch.arange(16).chunk(pieces):
                    run.batch(index, weight=1 / pieces)
                    (square(model(x[index]), y[index]) / pieces).backward()
                optimizer.step()
        accounts.append(check(folder, model, data, oracle=pieces == 1))
    whole, parts = accounts
    assert (whole.contributions - parts.contributions).abs().max() <= 1e-11


def test_a_weight_that_was_not_said_is_refused(tmp_path):
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05)
    with ntkit.record(tmp_path / "run", model, optimizer) as run:
        for index in (torch.arange(4), torch.arange(4, 8)):
            run.batch(index)
            (square(model(x[index]), y[index]) / 2).backward()
        optimizer.step()
    with pytest.raises(PathMismatchError, match=r"^Step 0 "):
        ntkit.account(tmp_path / "run", model, square, train=(x, y), queries=QUERIES)
    with ntkit.record(tmp_path / "b", model, optimizer) as run:
        for weight in (float("nan"), "a", None):
            with pytest.raises(NtkitError, match="weight"):
                run.batch([0], weight=weight)


def test_steps_that_the_loop_skips_change_nothing(tmp_path):
    model, data = mlp(), ball(16)
    x, y = data
    optimizer = optim.Adam(model.parameters(), 1e-2)
    with ntkit.record(tmp_path / "run", model, optimizer) as run:
        for k, index in enumerate(batches(16, 5, 30)):
            run.batch(index)
            optimizer.zero_grad(set_to_none=k % 2 == 0)
            loss = square(model(x[index]), y[index])
            if k % 5 == 2:
                continue
            loss.backward()
            if k % 7 != 3:
                optimizer.step()
    assert 15 < run.steps < 25
    check(tmp_path / "run", model, data)


def test_gradients_left_from_the_step_before_are_refused(tmp_path):
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05)
    with (
        pytest.raises(NtkitError, match=r"left from the step before.*zero_grad"),
        ntkit.record(tmp_path / "run", model, optimizer) as run,
    ):
        for _ in range(2):
            run.batch(range(4))
            square(model(x[:4]), y[:4]).backward()
            optimizer.step()
    assert run.steps == 1
    optimizer.zero_grad()
    with (
        pytest.raises(NtkitError, match=r"changed between two backward passes"),
        ntkit.record(tmp_path / "b", model, optimizer) as run,
    ):
        for _ in range(2):
            run.batch(range(4))
            square(model(x[:4]), y[:4]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        optimizer.step()


@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: optim.SGD(p, 0.05, momentum=0.9),
        lambda p: optim.Adam(p, 1e-2),
        lambda p: optim.Adam(p, 1e-2, fused=True),
    ],
    ids=["SGD", "Adam", "fused Adam"],
)
def test_grad_scaler_with_skipped_steps(make, unscale, tmp_path):
    model, data = mlp(), ball(16)
    x, y = data
    optimizer = make(model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    skipped = 0
    with ntkit.record(tmp_path / "run", model, optimizer, scaler=scaler) as run:
        for k, index in enumerate(batches(16, 5, 18)):
            run.batch(index)
            optimizer.zero_grad()
            loss = square(model(x[index]), y[index])
            scaler.scale(loss * (float("inf") if k % 6 == 3 else 1.0)).backward()
            if unscale:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
    assert skipped == 3 and run.steps == 15
    check(tmp_path / "run", model, data)


def test_grad_scaler_that_was_not_given(tmp_path):
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with ntkit.record(tmp_path / "run", model, optimizer) as run:
        run.batch(range(4))
        scaler.scale(square(model(x[:4]), y[:4])).backward()
        scaler.step(optimizer)
    with pytest.raises(PathMismatchError, match=r"^Step 0 "):
        ntkit.account(tmp_path / "run", model, square, train=(x, y), queries=QUERIES)


def test_hooks_are_gone_after_the_recording(tmp_path):
    model, data = mlp(), ball(16)
    loop(tmp_path / "run", model, optim.SGD(model.parameters(), 0.05), data, 2)
    for p in model.parameters():
        assert not p._backward_hooks and not p._post_accumulate_grad_hooks


def test_the_batch_may_be_told_after_the_backward_pass(tmp_path):
    model, data = mlp(), ball(16)
    x, y = data
    optimizer = optim.SGD(model.parameters(), 0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with ntkit.record(tmp_path / "run", model, optimizer, scaler=scaler) as run:
        for index in batches(16, 5, 10):
            optimizer.zero_grad()
            scaler.scale(square(model(x[index]), y[index])).backward()
            run.batch(index)
            scaler.step(optimizer)
            scaler.update()
    check(tmp_path / "run", model, data)


def test_a_step_from_gradients_elsewhere_is_refused(tmp_path):
    """Sharpness-aware minimization: the gradient is taken where the step is not made."""
    model, (x, y) = mlp(), ball(16)
    optimizer = optim.SGD(model.parameters(), 0.05)
    with ntkit.record(tmp_path / "run", model, optimizer) as run:
        run.batch(range(16))
        square(model(x), y).backward()
        kept = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(p.grad, alpha=0.05)
        optimizer.zero_grad()
        square(model(x), y).backward()
        with torch.no_grad():
            for p, old in zip(model.parameters(), kept, strict=True):
                p.copy_(old)
        optimizer.step()
    with pytest.raises(PathMismatchError, match=r"^Step 0 "):
        ntkit.account(tmp_path / "run", model, square, train=(x, y), queries=QUERIES)


def test_models_may_be_copied_and_compiled_while_recording(tmp_path):
    model, data = mlp(), ball(16)
    x, y = data
    compiled = torch.compile(model, backend="eager")
    optimizer = optim.Adam(model.parameters(), 1e-2)
    with ntkit.record(tmp_path / "run", compiled, optimizer) as run:
        for index in batches(16, 5, 5):
            run.batch(index)
            optimizer.zero_grad()
            square(compiled(x[index]), y[index]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            other = copy.deepcopy(model)
            square(other(x), y).backward()
            optimizer.step()
    check(tmp_path / "run", model, data)


def test_a_step_with_a_closure_is_accounted_for(tmp_path):
    model, (x, y) = mlp(), ball(16)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    with ntkit.record(tmp_path / "run", model, optimizer, train=(x, y)) as run:
        for index in batches(16, 5, 10):

            def closure(index=index):
                optimizer.zero_grad()
                loss = square(model(x[index]), y[index])
                loss.backward()
                return loss

            run.batch(index)
            assert optimizer.step(closure) > 0
    a = ntkit.account(tmp_path / "run", model, square, train=(x, y), queries=GRID, nodes=6)
    assert a.relative_residual <= 1e-12
    assert torch.allclose(a.prediction, model(GRID), atol=1e-13)
