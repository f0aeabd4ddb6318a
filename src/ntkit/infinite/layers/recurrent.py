"""Cells of recurrent networks, written out: the weights of all steps are one matrix."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch

from ntkit.infinite.layers.arithmetic import add, mul, sub
from ntkit.infinite.layers.elementwise import function
from ntkit.infinite.layers.linear import linear
from ntkit.infinite.layers.selections import chunk
from ntkit.infinite.reading.rules import Reading, rule
from ntkit.infinite.reading.values import Operand, Weight, Wide

aten = torch.ops.aten
Gates = tuple[Operand, ...]


def _gates(
    read: Reading, x: Operand, h: Operand, weights: tuple, count: int
) -> Iterable[tuple[Wide | Weight, Wide | Weight]]:
    """Return the parts of W x + b and of U h + c, one for each gate."""
    wx, wh, bx, bh = (*weights, None, None)[:4]
    sums = linear(read, x, wx, bx), linear(read, h, wh, bh)
    return zip(*(chunk(read, value, count, 1) for value in sums), strict=True)


def _sigmoid(read: Reading, a: Operand) -> Wide:
    return function(read, aten.sigmoid.default, (a,), {})


def _tanh(read: Reading, a: Operand) -> Wide:
    return function(read, aten.tanh.default, (a,), {})


def rnn_cell(
    activation: torch._ops.OpOverload, read: Reading, x: Operand, h: Operand, *weights: Weight | None
) -> Wide:
    """Return phi(W x + U h)."""
    ((wx, uh),) = _gates(read, x, h, weights, 1)
    return function(read, activation, (add(read, wx, uh),), {})


rule(aten.rnn_tanh_cell.default)(partial(rnn_cell, aten.tanh.default))
rule(aten.rnn_relu_cell.default)(partial(rnn_cell, aten.relu.default))


@rule(aten.gru_cell.default)
def gru_cell(read: Reading, x: Operand, h: Operand, *weights: Weight | None) -> Wide:
    """Return n + z (h - n) with gates r, z and n = tanh(W x + r U h), as torch has it."""
    (rx, rh), (zx, zh), (nx, nh) = _gates(read, x, h, weights, 3)
    reset, update = _sigmoid(read, add(read, rx, rh)), _sigmoid(read, add(read, zx, zh))
    new = _tanh(read, add(read, nx, mul(read, reset, nh)))
    return add(read, mul(read, sub(read, h, new), update), new)


@rule(aten.lstm_cell.default)
def lstm_cell(read: Reading, x: Operand, state: Gates, *weights: Weight | None) -> Gates:
    """Return c' = f c + i g and h' = o tanh(c')."""
    h, c = state
    i, f, g, o = (add(read, a, b) for a, b in _gates(read, x, h, weights, 4))
    remembered = mul(read, _sigmoid(read, f), c)
    c = add(read, remembered, mul(read, _sigmoid(read, i), _tanh(read, g)))
    return mul(read, _sigmoid(read, o), _tanh(read, c)), c
