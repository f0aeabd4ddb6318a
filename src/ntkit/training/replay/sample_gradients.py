"""What each sample of a batch put into the gradient of its step, multiplied by the rows of a sweep."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.compute.counting import cost_of_many
from ntkit.finite.factors import Factor, OneHot
from ntkit.finite.jacobian.recipe import Jacobian
from ntkit.inputs import take
from ntkit.training.folder.step import Step
from ntkit.training.functional.flat_network import cast
from ntkit.training.functional.transforms import pulled
from ntkit.training.replay.forward_mode import ForwardMode
from ntkit.training.replay.steps import Replay, ReplayedBatch

RowProduct = Callable[[Tensor], Tensor]  # rows [r, P] -> rows times gradients of samples, [r, n]
Backward = Callable[..., Iterator[tuple[Tensor, RowProduct]]]


class Samples:
    """Products of rows ``A [r, P]`` with the gradients J(x_n; w_k)^T c_n of the samples of a step.

    They are made in the way that costs least, as counted on one and two rows or samples: by passes of the
    whole batch along each row (`ForwardMode`), or by a backward pass for each sample. Where the network has a
    structure, the latter are g_n^T A_W h_n for each weight, and no gradient is made. Where it mixes samples
    or draws at random, J_n is row n of the Jacobian of the whole batch, as it was.
    """

    def __init__(self, replay: Replay, budget: int) -> None:
        self._replay, self._budget = replay, budget
        self._forward_mode = ForwardMode(replay, budget)
        self._cheaper: dict[Hashable, bool] = {}  # whether forward mode is, by kind of batch and rows
        self.way = "structure"  # where the last products came from

    def products(self, w: Tensor, k: int, step: Step, mixes: bool) -> Iterator[tuple[Tensor, RowProduct]]:
        """Yield the samples of each batch of a step, with what multiplies rows by their gradients."""
        w = w.to(self._replay.dtype)
        for part in self._replay.parts(step):
            backward = self.by_rows if mixes else self.apart
            yield part.batch, partial(self._products, w, k, part, backward)

    def _products(self, w: Tensor, k: int, part: ReplayedBatch, backward: Backward, a: Tensor) -> Tensor:
        """Return rows times gradients of the samples of a batch, ``[r, n]``, whichever way costs less."""
        found = None
        if self._forward_costs_less(w, k, part, backward, a):
            found = self._forward_mode.products(w, k, part, a)
            self.way = self._forward_mode.way
        if found is None:
            found = torch.cat([product(a) for _, product in backward(w, k, part)], dim=1)
        return found

    def _forward_costs_less(
        self, w: Tensor, k: int, part: ReplayedBatch, backward: Backward, a: Tensor
    ) -> bool:
        n, r = len(part.batch), len(a)
        key = (
            backward.__name__,
            part.forward.modes,
            part.forward.rng is None,
            n,
            r,
        )  # no method: it holds self
        if key not in self._cheaper:
            forward = self._forward_mode.cost(w, k, part, a)
            self._cheaper[key] = forward is not None and forward < cost_of_many(
                n, lambda count: [product(a) for _, product in backward(w, k, part, count)]
            )
        return self._cheaper[key]

    def apart(
        self, w: Tensor, k: int, part: ReplayedBatch, count: int | None = None
    ) -> Iterator[tuple[Tensor, RowProduct]]:
        """Yield what multiplies rows by gradients of samples that are each computed without the others."""
        net = self._replay.net
        self._replay.go_to(k, part.forward)
        c = self._replay.cotangents(w, k, part)
        x = cast(part.x, self._replay.dtype)
        structure = net.structure(x)
        self.way = "backward passes" if structure is None else "structure"
        # measured: 0.5 to 3.5 numbers are held for each that passes through
        per_sample = w.dtype.itemsize * (4 * net.total if structure is None else 5 * structure.width)
        size = max(1, self._budget // per_sample)
        for index in torch.arange(len(part.batch), device=c.device)[:count].split(size):
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

    def by_rows(
        self, w: Tensor, k: int, part: ReplayedBatch, count: int | None = None
    ) -> Iterator[tuple[Tensor, RowProduct]]:
        """Yield the same for rows of the Jacobian of the whole batch, of all samples or of some first."""
        self.way = "backward passes"
        net, n = self._replay.net, len(part.batch)
        with torch.enable_grad():
            leaf = w.detach().requires_grad_()
            outputs = self._replay.outputs(leaf, k, part)
            flat = outputs.reshape(n, -1)
        c = self._replay.cotangents_of(outputs, part)
        size = max(1, self._budget // (8 * (3 * net.total + 4 * flat.numel())))
        for index in torch.arange(n, device=w.device)[:count].split(size):
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
