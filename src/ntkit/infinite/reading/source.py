"""Where in the user's code an operation of a graph was written, for errors."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import PythonKeyTracer

from ntkit import network
from ntkit.graph import Network, trace

_TORCH = str(Path(torch.__file__).parent)
_NTKIT = str(Path(__file__).parents[2])


def source_of(net: Network, example: Any, node: fx.Node) -> str:
    """Return file and line of the code that made a node, "" where it is torch's own (a built-in module).

    The network is traced once more, and the first frame outside torch is written down for each node:
    this costs nothing until something is refused, and it never fails.
    """
    found: dict[str, str] = {}
    create = PythonKeyTracer.create_node

    def create_node(self: Any, *args: Any, **kwargs: Any) -> fx.Node:
        made = create(self, *args, **kwargs)
        found[made.name] = _outside(sys._getframe(1))
        return made

    try:
        PythonKeyTracer.create_node = create_node
        trace(net, example)
    except Exception:
        pass
    finally:
        PythonKeyTracer.create_node = create
    return found.get(node.name, "")


def _outside(frame: FrameType | None) -> str:
    """Return the innermost frame outside torch and ntkit, inside the call of the network."""
    while frame is not None and frame.f_code.co_filename != network.__file__:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, _NTKIT, "<")):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back
    return ""
