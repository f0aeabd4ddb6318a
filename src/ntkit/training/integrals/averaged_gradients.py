"""Gradients of a network averaged along steps of training by a quadrature rule."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp

from ntkit.finite.factors import WeightPart, form, weighted_sum
from ntkit.finite.jacobian.backward import quiet_vmap
from ntkit.finite.jacobian.recipe import Jacobian
from ntkit.inputs import Batch, batch_size, take
from ntkit.training.functional.flat_network import VMAP_LIMIT, FlatNetwork
from ntkit.training.functional.structure import Structure
from ntkit.training.functional.transforms import backward
from ntkit.training.integrals.gauss import QuadratureRule


def averaged_together(
    net: FlatNetwork,
    structure: Structure,
    x: Batch,
    starts: Tensor,
    deltas: Tensor,
    rule: QuadratureRule,
    out: Tensor,
) -> None:
    """Write d f / d w of a batch averaged along steps by one rule into ``out [T, q, o, P]``."""
    q, o, steps, count = batch_size(x), out.shape[2], len(starts), len(rule[0])
    s, shares = (starts.new_tensor(v) for v in rule)
    points = (starts[:, None] + s[:, None] * deltas[:, None]).flatten(0, 1)
    fixed = {name: w for name, w in net.unflatten(starts[0]).items() if name not in net.shapes}
    weights = {
        name: part.unflatten(1, shape) if shape else part[:, 0]
        for (name, shape), part in zip(net.shapes.items(), points.split(net.sizes, dim=1), strict=True)
    }
    eye = torch.eye(o, dtype=starts.dtype, device=starts.device)
    rows = eye[:, None].expand(o, steps * count * q, o)
    jacobian = structure.at_once(weights, fixed, net.buffers).jacobian(x, None, rows)
    places = (torch.arange(size, device=starts.device) for size in (steps, count, q))
    step, node, query = (v.flatten() for v in torch.meshgrid(*places, indexing="ij"))
    write_sums(jacobian, net, shares[node], step * q + query, node, out.flatten(0, 1))


def averaged_jacobians(
    net: FlatNetwork, starts: Tensor, deltas: Tensor, rule: QuadratureRule, x: Batch
) -> Tensor:
    """Return d f / d w of a batch averaged along each of some steps by a rule, ``[T, n, o, P]``."""
    n, steps, count = batch_size(x), len(starts), len(rule[0])
    if steps * count * n * net.total > VMAP_LIMIT:
        ways = _summed, _summed_plainly
        both = zip(starts, deltas, strict=True)
        sums = [net.either(*(partial(way, net, *step, rule, x) for way in ways)) for step in both]
        return torch.stack(sums) if steps > 1 else sums[0][None]
    nodes, shares = (starts.new_tensor(v) for v in rule)

    def one(w: Tensor, x: Batch) -> Tensor:
        return net.jacobian(lambda w: net.sample(net.unflatten(w), x), w)

    points = (starts[:, None] + nodes[:, None] * deltas[:, None]).flatten(0, 1)
    jacobians = net.mapped(lambda w: net.mapped(one, in_dims=(None, 0))(w, x))(points)
    return torch.einsum("s,tsnop->tnop", shares, jacobians.unflatten(0, (steps, count)))


def _summed(net: FlatNetwork, start: Tensor, delta: Tensor, rule: QuadratureRule, x: Batch) -> Tensor:
    """Add up the nodes of one step, parameter by parameter, so that little is held or copied."""
    total: Tensor | None = None
    for node, share in zip(*rule, strict=True):
        weights = net.unflatten(start + node * delta)
        moved = {name: weights.pop(name) for name in net.shapes}

        def one(x: Batch, moved: Any = moved, share: float = share) -> dict[str, Tensor]:
            y, pull = vjp(lambda moved: net.sample({**net.fixed, **moved}, x), moved)[:2]
            return quiet_vmap(pull)(share * torch.eye(len(y), dtype=y.dtype, device=y.device))[0]

        jacobians = quiet_vmap(one)(x)
        if total is None:
            total = torch.cat([jacobians[name].flatten(2) for name in net.shapes], dim=2)
            continue
        for part, name in zip(total.split(net.sizes, dim=2), net.shapes, strict=True):
            part.add_(jacobians.pop(name).flatten(2))
    assert total is not None
    return total


def _summed_plainly(net: FlatNetwork, start: Tensor, delta: Tensor, rule: QuadratureRule, x: Batch) -> Tensor:
    total: Tensor | None = None
    for node, share in zip(*rule, strict=True):
        w = start + node * delta
        for i in range(batch_size(x)):
            row = take(x, i)
            jacobian = backward(lambda w, row=row: net.sample(net.unflatten(w), row), w, None)
            if total is None:
                total = jacobian.new_zeros(batch_size(x), *jacobian.shape)
            total[i].add_(jacobian, alpha=share)
    assert total is not None
    return total


def write_sums(
    jacobian: Jacobian, net: FlatNetwork, shares: Tensor, owner: Tensor, place: Tensor, out: Tensor
) -> None:
    """Write the sums of rows over those of each owner, times shares, into ``out [owners, o, P]``."""
    begin = 0
    for name, size in zip(net.shapes, net.sizes, strict=True):
        parts = [
            WeightPart(elements, [weighted_sum(factor, shares, owner, place, len(out)) for factor in factors])
            for elements, factors in jacobian[name]
        ]
        form(parts, out[:, :, begin : begin + size])
        begin += size
