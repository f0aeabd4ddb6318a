"""Nothing outside a call changes its result, and nothing that is the user's changes by it."""

from __future__ import annotations

import contextlib
import random
import warnings

import numpy as np
import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn

import ntkit

D = torch.float64


def mlp(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 2)).to(dtype)


@contextlib.contextmanager
def setting(get, put, value):
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def deterministic(on):
    return setting(torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, on)


STATES = {
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "no grad in inference mode": lambda: _both(torch.inference_mode(), torch.no_grad()),
    "autocast bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "autocast in inference mode": lambda: _both(torch.inference_mode(), torch.autocast("cpu")),
    "float64 as default": lambda: setting(torch.get_default_dtype, torch.set_default_dtype, D),
    "another default device": lambda: torch.device("meta"),
    "deterministic": lambda: deterministic(True),
    "medium precision": lambda: setting(
        torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "medium"
    ),
    "warnings as errors": lambda: warnings.catch_warnings(action="error"),
    "anomaly detection": lambda: torch.autograd.detect_anomaly(check_nan=True),
}


@contextlib.contextmanager
def _both(a, b):
    with a, b:
        yield


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("name", STATES)
def test_the_state_around_the_call_changes_no_number(name):
    model, x = mlp(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    expected = {
        "block": ntkit.EmpiricalNTK(model)(x),
        "diagonal": ntkit.EmpiricalNTK(model).diag(x),
        "features": ntkit.EmpiricalNTK(model).features(x),
        "operator": ntkit.EmpiricalNTK(model).operator(x) @ torch.eye(5),
        "conjugate": ntkit.ConjugateKernel(model)(x),
    }
    k, conjugate, eye = ntkit.EmpiricalNTK(model), ntkit.ConjugateKernel(model), torch.eye(5)
    for _ in range(2):  # what is known from inside serves outside, and the other way round
        with STATES[name]():
            found = {
                "block": k(x),
                "diagonal": k.diag(x),
                "features": k.features(x),
                "operator": k.operator(x) @ eye,
                "conjugate": conjugate(x),
            }
        for what, value in found.items():
            assert value.dtype == torch.float32 and not value.requires_grad
            torch.testing.assert_close(value.clone(), expected[what], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(k(x), expected["block"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["inference mode", "no grad", "autocast bfloat16", "another default device"])
def test_limits_and_linearized_networks_do_not_see_it_either(name):
    model, x = mlp(), torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    limit, lazy = ntkit.infinite_width(model, x[:1]).ntk(x), ntkit.linearize(model)
    with STATES[name]():
        torch.testing.assert_close(
            ntkit.infinite_width(model, x[:1]).ntk(x).clone(), limit, rtol=1e-6, atol=1e-7
        )
    if name in ("inference mode", "no grad"):
        with torch.no_grad():
            for p in lazy.parameters():
                p.add_(0.01)
        expected = lazy(x)
        with STATES[name]():
            torch.testing.assert_close(lazy(x).clone(), expected, rtol=1e-5, atol=1e-6)


def test_inputs_that_are_made_in_inference_mode_and_weights():
    model = mlp()
    with torch.inference_mode():
        x, made = torch.randn(4, 4), mlp()
        inside = ntkit.EmpiricalNTK(model)(x)
    outside = ntkit.EmpiricalNTK(model)(x)
    torch.testing.assert_close(inside.clone(), outside, rtol=1e-5, atol=1e-6)
    assert_kernel(outside, mean_kernel(model, x.clone()), 1e-5)
    with pytest.raises(ValueError, match=r"'0.weight' was made in inference mode.*outside"):
        ntkit.EmpiricalNTK(made)


class Touching(nn.Module):
    """Does to its inputs, itself, its buffers and the random states what networks do."""

    def __init__(self):
        super().__init__()
        self.l, self.o = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.last, self.history, self.fail = None, [], False

    def forward(self, x):
        x.clamp_(-0.5, 0.5)
        self.calls += 1
        self.calls.mul_(2)
        h = self.last = torch.relu_(self.l(x))
        self.history.append(h.mean())
        torch.rand(3), random.random(), np.random.rand()
        if self.fail:
            raise ValueError("on purpose")
        return self.o(h)


def snapshot(model, x):
    state = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    attributes = [{k: id(v) for k, v in vars(m).items()} for m in model.modules()]
    values = {k: v.clone() for k, v in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    grads = [(id(p.grad), p.requires_grad) for p in model.parameters()]
    return state, attributes, values, hooks, grads, x.clone(), list(model.history), torch.is_grad_enabled()


def assert_same(a, b):
    for left, right in zip(a, b, strict=True):
        if isinstance(left, dict):
            assert all(torch.equal(left[k], right[k]) for k in left)
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert left == right


CALLS = {
    "block": lambda k, x: k(x),
    "two batches": lambda k, x: k(x, x[:2]),
    "diagonal": lambda k, x: k.diag(x),
    "features": lambda k, x: k.features(x),
    "operator": lambda k, x: k.operator(x) @ torch.eye(len(x), dtype=x.dtype),
    "plan": lambda k, x: k.plan(x),
    "explain": lambda k, x: k.explain(x),
    "parts": lambda k, x: k(x, per_parameter=True),
    "conjugate": lambda k, x: ntkit.ConjugateKernel(k.model)(x),
    "other weights": lambda k, x: ntkit.EmpiricalNTK(
        k.model, {n: 2 * w.detach() for n, w in k.model.named_parameters()}
    )(x),
}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_what_is_the_users_is_as_it_was(name, training):
    torch.manual_seed(0)
    model, x = Touching().to(D).train(training), torch.randn(3, 4, dtype=D) * 3
    model.o.weight.requires_grad_(False)
    model.l(x).sum().backward()
    model(x.clone())
    model.l.register_forward_hook(lambda m, i, o: o.sin())
    before = snapshot(model, x)
    k = ntkit.EmpiricalNTK(model)
    for _ in range(2):
        result = CALLS[name](k, x)
        assert_same(snapshot(model, x), before)
    if name == "block":
        model.last, model.history = None, []
        assert_kernel(result, mean_kernel(model, x))


def test_a_linearized_network_leaves_its_inputs_and_its_origin():
    torch.manual_seed(0)
    model, x = Touching().to(D), torch.randn(3, 4, dtype=D) * 3
    before = x.clone()
    lazy = ntkit.linearize(model)
    assert torch.equal(lazy(x), lazy(x)) and torch.equal(x, before)
    torch.testing.assert_close(lazy(x), model(x.clone()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["block", "diagonal", "features", "operator", "conjugate", "other weights"])
def test_it_is_so_after_an_error_too(name):
    torch.manual_seed(0)
    model, x = Touching().to(D), torch.randn(3, 4, dtype=D) * 3
    k = ntkit.EmpiricalNTK(model)
    k(x)
    model.fail = True
    before = snapshot(model, x)
    with pytest.raises(ntkit.NtkitError, match=r"does not take the inputs.*ValueError: on purpose"):
        CALLS[name](k, x)
    assert_same(snapshot(model, x), before)


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_inside_a_trainer_of_lightning(stage, tmp_path):
    lightning = pytest.importorskip("lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.seen = mlp(), []

        def forward(self, x):
            return self.net(x)

        def _step(self, batch, _):
            self.seen.append((batch[0].clone(), ntkit.EmpiricalNTK(self.net)(batch[0])))

        validation_step = test_step = predict_step = _step

    module = Module()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(6, 4)), batch_size=3)
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        getattr(trainer, stage)(module, loader)
    assert len(module.seen) == 2
    for x, k in module.seen:
        assert_kernel(k.clone(), mean_kernel(module.net, x.clone()), 1e-5)


@pytest.mark.parametrize("kind", [ntkit.EmpiricalNTK, ntkit.ConjugateKernel])
def test_inputs_that_ask_for_a_gradient_are_refused(kind):
    """What comes back has none by its inputs: it was cut in silence."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    x = torch.randn(5, 3, requires_grad=True)
    with pytest.raises(ntkit.NtkitError, match="requires a gradient"):
        kind(model)(x)
    with pytest.raises(ntkit.NtkitError, match="requires a gradient"):
        kind(model).diag(x)
    with torch.no_grad():
        expected = kind(model)(x)
    torch.testing.assert_close(kind(model)(x.detach()), expected)
