"""Directional derivatives of a whole batch, trusted only where its gradient agrees."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ntkit.compute.counting import Counting, cost_of_many
from ntkit.compute.scripted import jvp
from ntkit.finite.jacobian.backward import quiet, quiet_vmap
from ntkit.training.functional.flat_network import cast
from ntkit.training.replay.steps import Replay, ReplayedBatch

_WAYS = ("mapped", "one by one", "backward twice")
_AGAIN = 16  # after how many steps a way is compared again
_ALIVE = 4  # derivatives as large as the largest that are there at a time
_CLOSE = {torch.float64: 1e-8, torch.float32: 2e-3}  # how far both modes may be apart, over the largest


class ForwardMode:
    """c_n . (J_n A) for rows A ``[r, P]`` and all samples n of a batch, by passes of the whole batch.

    That is right where samples mix, too. But not every operation has a forward derivative in torch, and a few
    have a wrong one (an embedding with ``scale_grad_by_freq``, hooks that change gradients). So each way is
    compared with reverse mode, when modes are met first and every 16th time: in a drawn direction, with the
    gradient of the batch; at first for three samples by themselves too. What disagrees or fails is not used
    again. Where forward mode is not, the gradient with u in the place of c, J^T u, is differentiated by u.
    """

    def __init__(self, replay: Replay, budget: int) -> None:
        self._replay, self._budget = replay, budget
        self._ways: dict[Hashable, list[str]] = {}
        self._seen: dict[Hashable, int] = {}
        self._recurrent = any(isinstance(m, nn.RNNBase) for m in replay.net.module.modules())
        self.way = "forward mode"  # or "backward twice": where the last products came from
        self._held: dict[Hashable, int] = {}  # bytes that a direction takes on its way

    def products(self, w: Tensor, k: int, part: ReplayedBatch, a: Tensor) -> Tensor | None:
        """Return c_n . (J_n A), ``[r, n]``; None where no way in forward mode is right."""
        key = self._kind(part)
        ways = self._ways.setdefault(key, [*_WAYS])
        count = self._seen[key] = self._seen.get(key, -1) + 1
        while ways:
            try:
                self.way = "backward twice" if ways[0] == "backward twice" else "forward mode"
                if count % _AGAIN or not len(a):
                    return self._along(ways[0], w, k, part, a)
                drawn = torch.randn(a.shape[1], generator=torch.Generator().manual_seed(count)).to(a)
                drawn *= a.norm(dim=1).amax() / drawn.norm() if a.any() else 1.0
                found = self._along(ways[0], w, k, part, torch.cat([a, drawn[None]]))
                if self._agrees(w, k, part, drawn, found[-1], apart=count == 0):
                    return found[:-1]
            except (RuntimeError, NotImplementedError):  # an operation without such a derivative
                pass
            ways.pop(0)
            self._seen[key] = count = 0
        return None

    def cost(self, w: Tensor, k: int, part: ReplayedBatch, a: Tensor) -> float | None:
        """Return what `products` costs, counted on one and two rows; None where no way is right."""
        if self.products(w, k, part, a[:1]) is None:
            return None
        way = self._ways[self._kind(part)][0]
        return cost_of_many(len(a), lambda count: self._along(way, w, k, part, a[:count]))

    @staticmethod
    def _kind(part: ReplayedBatch) -> Hashable:
        return part.forward.modes, part.forward.rng is None, len(part.batch)

    def _twice(self, w: Tensor, k: int, part: ReplayedBatch, a: Tensor) -> Tensor:
        with self._differentiable(), torch.enable_grad():
            leaf = w.detach().requires_grad_()
            outputs = self._replay.outputs(leaf, k, part)
            u = torch.zeros_like(outputs, requires_grad=True)
            (g,) = torch.autograd.grad(outputs, leaf, u, create_graph=True)
            found = [torch.autograd.grad(g, u, row, retain_graph=True)[0].flatten(1) for row in a]
        c = self._replay.cotangents_of(outputs, part)
        return torch.einsum("rno,no->rn", torch.stack(found).reshape(len(a), *c.shape), c)

    def _along(self, way: str, w: Tensor, k: int, part: ReplayedBatch, a: Tensor) -> Tensor:
        if way == "backward twice":
            return self._twice(w, k, part, a)
        replay, x, found = self._replay, cast(part.x, self._replay.dtype), []

        def f(w: Tensor) -> Tensor:
            return replay.net.raw(w, x)

        replay.go_to(k, part.forward)
        with self._differentiable():
            size = max(1, self._budget // self._bytes(w, k, part)) if way == "mapped" else 1
            outputs: Tensor | None = None
            for some in a.split(size):
                with replay.surroundings(w, k, part):
                    if way == "mapped":
                        along = quiet_vmap(
                            lambda v: jvp(f, (w,), (v,)), randomness="same", out_dims=(None, 0)
                        )
                        outputs, tangents = along(some)
                    else:
                        outputs, tangents = jvp(f, (w,), (some[0],))[:2]
                        tangents = tangents[None]
                found.append(tangents.flatten(2) if tangents.ndim > 2 else tangents[..., None])
        assert outputs is not None
        c = replay.cotangents_of(outputs, part)
        return torch.einsum("rno,no->rn", torch.cat(found), c)

    def _bytes(self, w: Tensor, k: int, part: ReplayedBatch) -> int:
        """Return about how many bytes one direction takes on its way through a batch."""
        key = tuple(t.shape for t in pytree.tree_leaves(part.x))
        if key not in self._held:
            with Counting() as seen, torch.no_grad():
                self._replay.outputs(w, k, part)
            self._held[key] = 1 + w.numel() * w.element_size() + _ALIVE * seen.largest
        return self._held[key]

    def _agrees(self, w: Tensor, k: int, part: ReplayedBatch, a: Tensor, found: Tensor, apart: bool) -> bool:
        """Compare with backward passes: of the batch, and of its first, middle and last sample."""
        replay, n = self._replay, len(part.batch)
        with torch.enable_grad():
            leaf = w.detach().requires_grad_()
            outputs = replay.outputs(leaf, k, part)
            flat = outputs.reshape(n, -1)
        c = replay.cotangents_of(outputs, part)
        rows = [slice(None)] + ([slice(i, i + 1) for i in {0, n // 2, n - 1}] if apart else [])
        close = _CLOSE[w.dtype]
        largest = float(found.abs().max())
        for index, row in enumerate(rows):
            only = torch.zeros_like(c)
            only[row] = c[row]
            (g,) = torch.autograd.grad(flat, leaf, only, retain_graph=index + 1 < len(rows))
            truth, sum_ = float(a @ g), float(found[row].sum())
            allowed = close * max(largest, float(found[row].abs().sum()) / len(found[row]) ** 0.5)
            if not abs(truth - sum_) <= allowed:
                return False
        return True

    @contextmanager
    def _differentiable(self) -> Iterator[None]:
        """Choose kernels that have a forward derivative: attention written out, recurrent layers of aten."""
        with ExitStack() as stack:
            stack.enter_context(quiet())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(_Padding())
            if self._recurrent:
                stack.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")
                stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield


class _Padding(TorchFunctionMode):
    """What an embedding reads at its ``padding_idx`` does not move: no gradient goes through it."""

    def __torch_function__(
        self, func: Any, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        if func is not F.embedding:
            return out
        given = dict(zip(("input", "weight", "padding_idx"), args, strict=False)) | (kwargs or {})
        padding = given.get("padding_idx")
        if padding is None:
            return out
        padded = given["input"] == padding % len(given["weight"])
        return torch.where(padded[..., None], out.detach(), out)
