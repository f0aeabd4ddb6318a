"""Packed sequences: one graph for all lengths, all weights by structure."""

from __future__ import annotations

import pytest
import torch
from by_autograd import assert_kernel, mean_kernel
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import ntkit

D = torch.float64
LENGTHS = torch.tensor([5, 2, 3, 6, 1])


class Packed(nn.Module):
    """A read-out of what a function makes of packed sequences, with a recurrent layer."""

    def __init__(self, rnn, f, size):
        super().__init__()
        self.rnn, self.f = rnn, f
        self.e, self.p, self.o = nn.Embedding(9, 3), nn.Linear(3, 3), nn.Linear(size, 2)

    def pack(self, x, lengths):
        return pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)

    def forward(self, x, lengths):
        return self.o(self.f(self, x, lengths))


def last(m, x, lengths):
    h = m.rnn(m.pack(x, lengths))[1]
    return (h[0] if isinstance(h, tuple) else h)[-1]


def both_ends(m, x, lengths):
    h = m.rnn(m.pack(x, lengths.cpu()))[1]
    return torch.cat([h[-2], h[-1]], 1)


def mean(m, x, lengths):
    y, n = pad_packed_sequence(m.rnn(m.pack(x, lengths))[0], batch_first=True, total_length=x.shape[1])
    return y.sum(1) / n[:, None]


def largest(m, x, lengths):
    return pad_packed_sequence(m.rnn(m.pack(x, lengths))[0], True, padding_value=-1e3)[0].amax(1)


def time_first(m, x, lengths):
    packed = pack_padded_sequence(x.transpose(0, 1), lengths, enforce_sorted=False)
    return pad_packed_sequence(m.rnn(packed)[0])[0].sum(0)


def sorted_by_hand(m, x, lengths):
    lengths, order = lengths.sort(descending=True)
    y, _ = pad_packed_sequence(m.rnn(pack_padded_sequence(x[order], lengths, True))[0], True)
    return y.sum(1)[order.argsort()]


def attended(m, x, lengths):
    y, n = pad_packed_sequence(m.rnn(m.pack(x, lengths))[0], batch_first=True)
    hidden = torch.arange(y.shape[1]) >= n[:, None]
    return (y.sum(-1).masked_fill(hidden, -torch.inf).softmax(1)[..., None] * y).sum(1)


def packed_values(m, x, lengths):
    p = m.pack(x, lengths)
    p = PackedSequence(m.p(p.data).tanh(), p.batch_sizes, p.sorted_indices, p.unsorted_indices)
    return m.rnn(p)[1][0][0]


def tokens(m, x, lengths):
    ids = (x[..., 0] * 3).long().abs().clamp(max=8)
    return m.rnn(m.pack(m.e(ids), lengths))[1][0][0]


# name: recurrent layer, function, its outputs
CASES = {
    "lstm": (lambda: nn.LSTM(3, 4), last, 4),
    "gru": (lambda: nn.GRU(3, 4), last, 4),
    "tanh": (lambda: nn.RNN(3, 4), last, 4),
    "relu": (lambda: nn.RNN(3, 4, nonlinearity="relu"), last, 4),
    "cell state": (lambda: nn.LSTM(3, 4), lambda m, x, n: m.rnn(m.pack(x, n))[1][1][0], 4),
    "bidirectional gru": (lambda: nn.GRU(3, 4, bidirectional=True), both_ends, 8),
    "dropout in eval": (lambda: nn.LSTM(3, 4, 2, dropout=0.3, bidirectional=True), mean, 8),
    "projected": (lambda: nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True), mean, 4),
    "without biases": (lambda: nn.GRU(3, 4, 2, bias=False), largest, 4),
    "time first": (lambda: nn.LSTM(3, 4, 2), time_first, 4),
    "sorted by hand": (lambda: nn.GRU(3, 4), sorted_by_hand, 4),
    "attended": (lambda: nn.LSTM(3, 4), attended, 4),
    "a layer of packed values": (lambda: nn.LSTM(3, 4), packed_values, 4),
    "tokens": (lambda: nn.LSTM(3, 4), tokens, 4),
    "first state": (
        lambda: nn.GRU(3, 4),
        lambda m, x, n: m.rnn(m.pack(x, n), torch.ones(1, len(x), 4, dtype=D))[1][0],
        4,
    ),
    "fixed lengths": (lambda: nn.LSTM(3, 4), lambda m, x, n: last(m, x, [4] * len(x)), 4),
    "lengths as a list": (lambda: nn.LSTM(3, 4), lambda m, x, n: last(m, x, n.tolist()), 4),
}


@pytest.mark.parametrize("case", CASES)
def test_packed_sequences_by_structure(case):
    make, f, size = CASES[case]
    torch.manual_seed(0)
    model, x = Packed(make(), f, size).to(D).eval(), torch.randn(5, 6, 3, dtype=D)
    if f is not tokens:
        del model.e
    if f is not packed_values:
        del model.p
    k, truth = ntkit.EmpiricalNTK(model), mean_kernel(model, (x, LENGTHS))
    for _ in range(2):
        assert_kernel(k((x, LENGTHS)), truth)
    some = [1, 3, 0]
    assert_kernel(k((x[some], LENGTHS[some]), (x, LENGTHS)), truth[some])
    assert {row.way for row in k.explain((x, LENGTHS)).rows} == {"structure"}, k.explain((x, LENGTHS))
    assert len(k._recipes) == 1


def test_dropout_between_packed_layers_is_refused():
    model = Packed(nn.LSTM(3, 4, 2, dropout=0.5), last, 4).to(D).train()
    with pytest.raises(ntkit.NtkitError, match="it is random"):
        ntkit.EmpiricalNTK(model)((torch.randn(5, 6, 3, dtype=D), LENGTHS))


def test_lengths_that_exceed_what_is_padded_are_the_networks_own_error():
    model = Packed(nn.LSTM(3, 4), last, 4).to(D)
    with pytest.raises(ntkit.NtkitError, match="does not take the inputs"):
        ntkit.EmpiricalNTK(model)((torch.randn(5, 6, 3, dtype=D), LENGTHS + 3))
