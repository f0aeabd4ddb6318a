"""What decides on which side of a kink an operation is: numbers whose signs change there."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from ntkit.graph import Arguments, arguments

aten = torch.ops.aten


def switching(node: fx.Node, args: tuple, kwargs: dict) -> list[Tensor]:
    """Return the numbers at whose changes of sign an operation has a kink, none for a smooth one.

    A kinked operation that is not known here is found by halving: slower, never wrong.
    """
    signs = _TABLE.get(getattr(node.target, "overloadpacket", None))
    if signs is None:
        return []
    return [v.clone() for v in signs(arguments(node, args, kwargs))]


def _own(bound: Arguments) -> list[Tensor]:
    return [next(v for v in bound.values() if isinstance(v, Tensor))]


def _limits(*names: str) -> Callable[[Arguments], list[Tensor]]:
    def differences(bound: Arguments) -> list[Tensor]:
        x = _own(bound)[0]
        return [x - bound[name] for name in names if bound.get(name) is not None]

    return differences


def _fixed(*limits: float) -> Callable[[Arguments], list[Tensor]]:
    return lambda bound: [_own(bound)[0] - limit for limit in limits]


def _both_sides(bound: Arguments) -> list[Tensor]:
    x = _own(bound)[0]
    return [x - bound["lambd"], x + bound["lambd"]]


def _windows(bound: Arguments) -> list[Tensor]:
    """Return the differences of the largest value of each window to all others of it."""
    x = bound["self"]
    pair = [_pair(bound[name] or bound["kernel_size"]) for name in ("kernel_size", "stride")]
    padding, dilation = _pair(bound["padding"]), _pair(bound["dilation"])
    if bound["ceil_mode"]:
        return []
    height, width = pair[0]
    x = x.reshape(-1, 1, *x.shape[-2:])
    x = functional.pad(
        x, (padding[1], padding[1], padding[0], padding[0]), value=torch.finfo(x.dtype).min / 4
    )
    windows = functional.unfold(x, pair[0], dilation, 0, pair[1])  # [channels, window, places]
    best = windows.argmax(1)
    numbers = []
    for i, j in combinations(range(height * width), 2):
        concerned = (best == i) | (best == j)
        numbers.append(torch.where(concerned, windows[:, i] - windows[:, j], torch.nan))
    return numbers


def _pair(value: Any) -> tuple[int, int]:
    value = [value] if isinstance(value, int) else list(value)
    return (value[0], value[-1])


_TABLE: dict[Any, Callable[[Arguments], list[Tensor]]] = {
    **dict.fromkeys((aten.relu, aten.relu_, aten.leaky_relu, aten.leaky_relu_, aten.prelu, aten.abs), _own),
    **dict.fromkeys((aten.abs_, aten.elu, aten.elu_, aten.selu, aten.selu_, aten.celu, aten.celu_), _own),
    **dict.fromkeys((aten.hardtanh, aten.hardtanh_), _limits("min_val", "max_val")),
    **dict.fromkeys((aten.clamp, aten.clamp_), _limits("min", "max")),
    **dict.fromkeys((aten.clamp_min, aten.clamp_min_), _limits("min")),
    **dict.fromkeys((aten.clamp_max, aten.clamp_max_), _limits("max")),
    **dict.fromkeys((aten.threshold, aten.threshold_), _limits("threshold")),
    **dict.fromkeys((aten.relu6, aten.relu6_), _fixed(0.0, 6.0)),
    **dict.fromkeys(
        (aten.hardswish, aten.hardswish_, aten.hardsigmoid, aten.hardsigmoid_), _fixed(-3.0, 3.0)
    ),
    **dict.fromkeys((aten.softshrink, aten.hardshrink), _both_sides),
    **dict.fromkeys((aten.gt, aten.ge, aten.lt, aten.le, aten.maximum, aten.minimum), _limits("other")),
    aten.max_pool2d: _windows,
}
