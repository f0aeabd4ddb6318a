"""What a weight does in a network, read from its uses in the graph: a matrix, a table, a bias, or none."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
from torch import fx

from ntkit.graph import Graph, moving_nodes

aten = torch.ops.aten
Kind = Literal["matrix", "table", "bias", "other"]


@dataclass(frozen=True)
class Use:
    """One use of a weight: by the module at ``path``, summing over ``fan_in`` entries for each output."""

    name: str
    path: str
    kind: Kind
    fan_in: int = 1
    padding: int | None = None


# Operations whose result holds the entries of their first argument, and nothing else.
_VIEWS = {
    *(aten.t, aten.transpose, aten.permute, aten.view, aten.reshape, aten.unsqueeze, aten.squeeze),
    *(aten.slice, aten.select, aten.split, aten.split_with_sizes, aten.chunk, aten.unbind, aten.expand),
    *(aten.narrow, aten.contiguous, aten.clone, aten.alias, aten.detach, aten.flatten, aten.unflatten),
    *(
        aten.to,
        aten._to_copy,
        aten.type_as,
        aten.movedim,
        aten.swapaxes,
        aten.numpy_T,
        aten.mT,
        aten._unsafe_view,
    ),
}
_MULTIPLES = {aten.mul, aten.div}
_PRODUCTS = {aten.mm, aten.matmul, aten.bmm}
_SUMS = {aten.addmm, aten.baddbmm}
_CONVOLUTIONS = {aten.conv1d, aten.conv2d, aten.conv3d}
_TRANSPOSED = {aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d}
# Operations that mix positions by numbers, in which a product with a weight stays one.
_MIXING = {*_PRODUCTS, aten.index_add, aten.scatter_add, aten.sum, aten.mean, aten.index_select, aten.index}


def uses(graph: Graph) -> list[Use]:
    """Return all uses of the weights of a network."""
    return _Roles(graph).uses


def biases(graph: Graph) -> dict[str, int]:
    """Return the parameters that are only ever added to products with a weight, with the fan_in of those."""
    found = uses(graph)
    others = {use.name for use in found if use.kind != "bias"}
    return {use.name: use.fan_in for use in found if use.name not in others}


class _Roles:
    """The nodes that are views of a weight, those that are products with one, and the uses found so far."""

    def __init__(self, graph: Graph) -> None:
        self.paths = graph.paths
        weights = {node: name for node, name in graph.weights.items() if node.users}
        self.moving = moving_nodes(graph.module.graph.nodes, [*graph.inputs, *weights])
        self.views = dict(weights)
        self.products: dict[fx.Node, int] = {}  # with their fan_in
        self.uses: list[Use] = []
        for node in graph.nodes:
            self._read(node)

    def _read(self, node: fx.Node) -> None:
        op = getattr(node.target, "overloadpacket", node.target)
        args = list(node.args[1]) if op is aten.einsum else list(node.args)  # pyright: ignore
        mine = [i for i, a in enumerate(args) if isinstance(a, fx.Node) and a in self.views]
        if not mine:
            if op in _VIEWS or op in _MIXING or getattr(op, "__name__", "") == "getitem":
                moving = [a for a in node.all_input_nodes if a.name in self.moving]
                made = [self.products[a] for a in moving if a in self.products]
                if made and (op not in _PRODUCTS or self._numbers(node)):
                    self.products[node] = made[0]
            return
        if mine == [0] and (op in _VIEWS or getattr(op, "__name__", "") == "getitem"):
            self.views[node] = self.views[args[0]]  # pyright: ignore
        elif op in _MULTIPLES and mine == [0] and not self._moves(args[1:]):
            self.views[node] = self.views[args[0]]  # pyright: ignore
        elif op is aten.mul and mine == [1] and not self._moves(args[:1]):
            self.views[node] = self.views[args[1]]  # pyright: ignore
        else:
            for i in mine:
                self._use(node, op, args, i, [j for j in mine if j != i])

    def _numbers(self, node: fx.Node) -> bool:
        """Return whether a product is one of a value with numbers of the sample, made without weights."""
        return sum(self._weighs(a) for a in node.all_input_nodes) == 1

    def _weighs(self, node: fx.Node) -> bool:
        return node in self.products or node in self.views

    def _moves(self, args: list) -> bool:
        return any(isinstance(a, fx.Node) and a.name in self.moving for a in args)

    def _use(self, node: fx.Node, op: object, args: list, i: int, others: list[int]) -> None:
        weight = args[i]
        shape = _shape(weight)
        kind, fan_in, padding = "other", 1, None
        if op is aten.linear and i == 1 and 0 not in others:
            kind, fan_in = "matrix", shape[-1]
        elif op in (aten.linear, *_CONVOLUTIONS, *_TRANSPOSED, aten.convolution) and i == 2:
            kind = "bias"
        elif op in _SUMS and i == 0:
            kind = "bias" if prod(shape) == max(shape, default=0) else "other"
        elif op in _PRODUCTS | _SUMS and len(others) - (0 in others and op in _SUMS) == 0:
            right = i == len(args[: 3 if op in _SUMS else 2]) - 1
            kind, fan_in = "matrix", shape[-2:][0] if right else shape[-1:][0]
        elif op is aten.einsum and not others:
            fan_in = _contracted(str(node.args[0]), i, shape)
            kind = "matrix" if fan_in else "other"
        elif op in _CONVOLUTIONS and i == 1:
            kind, fan_in = "matrix", prod(shape[1:])
        elif i == 1 and (op in _TRANSPOSED or op is aten.convolution):
            transposed = op in _TRANSPOSED or bool(args[6])
            groups = args[8] if op is aten.convolution else args[6] if len(args) > 6 else 1
            kind, fan_in = "matrix", shape[0] // groups * prod(shape[2:]) if transposed else prod(shape[1:])
        elif op is aten.embedding and i == 0:
            kind, padding = "table", args[2] if len(args) > 2 and args[2] >= 0 else None
        elif op in (aten.add, aten.sub) and len(args) > 1 and self._biases(args[1 - i], shape):
            kind, fan_in = "bias", self.products[args[1 - i]]  # pyright: ignore
        if kind == "matrix" or (kind == "bias" and op in (aten.add, aten.sub)):
            self.products[node] = fan_in
        path = self.paths.get(node.name) or ""
        self.uses.append(Use(self.views[weight], path, kind, max(fan_in, 1), padding))

    def _biases(self, other: object, shape: tuple[int, ...]) -> bool:
        """Return whether one number for each channel is added to a product with a weight."""
        return other in self.products and prod(shape) == max(shape, default=0) and prod(shape) > 1


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


def _contracted(equation: str, i: int, shape: tuple[int, ...]) -> int:
    """Return over how many entries of an operand an einsum sums; zero if over none."""
    terms, _, out = equation.replace(" ", "").partition("->")
    mine = terms.split(",")[i]
    if "." in mine:
        return 0
    sizes = [size for letter, size in zip(mine, shape, strict=True) if letter not in out]
    return prod(sizes) if sizes else 0
