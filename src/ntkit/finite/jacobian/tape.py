"""The passes through a short network written out for one shape: plain operations, no autograd, no vmap.

A pass through vmap and autograd costs some twenty microseconds an operation, and adds a zero to what
each tapped operation gave. For a network of few operations this is a good part of the kernel's time, so
its passes are replayed for a shape that comes again and again. Writing them out costs some forty passes.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from ntkit.compute.gemm import product_transposed
from ntkit.faults import foreign

aten = torch.ops.aten
_TENSOR = object()
OFTEN = 20  # calls of a shape before its passes are written out
_VIEWS = (aten.expand.default, aten.view.default, aten.detach.default, aten.unsqueeze.default)


@dataclass(frozen=True)
class Tape:
    """A function of tensors, written out; run it on tensors of the shapes that it was written for."""

    module: fx.GraphModule
    constants: list[Any]  # leaves of the result that are not tensors; `_TENSOR` in a tensor's place
    structure: Any

    @classmethod
    def write(cls, function: Callable[..., Any], *args: object) -> Tape:
        """Write out what a function of pytrees of tensors does; an error of torch comes through."""
        found: list[Any] = []

        def tensors(*args: object) -> list[Tensor]:
            leaves, structure = pytree.tree_flatten(function(*args))
            found[:] = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure
            return [leaf for leaf in leaves if isinstance(leaf, Tensor)]

        module = make_fx(tensors)(*args)
        _simplify(module.graph)
        module.recompile()
        return cls(module, *found)

    def run(self, *args: object) -> Any:
        """Return what the function gives."""
        with torch.no_grad():
            values = iter(self.module(*args))
        leaves = [next(values) if c is _TENSOR else c for c in self.constants]
        return pytree.tree_unflatten(leaves, self.structure)


class Tapes:
    """The tapes of a function for the shapes it was last called with."""

    def __init__(self, most: int = 16) -> None:
        self._most = most
        self._known: dict[Hashable, Callable[..., Any] | int] = {}  # a number: calls so far
        self.off = False  # while a network is proved, for shapes that may not come again

    def __reduce__(self) -> tuple:
        return Tapes, (self._most,)  # copies write their own

    def run(self, key: Hashable, function: Callable[..., Any], *args: object) -> Any:
        """Call a function, at first as it is; after `OFTEN` calls with a key, replay what it did.

        A function that cannot be written out, or whose tape gives another result, is called as it is.
        """
        if self.off:
            return function(*args)
        known = self._known.get(key, 0)
        if isinstance(known, int):
            if known < OFTEN:
                self._known[key] = known + 1
                if len(self._known) > self._most:
                    del self._known[next(iter(self._known))]
                return function(*args)
            tape = _written(function, args)
            known = self._known[key] = function if tape is None else tape.run
        return known(*args)


def _written(function: Callable[..., Any], args: tuple) -> Tape | None:
    """Return the tape of a function if it can be written and gives the same result."""
    try:
        tape = Tape.write(function, *args)
        pairs = zip(*(pytree.tree_leaves(f(*args)) for f in (function, tape.run)), strict=True)
    except Exception as error:  # whatever an operation may raise when it is traced: autograd is always right
        foreign(error, "writing out the passes of a network")
        return None
    return tape if all(_agree(a, b) for a, b in pairs) else None


def _agree(a: object, b: Any) -> bool:
    """Return whether two results are the same; a kink that rounding crosses may change single entries."""
    if not isinstance(a, Tensor) or not a.is_floating_point():
        return True
    return bool((a - b).norm() <= torch.finfo(a.dtype).eps ** 0.25 * a.norm())


def _simplify(graph: fx.Graph) -> None:
    """Leave out sums with zeros, products with one and detached copies; take products by `ntkit.compute`."""
    zeros: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        first = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if (
            node.target is aten.new_zeros.default and _shape(node) == ()
        ):  # never written to, unlike larger ones
            zeros.add(node)
        elif node.target in _VIEWS and first in zeros:
            zeros.add(node)
        elif node.target is aten.add.Tensor and node.args[1] in zeros and _alike(node, first):
            node.replace_all_uses_with(first)  # what it is multiplied by (alpha) does not matter
        elif node.target is aten.mul.Scalar and node.args[1] == 1 and _alike(node, first):
            node.replace_all_uses_with(first)
        elif node.target is aten.detach.default and first is not None:
            node.replace_all_uses_with(first)
        elif node.target is aten.mm.default:
            node.target = _mm
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.target is aten.add.Tensor and len(node.all_input_nodes) == 2 and not node.kwargs:
            bias, moved = node.args
            product = _product_behind(moved)
            if product is None or len(product.args) > 2 or not bias < product:
                continue
            if _shape(bias) == _shape(product)[1:] and _alike(node, moved):
                product.args = (*product.args, bias)
                _replace(node, moved)
        elif node.target is aten.relu.default and (product := _product_behind(node.args[0])) is not None:
            product.kwargs = {"relu": True}
            _replace(node, node.args[0])
        elif node.target is aten.threshold_backward.default and _alike(node, node.args[0]):
            if _product_behind(node.args[0]) is not None:
                node.target = _masked
    graph.eliminate_dead_code()
    graph.lint()


def _replace(node: fx.Node, other: fx.Node) -> None:
    node.replace_all_uses_with(other)
    node.graph.erase_node(node)


def _product_behind(node: fx.Node) -> fx.Node | None:
    """Return the product that a node is a view of, if nothing else uses either."""
    while node.target in (aten._unsafe_view.default, aten.view.default) and len(node.users) == 1:
        node = node.args[0]  # pyright: ignore[reportAssignmentType]
    return node if node.target is _mm and len(node.users) == 1 and not node.kwargs else None


def _masked(g: Tensor, value: Tensor, threshold: float) -> Tensor:
    """Set g to zero where a value is at most the threshold, in place."""
    return aten.threshold_backward.grad_input(g, value, threshold, grad_input=g)


def _mm(a: Tensor, b: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    return product_transposed(a, b.T, bias, relu)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _alike(node: fx.Node, other: object) -> bool:
    """Return whether two nodes give tensors of one shape and dtype."""
    a, b = (n.meta.get("tensor_meta") if isinstance(n, fx.Node) else None for n in (node, other))
    return a is not None and b is not None and (a.shape, a.dtype) == (b.shape, b.dtype)
