"""A trace below autograd, of a network that takes derivatives of itself, made into a graph like any other."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch._decomp import get_decompositions

aten = torch.ops.aten

# What the derivatives of layers are made of.
BELOW_AUTOGRAD: dict[Any, Any] = get_decompositions(
    [
        *(aten.native_layer_norm, aten.native_layer_norm_backward),
        *(aten.native_group_norm, aten.native_group_norm_backward),
        *(aten.silu_backward, aten.mish_backward),
    ]
)
_FORWARD = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_TRANSPOSED = (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input)


def connect(graph: fx.Graph, cut: set[str]) -> None:
    """Let gradients through where autograd kept a value for a derivative, not where the network cut them."""
    for node in list(graph.nodes):
        if node.target is aten.convolution.default:
            _name_convolution(node)
        elif node.target is aten.convolution_backward.default:
            _name_gradient(node)
        if node.target is aten.detach.default and node.name not in cut:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif node.name in cut and node.target is not aten.detach.default:
            with graph.inserting_after(node):
                still = graph.call_function(aten.detach.default, (node,))
            still.meta = dict(node.meta)
            node.replace_all_uses_with(still, delete_user_cb=lambda user, still=still: user is not still)


def _name_convolution(node: fx.Node) -> None:
    """Let a convolution be the operation of its number of axes, which has a rule."""
    x, weight, bias, stride, padding, dilation, transposed, more, groups = node.args
    axes = len(stride) - 1  # pyright: ignore
    if axes > 2:
        return
    if transposed:
        node.target, node.args = _TRANSPOSED[axes], (x, weight, bias, stride, padding, more, groups, dilation)
    else:
        node.target, node.args = _FORWARD[axes], (x, weight, bias, stride, padding, dilation, groups)


def _name_gradient(node: fx.Node) -> None:
    """Let the gradient of a convolution in its input be the transposed convolution, or the reverse."""
    g, x, weight, _, stride, padding, dilation, transposed, _, groups, _ = node.args
    axes = len(stride) - 1  # pyright: ignore
    users = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    for user in users if axes < 3 else ():
        if transposed:
            user.target, user.args = _FORWARD[axes], (g, weight, None, stride, padding, dilation, groups)
            continue
        sizes = zip(_shape(x), _shape(g), _shape(weight), stride, padding, dilation, strict=True)  # pyright: ignore
        more = [n - ((m - 1) * s - 2 * p + d * (k - 1) + 1) for n, m, k, s, p, d in sizes]
        user.target = _TRANSPOSED[axes]
        user.args = (g, weight, None, stride, padding, more, groups, dilation)


def _shape(node: Any) -> tuple[int, ...]:
    """Return the sizes of the axes in space."""
    return tuple(node.meta["tensor_meta"].shape[2:])
