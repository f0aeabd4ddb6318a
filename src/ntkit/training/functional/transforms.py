"""Derivatives of a network in torch.func, and by ordinary backward passes where that fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import jacrev, vjp
from torch.utils import _pytree as pytree

from ntkit.compute.scripted import jvp
from ntkit.finite.jacobian.backward import Backward, quiet_vmap
from ntkit.inputs import Batch, batch_size, take

T = TypeVar("T")


class Transforms:
    """Maps and derivatives of a network's functions, row by row once that proves necessary.

    A network that branches on values (on what a mask says), reads them out to NumPy or has an
    autograd.Function of the older kind cannot be transformed by torch.func.
    """

    transforms = True

    def either(self, batched: Callable[[], T], plainly: Callable[[], T]) -> T:
        """Return the first, in torch.func; once that fails, the second, by ordinary means."""
        if self.transforms:
            try:
                return batched()
            except RuntimeError:
                self.transforms = False
            try:
                return plainly()
            except BaseException:
                self.transforms = True
                raise
        return plainly()

    def try_transforms(self, function: Callable[[Tensor, Any], Tensor], w: Tensor, x: Batch) -> None:
        """Compare with ordinary backward passes on samples x: torch batches some (of `cdist`) wrongly."""
        rows = torch.eye(function(w, take(x, 0)).numel(), dtype=w.dtype, device=w.device)[:2]
        plain = [backward(lambda w, i=i: function(w, take(x, i)), w, rows) for i in range(batch_size(x))]
        truth = torch.stack(plain)

        def one(x: Batch) -> Tensor:
            pull = vjp(lambda w: function(w, x), w)[1]
            return quiet_vmap(pull)(rows)[0]

        jacobians = self.either(lambda: quiet_vmap(one)(x), lambda: truth)
        tol = 1e-9 if truth.dtype == torch.float64 else 2e-4
        if not (jacobians - truth).abs().max() <= tol * truth.abs().max():
            self.transforms = False

    def mapped(self, function: Callable[..., Any], in_dims: object = 0) -> Callable[..., Any]:
        """Return a function applied along axes of its arguments, row by row where vmap cannot."""

        def by_row(*args: object) -> Any:
            dims = in_dims if isinstance(in_dims, tuple) else (in_dims,) * len(args)
            count = next(batch_size(a) for a, d in zip(args, dims, strict=True) if d is not None)
            rows = [
                function(*(a if d is None else take(a, i) for a, d in zip(args, dims, strict=True)))
                for i in range(count)
            ]
            return pytree.tree_map(lambda *parts: torch.stack(parts), *rows)

        return lambda *args: self.either(
            lambda: quiet_vmap(function, in_dims=in_dims)(*args), lambda: by_row(*args)
        )

    def jacobian(self, function: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        """Return the Jacobian of a function ``[o]`` of weights ``[P]``."""

        def plainly() -> Tensor:
            return backward(function, w, None)

        return self.either(lambda: jacrev(function)(w), plainly)

    def slope(self, function: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
        """Return the derivative of a function of one number, by forward mode where torch has it."""

        def plainly() -> Tensor:
            try:
                return jvp(function, (s,), (torch.ones_like(s),))[1]
            except RuntimeError:
                shape = function(s).shape
                return backward(lambda s: function(s).reshape(-1), s, None).reshape(shape)

        return self.either(lambda: _slope(function, s), plainly)


def _slope(function: Callable[[Tensor], Tensor], s: Tensor) -> Tensor:
    """Return the derivative of a function of one number, by forward mode where torch has it."""
    try:
        return jvp(function, (s,), (torch.ones_like(s),))[1]
    except NotImplementedError:
        return jacrev(function)(s)


def pulled(outputs: Tensor, leaf: Tensor, rows: Tensor) -> Tensor:
    """Return gradients of combinations of outputs, by one backward pass where torch batches it."""
    (grad,) = Backward().gradients(outputs, [leaf], rows)
    return leaf.new_zeros(len(rows), *leaf.shape) if grad is None else grad


def backward(function: Callable[[Tensor], Tensor], w: Tensor, rows: Tensor | None) -> Tensor:
    """Return gradients of combinations of the outputs ``[o]`` of a function, of each if none are given."""
    with torch.enable_grad():
        leaf = w.detach().requires_grad_()
        outputs = function(leaf)
        if not outputs.requires_grad:
            return w.new_zeros(len(outputs) if rows is None else len(rows), *w.shape)
        rows = torch.eye(len(outputs), dtype=w.dtype, device=w.device) if rows is None else rows
        return pulled(outputs, leaf, rows)
