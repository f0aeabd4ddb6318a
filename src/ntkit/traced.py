"""What a trace does not record by itself: values that go to Python, and what a network differentiates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, get_proxy_slot
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ntkit.packed import CELLS, PACK, PAD, Steps, recurrent

# The ways of tensors' values to Python.
_READING = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__bool__, Tensor.__int__),
    *(Tensor.__float__, Tensor.__index__, Tensor.__complex__, Tensor.__contains__, Tensor.is_nonzero),
    *(torch.is_nonzero, Tensor.equal, torch.equal, Tensor.allclose, torch.allclose),
}
_CUTTING = {Tensor.detach, torch.detach, Tensor.detach_, torch.detach_, Tensor.data.__get__}  # pyright: ignore
_DIFFERENTIATING = {torch.autograd.grad, torch._VF._make_dual}  # pyright: ignore


class _Numbers(list[Any]):
    """The values of a tensor as a list, which can become the tensor again."""

    def __init__(self, values: list[Any], tensor: Tensor) -> None:
        super().__init__(values)
        self.tensor = tensor


class Seen(TorchFunctionMode):
    """Gives the values of tensors to Python while tracing, and notes of which nodes they are.

    What Python does with them is not seen: it is a constant of the graph. So are the values that autograd
    keeps for a derivative that the network takes of itself, unless the trace is one below autograd.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[tuple[str, str]] = []  # function, node
        self.cut: set[str] = set()  # nodes through which no gradient goes
        self.differentiates = False
        self._packed: dict[int, Steps] = {}  # by what stands for their batch sizes

    def __torch_function__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        """Read values outside the trace; note derivatives, and what is cut off from them."""
        kwargs = kwargs or {}
        if func in _READING:
            self.read += [(func.__name__, node) for node in _nodes((args, kwargs))]
            with disable_proxy_modes_tracing():
                value = func(*args, **kwargs)
            return _Numbers(value, args[0]) if func is Tensor.tolist and isinstance(value, list) else value
        if func is torch.as_tensor and args and isinstance(args[0], _Numbers):
            return func(args[0].tensor, *args[1:], **kwargs)
        steps = next((self._packed[id(a)] for a in args[:2] if id(a) in self._packed), None)
        if func is PACK or steps is not None:
            return self._of_packed(func, steps, *args, **kwargs)
        result = func(*args, **kwargs)
        self.differentiates |= func in _DIFFERENTIATING
        if func is torch.autograd.grad:
            if not kwargs.get("create_graph", len(args) > 4 and args[4]):
                result = pytree.tree_map_only(Tensor, torch.detach, result)
                self.cut.update(_nodes(result))
        elif func in _CUTTING:
            self.cut.update(_nodes(result))
        elif not torch.is_grad_enabled():
            self.cut.update({*_nodes(result)}.difference(_nodes((args, kwargs))))
        return result

    def _of_packed(self, func: Any, steps: Steps | None, *args: Any, **kwargs: object) -> object:
        """Return what a function of packed sequences gives, one that packs, pads or runs through them."""
        if steps is None:
            x, lengths, batch_first = args
            x = x.transpose(0, 1) if batch_first else x
            with disable_proxy_modes_tracing():
                sizes = torch.full(x.shape[:1], x.shape[1])
            self._packed[id(sizes)] = Steps.of(x, lengths, sizes)
            return x.flatten(0, 1), sizes
        if func is PAD:
            return steps.padded(args[0], *args[2:])
        if func in CELLS:
            fresh = all(node.target is torch.ops.aten.zeros.default for node in _slots(args[2]))
            return recurrent(CELLS[func], steps, args[0], *args[2:], fresh=fresh)
        with disable_proxy_modes_tracing():
            result = func(*args, **kwargs)
        return int(result) if func is Tensor.__getitem__ and result.ndim == 0 else result


def _nodes(values: object) -> list[str]:
    """Return the names of the nodes that tensors are of, in the trace that runs."""
    return [node.name for node in _slots(values)]


def _slots(values: object) -> list[fx.Node]:
    mode = get_proxy_mode()
    if mode is None:
        return []
    tensors = [t for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]
    slots = [get_proxy_slot(t, mode.tracer, None) for t in tensors]
    return [slot.proxy.node for slot in slots if slot is not None]
