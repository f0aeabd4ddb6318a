"""Packed sequences written out: each step of each sequence runs, and those past its end are not kept.

So one graph serves all lengths, which stay data of the sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ntkit.errors import NotPerSampleError

State = tuple[Tensor, ...]
Cell = Callable[[Tensor, State, Sequence[Tensor], Sequence[Tensor]], State]
PACK, PAD = torch._VF._pack_padded_sequence, torch._VF._pad_packed_sequence  # pyright: ignore


@dataclass(frozen=True)
class Steps:
    """What stands for the ``batch_sizes`` of a packed sequence: which steps ``[t, b]`` are part of it."""

    batch_sizes: Tensor
    lengths: Tensor
    kept: Tensor

    @classmethod
    def of(cls, sequences: Tensor, lengths: Tensor, batch_sizes: Tensor) -> Steps:
        """Return the steps of padded sequences ``[t, b, ...]``."""
        here = lengths.to(sequences.device)
        places = torch.arange(sequences.shape[0], device=sequences.device)
        return cls(batch_sizes, lengths, places[:, None] < here)

    def unflattened(self, data: Tensor) -> Tensor:
        """Return packed values as ``[t, b, ...]``."""
        return data.reshape(*self.kept.shape, *data.shape[1:])

    def padded(self, data: Tensor, batch_first: bool, value: float, length: int) -> tuple[Tensor, Tensor]:
        """Return packed values as padded sequences, and their lengths."""
        x = self.unflattened(data)
        kept = self.kept.reshape(*self.kept.shape, *[1] * (x.ndim - 2))
        x = torch.where(kept, x, value)
        if length > len(x):
            x = torch.cat([x, x.new_full((length - len(x), *x.shape[1:]), value)])
        return (x.transpose(0, 1) if batch_first else x), self.lengths


def _lstm(x: Tensor, state: State, hidden: Sequence[Tensor], projection: Sequence[Tensor]) -> State:
    i, f, g, o = (x + F.linear(state[0], *hidden)).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (F.linear(h, *projection) if projection else h), c


def _gru(x: Tensor, state: State, hidden: Sequence[Tensor], _: Sequence[Tensor]) -> State:
    r, z, n = x.chunk(3, -1)
    r_of, z_of, n_of = F.linear(state[0], *hidden).chunk(3, -1)
    n = (n + (r + r_of).sigmoid() * n_of).tanh()
    return (n + (z + z_of).sigmoid() * (state[0] - n),)


def _rnn(act: Callable[[Tensor], Tensor]) -> Cell:
    return lambda x, state, hidden, _: (act(x + F.linear(state[0], *hidden)),)


CELLS: dict[Any, Cell] = {
    torch._VF.lstm: _lstm,  # pyright: ignore
    torch._VF.gru: _gru,  # pyright: ignore
    torch._VF.rnn_tanh: _rnn(torch.tanh),  # pyright: ignore
    torch._VF.rnn_relu: _rnn(torch.relu),  # pyright: ignore
}


def recurrent(
    cell: Cell,
    steps: Steps,
    data: Tensor,
    hx: Tensor | State,
    weights: Sequence[Tensor],
    biases: bool,
    layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    *,
    fresh: bool,
) -> tuple[Tensor, ...]:
    """Return the packed outputs of a recurrent network, and its last states ``[layers, b, h]``.

    ``fresh``: it starts from zeros, not from a state that was given.
    """
    if train and dropout > 0 and layers > 1:
        raise NotPerSampleError(
            f"A recurrent layer drops at random (dropout={dropout}): the network is not a function of its "
            f"input. Call model.eval(), or set the probability of dropout to 0."
        )
    first = (hx,) if isinstance(hx, Tensor) else tuple(hx)
    sides = 2 if bidirectional else 1
    size = len(weights) // (layers * sides)
    x, last = steps.unflattened(data), []
    for layer in range(layers):
        outputs = []
        for side in range(sides):
            place = layer * sides + side
            own = list(weights[place * size : (place + 1) * size])
            gates, hidden, rest = (
                (own[0:3:2], own[1:4:2], own[4:]) if biases else (own[:1], own[1:2], own[2:])
            )
            start = tuple(state[place] for state in first)
            h, end = _run(cell, steps, F.linear(x, *gates), start, hidden, rest, side == 1, fresh)
            outputs.append(h)
            last.append(end)
        x = torch.cat(outputs, -1)
    return x.flatten(0, 1), *(torch.stack(parts) for parts in zip(*last, strict=True))


def _run(
    cell: Cell,
    steps: Steps,
    gates: Tensor,
    state: State,
    hidden: Sequence[Tensor],
    projection: Sequence[Tensor],
    backwards: bool,
    fresh: bool,
) -> tuple[Tensor, State]:
    """Return the outputs ``[t, b, h]`` of one direction of a layer, and its last state."""
    outputs = []
    for t in reversed(range(len(gates))) if backwards else range(len(gates)):
        new = cell(gates[t], state, hidden, projection)
        kept = steps.kept[t][:, None]
        if fresh and not outputs:  # zeros as a number, and no vector of them
            new = tuple(a.masked_fill(~kept, 0.0) for a in new) if t else new
        elif t:  # the first step is part of each sequence
            new = tuple(torch.where(kept, a, b) for a, b in zip(new, state, strict=True))
        state = new
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if backwards else outputs), state
