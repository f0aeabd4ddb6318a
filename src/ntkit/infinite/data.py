"""Inputs of the limit: batches, from which no gradient is asked."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.errors import BadValueError
from ntkit.inputs import Batch, Inputs, Picked
from ntkit.network import Network, as_inputs


def as_data(x: Inputs, net: Network, name: str = "x", picked: Picked = None) -> Batch:
    """Return a batch; refuse inputs that require a gradient, which kernels of the limit do not carry."""
    leaves = pytree.tree_leaves(x)
    if torch.is_grad_enabled() and any(isinstance(t, Tensor) and t.requires_grad for t in leaves):
        raise BadValueError(
            f"{name} requires a gradient, and kernels of infinite width are not differentiable by their "
            f"inputs here. Give {name}.detach(), or call them under torch.no_grad(); differentiate "
            f"ntkit.dual (by covariance and variances), or EmpiricalNTK of a wide network."
        )
    return as_inputs(x, net, name, picked)
