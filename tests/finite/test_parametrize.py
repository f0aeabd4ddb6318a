"""The NTK parameterization of every kind of layer, against the layer written out by hand."""

import pytest
import torch
from networks import CASES, build, jacobian
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, weight_norm

import ntkit

W, B = 1.3, 0.4
DERIVED = {"weight norm", "spectral norm in eval mode", "orthogonal"}


def drawn(model, seed=3, **sigma):
    return ntkit.ntk_parametrize(model.double(), **({"sigma_w": W, "sigma_b": B} | sigma), seed=seed)


def original(module, name):
    return module.parametrizations[name].original


def inputs(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", [k for k in CASES if isinstance(build(k)[0], nn.Module)])
def test_every_network_keeps_its_parameters_and_its_kernel(name):
    model, x = build(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    if name in DERIVED:
        with pytest.raises(ntkit.NtkitError, match="derived from other"):
            ntkit.ntk_parametrize(model, seed=0)
        return
    copy = drawn(model)
    assert len(list(copy.parameters())) == len(list(model.parameters()))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    j = jacobian(copy, x)
    k = ntkit.EmpiricalNTK(copy, outputs="full")(x)
    torch.testing.assert_close(k, torch.einsum("nop,mqp->nmoq", j, j), rtol=1e-9, atol=1e-9)


def test_tied_layers_share_one_draw():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.second.weight = self.first.weight
            self.again = self.first
            self.raw = self.first.weight

        def forward(self, x):
            h = torch.tanh(self.second(torch.tanh(self.first(x))))
            return torch.tanh(self.again(h)) @ self.raw

    copy, x = drawn(Tied()), inputs(4, 5)
    assert len(list(copy.parameters())) == 1
    w = original(copy.first, "weight")
    assert original(copy.second, "weight") is w and original(copy, "raw") is w
    a = W / 5**0.5 * w
    expected = torch.tanh(torch.tanh(torch.tanh(x @ a.T) @ a.T) @ a.T) @ a
    torch.testing.assert_close(copy(x), expected)


def test_an_embedding_tied_to_its_decoder_has_the_factor_of_each():
    model, x = build("tied embedding and decoder")
    copy = drawn(model)
    w = original(copy.embedding, "weight")
    assert w[0].abs().max() == 0 and 0.7 < w[1:].std() < 1.3  # row 0 is padding
    torch.testing.assert_close(copy.embedding.weight, W * w)

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.decoder = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.decoder.weight = self.embedding.weight

        def forward(self, x):
            return self.decoder(torch.tanh(self.embedding(x)).mean(1))

    copy = drawn(Decoder())
    w = original(copy.embedding, "weight")
    x = torch.tensor([[1, 2], [3, 3]])
    torch.testing.assert_close(copy(x), torch.tanh(W * w[x]).mean(1) @ w.T * W / 2)


def test_lstm_gru_and_rnn_by_hand():
    x = inputs(2, 4, 3)
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        copy = drawn(kind(3, 6, batch_first=True))
        names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
        weight, hidden, b, c = (original(copy, name) for name in names)
        assert 0.8 < hidden.std() < 1.2
        h, cell = torch.zeros(2, 6, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.float64)
        for t in range(4):
            u = W / 3**0.5 * x[:, t] @ weight.T + B * b
            v = W / 6**0.5 * h @ hidden.T + B * c
            if kind is nn.RNN:
                h = torch.tanh(u + v)
            elif kind is nn.LSTM:
                i, f, g, o = (u + v).chunk(4, 1)
                cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(cell)
            else:
                (r, z, n), (r2, z2, n2) = u.chunk(3, 1), v.chunk(3, 1)
                r, z = torch.sigmoid(r + r2), torch.sigmoid(z + z2)
                h = (1 - z) * torch.tanh(n + r * n2) + z * h
            torch.testing.assert_close(copy(x)[0][:, t], h)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells(kind):
    copy = drawn(kind(3, 6))
    torch.testing.assert_close(copy.weight_ih, W / 3**0.5 * original(copy, "weight_ih"))
    torch.testing.assert_close(copy.weight_hh, W / 6**0.5 * original(copy, "weight_hh"))
    torch.testing.assert_close(copy.bias_hh, B * original(copy, "bias_hh"))
    plain = kind(3, 6).double()
    plain.load_state_dict({k: getattr(copy, k) for k in plain.state_dict()})
    x, h = inputs(2, 3), inputs(2, 6)
    state = (h, h) if kind is nn.LSTMCell else h
    torch.testing.assert_close(copy(x, state), plain(x, state))


def test_deep_recurrent_modules_read_the_weights_that_they_are_given():
    options = {"num_layers": 2, "bidirectional": True, "proj_size": 2, "batch_first": True}
    copy, plain = drawn(nn.LSTM(3, 6, **options)), nn.LSTM(3, 6, **options).double()
    x = inputs(2, 4, 3)
    for _ in range(2):
        plain.load_state_dict({k: getattr(copy, k) for k in plain.state_dict()})
        torch.testing.assert_close(copy(x)[0], plain(x)[0])
        with torch.no_grad():
            for p in copy.parameters():
                p.mul_(0.5)
    copy = copy.float().double()
    assert copy(x)[0].shape == plain(x)[0].shape


def test_multihead_attention_by_hand():
    copy, x = drawn(nn.MultiheadAttention(8, 2, batch_first=True)), inputs(3, 5, 8)
    q, k, v = (
        W / 8**0.5 * x @ original(copy, "in_proj_weight").T + B * original(copy, "in_proj_bias")
    ).chunk(3, -1)
    q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in (q, k, v))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / 2, -1) @ v
    out = mixed.transpose(1, 2).flatten(2) @ original(copy.out_proj, "weight").T * (W / 8**0.5)
    out = out + B * original(copy.out_proj, "bias")
    torch.testing.assert_close(copy(x, x, x)[0], out)
    with torch.no_grad():
        torch.testing.assert_close(copy.eval()(x, x, x)[0], out)


