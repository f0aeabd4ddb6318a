"""Limits of recurrent layers on packed sequences: those of the plain layer on sequences as long as each."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import ntkit

D = torch.float64


class Last(nn.Module):
    """A read-out of the last state, of sequences that may be padded."""

    def __init__(self, kind, both=False):
        super().__init__()
        self.rnn, self.o = kind(3, 16, batch_first=True, bidirectional=both), nn.Linear(16, 1)
        self.double()

    def forward(self, x, lengths=None):
        if lengths is not None:
            x = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        h = self.rnn(x)[1]
        return self.o((h[0] if isinstance(h, tuple) else h)[-1])  # that of the way back, where there are both


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "kind", [nn.RNN, pytest.param(nn.GRU, marks=SLOW), pytest.param(nn.LSTM, marks=SLOW)]
)
def test_limits_of_packed_sequences(kind):
    torch.manual_seed(0)
    model, x, lengths = Last(kind), torch.randn(3, 2, 3, dtype=D), torch.tensor([2, 1, 1])
    how = {"sigma_b": 0.3, "samples": 2**11, "compile": False}
    packed = ntkit.infinite_width(model, (x, lengths), **how)
    for length in (1, 2):
        rows = lengths == length
        plain = ntkit.infinite_width(model, x[rows, :length], **how)
        for a, b in ((packed.nngp, plain.nngp), (packed.ntk, plain.ntk)):
            truth = b(x[rows, :length])
            found = a((x, lengths))[rows][:, rows]
            assert (found - truth).abs().max() <= (2e-2 if kind is nn.GRU else 1e-9) * truth.abs().max()
    changed = x.clone()
    changed[1:, 1:] = 7.0
    assert torch.equal(packed.ntk((changed, lengths)), packed.ntk((x, lengths)))


def test_limits_of_packed_sequences_that_are_read_backwards():
    torch.manual_seed(0)
    model, x, lengths = Last(nn.RNN, True), torch.randn(2, 2, 3, dtype=D), torch.tensor([2, 1])
    packed = ntkit.infinite_width(model, (x, lengths), sigma_b=0.3).ntk.diag((x, lengths))
    short = ntkit.infinite_width(model, x[:, :1], sigma_b=0.3).ntk.diag(x[1:, :1])
    full = ntkit.infinite_width(model, x, sigma_b=0.3).ntk.diag(x[:1])
    torch.testing.assert_close(packed, torch.cat([full, short]), rtol=1e-9, atol=0)
