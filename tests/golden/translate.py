"""Cases of `open.json` as ordinary modules of torch, with their inputs and expected kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

HERE = Path(__file__).parent
CASES: dict[str, dict] = {case["name"]: case for case in json.loads((HERE / "open.json").read_text())}
VALUES = ("x1", "x2", "nngp", "ntk", "nngp_sym", "ntk_sym")


class Elementwise(nn.Module):
    """A function of torch as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Gaussian(nn.Module):
    """exp(-x^2)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(-(x**2))


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channel axis of pictures and signals, without affine parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class Sum(nn.Module):
    """The sum of two branches."""

    def __init__(self, main: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x) + self.shortcut(x)


def build(case: dict, width: int | None = None) -> tuple[nn.Module, float, float]:
    """Return a case's network in float64, its sigma_w and its sigma_b.

    ``width`` takes the place of the case's widths, but for that of the last layer.
    """
    layers, last = case["layers"], case["layers"][-1]
    x = torch.zeros(1, *case["input_shape"], dtype=torch.float64)
    return _chain(layers, x, width, last), case["sigma_w"], case["sigma_b"]


def values(case: dict) -> dict[str, Tensor]:
    """Return a case's inputs and kernels."""
    with np.load(HERE / "open.npz") as stored:
        return {key: torch.tensor(stored[f"{case['name']}/{key}"]) for key in VALUES}


def _chain(layers: list, x: Tensor, width: int | None, last: list) -> nn.Sequential:
    """Return layers one after the other; ``x`` is carried along for its shape."""
    modules = []
    for layer in layers:
        modules.append(_layer(layer, x, width, last).double())
        with torch.no_grad():
            x = modules[-1](x)
    return nn.Sequential(*modules)


def _layer(layer: list, x: Tensor, width: int | None, last: list) -> nn.Module:
    kind, *options = layer
    axes = x.ndim - 2
    if kind in ("linear", "conv") and layer is not last and width is not None:
        options[0] = width
    if kind == "linear":
        return nn.Linear(x.shape[1], options[0])
    if kind == "conv":
        return _conv(x, *options)
    if kind == "act":
        return _activation(options[0])
    if kind == "flatten":
        return nn.Flatten()
    if kind == "gap":
        pool = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}[axes]
        return nn.Sequential(pool(1), nn.Flatten())
    if kind == "avgpool":
        return {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}[axes](options[0])
    if kind == "layernorm":
        norm = ChannelNorm if axes else nn.LayerNorm
        return norm(x.shape[1], eps=1e-12, elementwise_affine=False)
    if kind == "res":
        return Sum(*(_chain(branch, x, width, last) for branch in options))
    raise ValueError(f"unknown layer {layer}")


def _activation(name: str) -> nn.Module:
    if name.startswith("leaky_relu_"):
        return nn.LeakyReLU(float(name.removeprefix("leaky_relu_")))
    modules = {"relu": nn.ReLU, "gelu": nn.GELU, "gaussian": Gaussian}
    return modules[name]() if name in modules else Elementwise(getattr(torch, name))


def _conv(x: Tensor, out: int, kernel: int, stride: int, padding: str) -> nn.Module:
    axes = x.ndim - 2
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[axes]
    if padding == "valid":
        return conv(x.shape[1], out, kernel, stride)
    if stride == 1 and kernel % 2:
        mode = "zeros" if padding == "same" else padding
        return conv(x.shape[1], out, kernel, padding=kernel // 2, padding_mode=mode)
    zeros = {1: nn.ConstantPad1d, 2: nn.ConstantPad2d, 3: nn.ConstantPad3d}[axes]
    around = {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d}[axes]
    sides: list[int] = []
    for n in reversed(x.shape[2:]):  # as jax does: ceil(n / stride) positions, the odd one on the right
        total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
        sides += [total // 2, total - total // 2]
    pad = zeros(tuple(sides), 0.0) if padding == "same" else around(tuple(sides))
    return nn.Sequential(pad, conv(x.shape[1], out, kernel, stride))