def test_convolutions_by_hand():
    x = inputs(2, 4, 6, 6)
    conv = drawn(nn.Conv2d(4, 6, 3, groups=2))
    w, b = original(conv, "weight"), original(conv, "bias")
    torch.testing.assert_close(conv(x), F.conv2d(x, W / 18**0.5 * w, B * b, groups=2))
    back = drawn(nn.ConvTranspose2d(4, 6, 3, groups=2))
    w, b = original(back, "weight"), original(back, "bias")
    torch.testing.assert_close(back(x), F.conv_transpose2d(x, W / 18**0.5 * w, B * b, groups=2))


def test_parameters_of_ones_own_keep_their_parameterization():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Parameter(0.02 * torch.randn(1, 50, 40))
            self.scale, self.shift = nn.Parameter(torch.full((40,), 1e-4)), nn.Parameter(torch.rand(4000))
            self.norm, self.linear = nn.LayerNorm(40), nn.Linear(40, 3)

        def forward(self, x):
            return self.linear(self.norm(x + self.positions)[:, 0] * self.scale) + self.shift[:3]

    model = Block().double()
    copy, other = drawn(model), drawn(model, seed=4)
    assert torch.equal(copy.scale, model.scale) and torch.equal(copy.norm.weight, model.norm.weight)
    assert not torch.equal(copy.positions, model.positions)
    assert not torch.equal(copy.positions, other.positions)
    assert abs(copy.positions.mean()) < 4 * 0.02 / 2000**0.5 and 0.019 < copy.positions.std() < 0.021
    assert 0.45 < copy.shift.mean() < 0.55 and 0.26 < copy.shift.std() < 0.32


def test_frozen_weights_stay_frozen():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).requires_grad_(False)
    model[1].weight.requires_grad_()
    copy = drawn(model)
    assert [k for k, p in copy.named_parameters() if p.requires_grad] == [
        "1.parametrizations.weight.original"
    ]


def test_refusals():
    with pytest.raises(ntkit.NtkitError, match=r"the model \(Bilinear\) is not defined"):
        ntkit.ntk_parametrize(nn.Bilinear(2, 3, 4), seed=0)
    with pytest.raises(ntkit.NtkitError, match=r"0 \(Lazy\w+\) is not initialized"):
        ntkit.ntk_parametrize(nn.Sequential(nn.LazyLinear(3)), seed=0)
    with pytest.raises(ntkit.NtkitError, match=r"Expected a torch\.nn\.Module"):
        ntkit.ntk_parametrize(lambda x: x, seed=0)
    for model in (
        parametrizations.weight_norm(nn.Linear(2, 2)),
        ntkit.ntk_parametrize(nn.Linear(2, 2), seed=0),
        nn.utils.spectral_norm(nn.Linear(2, 2)),
    ):
        with pytest.raises(ntkit.NtkitError, match="derived from other"):
            ntkit.ntk_parametrize(model, seed=0)
    with pytest.warns(FutureWarning):
        old = weight_norm(nn.Linear(2, 2))
    with pytest.raises(ntkit.NtkitError, match="derived from other"):
        ntkit.ntk_parametrize(old, seed=0)
