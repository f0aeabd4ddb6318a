"""Cells of recurrent networks, written out: the weights of all steps are one matrix."""

from __future__ import annotations

from typing import Any

import torch

from ntkit.infinite.layers.elementwise import add, function, mul, sub
from ntkit.infinite.layers.linear import linear
from ntkit.infinite.layers.selections import chunk
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Wide

aten = torch.ops.aten


def _parts(read: Reading, x: Any, weight: Any, bias: Any, count: int) -> tuple:
    value = linear(read, x, weight, bias)
    return chunk(read, value, count, 1) if count > 1 else (value,)


def _sigmoid(read: Reading, a: Wide) -> Wide:
    return function(read, aten.sigmoid.default, (a,), {})


def _tanh(read: Reading, a: Wide) -> Wide:
    return function(read, aten.tanh.default, (a,), {})


@rule(aten.rnn_tanh_cell.default)
def rnn_tanh_cell(read: Reading, x: Any, h: Any, wx: Any, wh: Any, bx: Any = None, bh: Any = None) -> Wide:
    """Return tanh(W x + U h)."""
    return _tanh(read, add(read, linear(read, x, wx, bx), linear(read, h, wh, bh)))


@rule(aten.rnn_relu_cell.default)
def rnn_relu_cell(read: Reading, x: Any, h: Any, wx: Any, wh: Any, bx: Any = None, bh: Any = None) -> Wide:
    """Return relu(W x + U h)."""
    total = add(read, linear(read, x, wx, bx), linear(read, h, wh, bh))
    return function(read, aten.relu.default, (total,), {})


@rule(aten.gru_cell.default)
def gru_cell(read: Reading, x: Any, h: Any, wx: Any, wh: Any, bx: Any = None, bh: Any = None) -> Wide:
    """Return n + z (h - n) with gates r, z and n = tanh(W x + r U h), as torch has it."""
    rx, zx, nx = _parts(read, x, wx, bx, 3)
    rh, zh, nh = _parts(read, h, wh, bh, 3)
    reset, update = _sigmoid(read, add(read, rx, rh)), _sigmoid(read, add(read, zx, zh))
    new = _tanh(read, add(read, nx, mul(read, reset, nh)))
    return add(read, mul(read, sub(read, h, new), update), new)


@rule(aten.lstm_cell.default)
def lstm_cell(read: Reading, x: Any, state: Any, wx: Any, wh: Any, bx: Any = None, bh: Any = None) -> tuple:
    """Return c' = f c + i g and h' = o tanh(c')."""
    h, c = state
    gates = zip(_parts(read, x, wx, bx, 4), _parts(read, h, wh, bh, 4), strict=True)
    i, f, g, o = (add(read, a, b) for a, b in gates)
    kept = mul(read, _sigmoid(read, f), c)
    c = add(read, kept, mul(read, _sigmoid(read, i), _tanh(read, g)))
    return mul(read, _sigmoid(read, o), _tanh(read, c)), c
