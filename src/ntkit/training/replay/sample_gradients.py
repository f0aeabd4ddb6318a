"""What each sample of a batch put into the gradient of its step, multiplied by the rows of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.finite.factors import Factor, OneHot
from ntkit.finite.jacobian.recipe import Jacobian
from ntkit.inputs import take
from ntkit.training.folder.step import Step
from ntkit.training.functional.flat_network import cast
from ntkit.training.functional.transforms import pulled
from ntkit.training.replay.forward_mode import ForwardMode
from ntkit.training.replay.steps import Replay, ReplayedBatch

_MIXED = 0.5  # rows for each sample of a batch, up to which a forward pass for each costs less than a
_APART = 3  # backward pass for each sample; rows, where such a backward pass is one of the sample alone

RowProduct = Callable[[Tensor], Tensor]  # rows [r, P] -> rows times gradients of samples, [r, n]


class Samples:
    """Products of rows ``A [r, P]`` with the gradients J(x_n; w_k)^T c_n of the samples of a step.

    Where the network has a structure, they are g_n^T A_W h_n for each weight, and no gradient is made. Where
    it mixes samples or draws at random, J_n is row n of the Jacobian of the whole batch, as it was.
    """

    def __init__(self, replay: Replay, budget: int) -> None:
        self._replay, self._budget = replay, budget
        self._forward_mode = ForwardMode(replay, budget)
        self.way = "structure"  # where the last products came from

    def products(self, w: Tensor, k: int, step: Step, mixes: bool) -> Iterator[tuple[Tensor, RowProduct]]:
        """Yield the samples of a step, some at a time, with what multiplies rows by their gradients."""
        w = w.to(self._replay.dtype)
        for part in self._replay.parts(step):
            if mixes:
                yield from self._together(w, k, part, self._by_rows)
                continue
            self._replay.go_to(k, part.forward)
            structure = self._replay.net.structure(cast(part.x, self._replay.dtype))
            if structure is None:
                yield from self._together(w, k, part, self.apart)
            else:
                yield from self.apart(w, k, part)

    def apart(self, w: Tensor, k: int, part: ReplayedBatch) -> Iterator[tuple[Tensor, RowProduct]]:
        """Yield what multiplies rows by gradients of samples that are each computed without the others."""
        net = self._replay.net
        c = self._replay.cotangents(w, k, part)
        x = cast(part.x, self._replay.dtype)
        structure = net.structure(x)
        self.way = "backward passes" if structure is None else "structure"
        # measured: 0.5 to 3.5 numbers are held for each that passes through
        per_sample = w.dtype.itemsize * (4 * net.total if structure is None else 5 * structure.width)
        size = max(1, self._budget // per_sample)
        for index in torch.arange(len(part.batch), device=c.device).split(size):
            some, slopes = take(x, index), c[index]
            if structure is None:
                single = pytree.tree_map(lambda t: t[None], some)
                gradients = net.sample_gradients(w[None], single, slopes[None])[0]
                yield part.batch[index], lambda a, g=gradients: a @ g.T
            else:
                weights = net.unflatten(w)
                jacobian = structure.at(weights, None, net.buffers).jacobian(some, None, slopes[None])
                yield part.batch[index], partial(self._contract, jacobian, len(index))

    def _contract(self, jacobian: Jacobian, n: int, a: Tensor) -> Tensor:
        net, begin = self._replay.net, 0
        out = a.new_zeros(len(a), n)
        for name, size in zip(net.shapes, net.sizes, strict=True):
            block = a[:, begin : begin + size]
            for elements, factors in jacobian[name]:
                some = block if elements is None else block[:, elements]
                for factor in factors:
                    _add_products(out, some, factor, self._budget)
            begin += size
        return out

    def _together(
        self, w: Tensor, k: int, part: ReplayedBatch, otherwise: Callable[..., Iterator[Any]]
    ) -> Iterator[tuple[Tensor, RowProduct]]:
        # forward with the whole batch for each row; otherwise, or where that costs less, backward
        n = len(part.batch)
        most = _MIXED * n if otherwise == self._by_rows else _APART

        def forwards(a: Tensor) -> Tensor:
            found = None
            if len(a) <= most:
                found = self._forward_mode.products(w, k, part, a)
            self.way = "backward passes" if found is None else self._forward_mode.way
            if found is None:
                found = torch.cat([product(a) for _, product in otherwise(w, k, part)], dim=1)
            return found

        yield part.batch, forwards

    def _by_rows(self, w: Tensor, k: int, part: ReplayedBatch) -> Iterator[tuple[Tensor, RowProduct]]:
        net, n = self._replay.net, len(part.batch)
        with torch.enable_grad():
            leaf = w.detach().requires_grad_()
            outputs = self._replay.outputs(leaf, k, part)
            flat = outputs.reshape(n, -1)
        c = self._replay.cotangents_of(outputs, part)
        size = max(1, self._budget // (8 * (3 * net.total + 4 * flat.numel())))
        for index in torch.arange(n, device=w.device).split(size):
            rows = torch.zeros(len(index), *flat.shape, dtype=w.dtype, device=w.device)
            rows[torch.arange(len(index)), index] = c[index]
            gradients = pulled(flat, leaf, rows)
            yield part.batch[index], lambda a, g=gradients: a @ g.T


def _add_products(out: Tensor, a: Tensor, factor: Factor, budget: int) -> None:
    """Add A . J for one factor of J: ``a [r, g * rows * columns]``, ``out [r, n]``."""
    n, _, groups, positions, rows, columns = factor.sizes
    left, right = factor.left, factor.right
    if right is None:
        assert isinstance(left, Tensor)
        out += a @ left.reshape(n, -1).T
        return
    if groups == positions == 1 and not isinstance(left, OneHot) and not isinstance(right, OneHot):
        g, h = left.reshape(-1, rows).expand(n, rows), right.reshape(-1, columns).expand(n, columns)
        blocks = a.unflatten(1, (rows, columns))
        step = max(1, budget // (16 * n * min(rows, columns)))
        for i in range(0, len(a), step):
            some = blocks[i : i + step]
            if columns >= rows:
                product = torch.bmm(some, h.T.expand(len(some), columns, n))  # [r, rows, n]
                out[i : i + step] += product.mul_(g.T).sum(1)
            else:
                product = torch.bmm(g.expand(len(some), n, rows), some)  # [r, n, columns]
                out[i : i + step] += product.mul_(h).sum(2)
        return
    step = max(1, budget // (24 * a.shape[1]))
    for i in range(0, n, step):
        out[:, i : i + step] += a @ factor.rows(slice(i, i + step)).dense().reshape(-1, a.shape[1]).T
