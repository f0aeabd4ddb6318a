"""Networks without a limit, or with one that ntkit does not know, are refused with the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import Linear, Sequential
from wide_networks import Net

import ntkit

W = 16
relu = torch.relu


class Sorted(nn.Module):
    def forward(self, x):
        return torch.sort(x, 1).values  # the line that is named


def conv(norm):
    return Sequential(nn.Conv1d(2, W, 3), norm, nn.ReLU(), nn.Flatten(), Linear(4 * W, 1))


def hidden(f, d=4, **parts):
    return Net(lambda s, x: s.o(f(s, relu(s.a(x)), x)), **{"a": Linear(d, W), "o": Linear(W, 1), **parts})


def bent(norm):
    norm.running_mean.normal_()
    return Sequential(Linear(4, W), norm, nn.ReLU(), Linear(W, 1)).eval()


REFUSED = {
    "a weight and its transpose": (
        hidden(lambda s, h, x: F.linear(h, s.a.weight.T), W),
        (W,),
        ["a.weight", "transposed", "linear"],
    ),
    "a tied autoencoder": (
        Net(lambda s, x: F.linear(relu(s.a(x)), s.a.weight.T), a=Linear(W, W)),
        (W,),
        ["a.weight", "transposed"],
    ),
    "the read-out weight used elsewhere": (
        Net(lambda s, x: s.o(relu(s.o(relu(s.a(x))))), a=Linear(4, W), o=Linear(W, W)),
        (4,),
        ["read-out weight 'o.weight'", "random"],
    ),
    "one slope for all channels": (
        Sequential(Linear(4, W), nn.PReLU(), Linear(W, 1)),
        (4,),
        ["'1.weight'", "shared by all channels", "module '1'", "one entry per channel"],
    ),
    "ReZero": (
        hidden(lambda s, h, x: x + s.g * h, W, g=nn.Parameter(torch.zeros(1))),
        (W,),
        ["'g'", "shared by all channels"],
    ),
    "a scalar factor": (
        hidden(lambda s, h, x: s.g * h, g=nn.Parameter(torch.ones(()))),
        (4,),
        ["'g'", "shared by all channels"],
    ),
    "instance norm": (conv(nn.InstanceNorm1d(W)), (2, 6), ["instance norm", "random"]),
    "group norm, a channel a group": (conv(nn.GroupNorm(W, W)), (2, 6), ["one channel per group"]),
    "softmax at the end": (Sequential(Linear(4, 3), nn.Softmax(-1)), (4,), ["softmax", "logits"]),
    "log-softmax at the end": (Sequential(Linear(4, 3), nn.LogSoftmax(-1)), (4,), ["softmax", "logits"]),
    "sigmoid at the end": (Sequential(Linear(4, 3), nn.Sigmoid()), (4,), ["sigmoid", "Leave", "logits"]),
    "a norm at the end": (Sequential(Linear(4, W), nn.LayerNorm(W)), (4,), ["last line", "layer_norm"]),
    "a sum over channels": (hidden(lambda s, h, x: h * h.sum(1, keepdim=True)), (4,), ["sum over channels"]),
    "a mean over channels": (Net(lambda s, x: s.a(x).mean(1), a=Linear(4, W)), (4,), ["does not end in"]),
    "one channel": (hidden(lambda s, h, x: h * h[:, :1]), (4,), []),
    "max over channels": (
        Net(lambda s, x: s.o(F.max_pool1d(s.a(x), 2)), a=Linear(4, W), o=Linear(W // 2, 1)),
        (4,),
        ["pools over channels"],
    ),
    "data per channel in a function": (hidden(lambda s, h, x: relu(h + x), W), (W,), ["channel to channel"]),
    "data per channel as a factor": (hidden(lambda s, h, x: h * x, W), (W,), ["channel to channel"]),
    "weight norm": (
        Sequential(nn.utils.parametrizations.weight_norm(Linear(4, W)), nn.ReLU(), Linear(W, 1)),
        (4,),
        ["weight norm", "0.parametrizations.weight.original"],
    ),
    "spectral norm": (
        Sequential(nn.utils.parametrizations.spectral_norm(Linear(4, W)), nn.ReLU(), Linear(W, 1)).eval(),
        (4,),
        ["spectral norm", "0.parametrizations.weight.original"],
    ),
    "an affine norm of data": (Sequential(nn.LayerNorm(4), Linear(4, W)), (4,), ["of data"]),
    "trained batch-norm statistics": (
        bent(nn.BatchNorm1d(W)),
        (4,),
        ["running statistics", "reset_running_stats"],
    ),
    "a branch on data": (
        Net(lambda s, x: s.o(relu(s.a(x)) if s.a(x).sum() > 0 else s.a(x)), a=Linear(4, W), o=Linear(W, 1)),
        (4,),
        ["branches on values that its weights make"],
    ),
    "median": (
        hidden(lambda s, h, x: h.median(1).values, 3),
        (4, 3),
        ["no rule", "median", "register_limit_rule"],
    ),
    "a maximum over channels": (
        hidden(lambda s, h, x: (h + h.amax(2, keepdim=True)).mean(1), 3),
        (4, 3),
        ["a max over channels of infinite width"],
    ),
    "sums over channels": (
        hidden(lambda s, h, x: h.cumsum(2).mean(1), 3),
        (4, 3),
        ["sums over channels of infinite width"],
    ),
    "sort": (Sequential(Linear(4, W), Sorted(), Linear(W, 1)), (4,), ["no rule", "sort", "module '1'"]),
}


def read(model, *shape):
    x = torch.ones(1, *shape)
    return ntkit.infinite_width(model, x)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_limit_is_refused_with_the_reason(name):
    model, shape, words = REFUSED[name]
    with pytest.raises(ntkit.NoRuleError) as caught:
        read(model, *shape)
    message = str(caught.value)
    for word in (*words, "ntkit.monte_carlo"):
        assert word in message, message


def test_an_operation_without_a_rule_is_named_with_node_module_and_line():
    with pytest.raises(ntkit.NoRuleError) as caught:
        read(Sequential(Linear(4, W), Sorted(), Linear(W, 1)), 4)
    line = Sorted.forward.__code__.co_firstlineno + 1
    message = str(caught.value)
    assert "aten.sort.default (sort)" in message and "module '1'" in message
    assert f"{__file__}:{line}" in message
    assert "@ntkit.register_limit_rule(torch.ops.aten.sort.default)" in message


def test_the_line_of_a_builtin_module_is_not_made_up():
    with pytest.raises(ntkit.NoRuleError) as caught:
        read(conv(nn.InstanceNorm1d(W)), 2, 6)
    assert "module '1':" in str(caught.value) and ".py:" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "words"),
    [(nn.BatchNorm1d(W), ["BatchNorm1d", "eval()"]), (nn.Dropout(0.5), ["Dropout", "eval()"])],
)
def test_training_mode_is_refused(module, words):
    model = Sequential(Linear(4, W), module, nn.ReLU(), Linear(W, 1)).train()
    with pytest.raises(ntkit.errors.NotPerSampleError) as caught:
        read(model, 4)
    assert all(word in str(caught.value) for word in words)
    assert read(model.eval(), 4).ntk(torch.ones(2, 4)).shape == (2, 2)


def test_the_border_says_what_was_given_and_what_is_expected():
    model = Sequential(Linear(4, W), nn.ReLU(), Linear(W, 1))
    x = torch.ones(1, 4)
    with pytest.raises(ntkit.NtkitError, match=r"torch\.nn\.Module, got function"):
        ntkit.infinite_width(lambda x: x, x)
    with pytest.raises(ntkit.NtkitError, match="'ntk' or 'standard'"):
        ntkit.infinite_width(model, x, parameterization="mup")
    with pytest.raises(ntkit.NtkitError, match="No sigma is given for '2'"):
        ntkit.infinite_width(model, x, sigma_w={"0": 1.0})
    with pytest.raises(ntkit.NtkitError, match=r"float64.*float32"):
        ntkit.infinite_width(model, x.double())
    for settings in ({"samples": 0}, {"samples": 1e4}, {"sigma_w": float("nan")}, {"sigma_b": {"": "1"}}):
        with pytest.raises(ntkit.NtkitError, match=f"{next(iter(settings))}=.*(at least 32|finite number)"):
            ntkit.infinite_width(model, x, **settings)
    with pytest.raises(ntkit.NtkitError, match="empty batch"):
        ntkit.infinite_width(model, x[:0])
    limit = ntkit.infinite_width(model, x)
    with pytest.raises(ntkit.NtkitError, match=r"shape \[\(4,\)\], got \[\(5,\)\]"):
        limit.ntk(torch.ones(2, 5))
    with pytest.raises(ntkit.NtkitError, match="NaN"):
        limit.ntk(torch.full((2, 4), torch.nan))
    with pytest.raises(ntkit.NtkitError, match="has no line 'h7'"):
        limit.kernel("ntk", "h7")(x)


def test_a_copy_in_the_ntk_parameterization_is_not_scaled_twice():
    model = ntkit.ntk_parametrize(Sequential(Linear(4, W), nn.ReLU(), Linear(W, 1)), seed=0)
    with pytest.raises(ntkit.NtkitError, match="parameterization='standard'"):
        read(model, 4)
