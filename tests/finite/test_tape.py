"""Passes of short networks that are replayed give what autograd gives, and follow the weights."""

import copy
import pickle

import pytest
import torch
from networks import build, jacobian
from torch import nn

import ntkit
from ntkit.finite.jacobian.tape import OFTEN, Tape, Tapes


def _kernel(model, x):
    j = jacobian(model, x)
    return torch.einsum("nop,mqp->nmoq", j, j)


@pytest.mark.parametrize(
    "name",
    ["MLP", "conv, zero padding", "layer norm", "a layer used three times", "raw parameters"],
)
def test_later_calls_give_what_the_first_gave(name):
    model, x = build(name)
    k = ntkit.EmpiricalNTK(model, outputs="full")
    truth = _kernel(model, x)
    for _ in range(OFTEN + 2):
        assert (k(x) - truth).abs().max() <= 1e-10 * truth.abs().max()
    assert any(callable(run) for run in _recipe(k).tapes._known.values())


def _recipe(k):
    (((recipe, _),),) = k._recipes.values()
    return recipe


def test_a_replayed_kernel_follows_training_and_other_inputs():
    model, x = build("MLP")
    k = ntkit.EmpiricalNTK(model, outputs="full")
    for _ in range(OFTEN + 2):
        k(x)
    with torch.no_grad():
        for w in model.parameters():
            w += 0.1 * torch.randn_like(w)
    for inputs in (x, x.flip(0), 2 * x, x[:2]):
        truth = _kernel(model, inputs)
        assert (k(inputs) - truth).abs().max() <= 1e-10 * truth.abs().max()


def test_relu_at_zero_and_single_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3))
    x = torch.randn(64, 40)
    x[0] = 0
    with torch.no_grad():
        model[0].bias[:150] = 0  # arguments of exactly zero at the first sample
    k = ntkit.EmpiricalNTK(model, outputs="trace")
    first, *_, last = (k(x) for _ in range(OFTEN + 2))
    truth = ntkit.EmpiricalNTK(model.double(), outputs="trace")(x.double())
    for found in (first, last):
        assert (found.double() - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_a_function_that_cannot_be_written_is_called():
    calls = []

    def branches(x):
        calls.append(1)
        return x + 1 if bool(x.sum() > 0) else x - 1

    tapes = Tapes()
    for sign in (*[1] * (OFTEN + 2), -1, -1):
        x = sign * torch.ones(3)
        torch.testing.assert_close(tapes.run("key", branches, x), x + sign)
    assert len(calls) >= 4


def test_the_oldest_shape_is_forgotten():
    tapes = Tapes(most=2)
    for n in (1, 2, 3, 1, 2, 3):
        tapes.run(n, torch.sin, torch.ones(n))
    assert len(tapes._known) == 2


def test_what_is_no_tensor_comes_back():
    tape = Tape.write(lambda x: {"a": x * 2, "b": None, "c": "text", "d": [3, x + 0 * x]}, torch.ones(2))
    found = tape.run(torch.full((2,), 5.0))
    assert found["b"] is None and found["c"] == "text" and found["d"][0] == 3
    torch.testing.assert_close(found["a"], torch.full((2,), 10.0))


def test_copies_write_their_own():
    tapes = Tapes(most=3)
    for _ in range(OFTEN + 2):
        tapes.run("key", torch.sin, torch.ones(2))
    for made in (copy.deepcopy(tapes), pickle.loads(pickle.dumps(tapes))):
        assert made._known == {} and made._most == 3


def test_sums_that_look_like_a_bias_but_are_none():
    def function(x, w, b):
        zeros = x.new_zeros(3, 5)
        zeros[1] = 7
        y = x @ w
        return torch.add(b, y, alpha=3), (x @ w) + b, b + (x @ w), y + zeros, 1 * (x @ w).relu() + b

    x, w, b = torch.randn(3, 4), torch.randn(4, 5), torch.randn(5)
    found = Tape.write(function, x, w, b).run(x, w, b)
    for a, expected in zip(found, function(x, w, b), strict=True):
        torch.testing.assert_close(a, expected)
