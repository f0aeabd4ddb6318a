"""Where in the user's code an operation of a graph was written, and whose fault an error is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import get_proxy_mode
from torch.overrides import TorchFunctionMode

import ntkit.network as network
from ntkit.errors import NtkitError
from ntkit.graph import trace
from ntkit.network import Network

_TORCH = str(Path(torch.__file__).parent)
_NTKIT = str(Path(__file__).parents[2])


class _Lines(TorchFunctionMode):
    """Notes, while a network is traced, the line of the user's code behind each node."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, str] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        mode = get_proxy_mode()
        for node in reversed(mode.tracer.graph.nodes) if mode is not None else ():
            if node.name in self.lines:
                break
            self.lines[node.name] = _outside(sys._getframe(1))
        return result


def source_of(net: Network, example: Any, node: fx.Node) -> str:
    """Return file and line of the code that made a node, "" where it is torch's own (a built-in module).

    The network is traced once more, and the first frame outside torch is noted for each node:
    this costs nothing until something is refused.
    """
    with _Lines() as mode:
        try:
            trace(net, example)
        except (RuntimeError, NtkitError):  # a network that cannot be traced twice: what there is will do
            pass
    return mode.lines.get(node.name, "")


def _outside(frame: FrameType | None) -> str:
    """Return the innermost frame outside torch and ntkit, inside the call of the network."""
    while frame is not None and frame.f_code.co_filename != network.__file__:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _NTKIT, "<")):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
