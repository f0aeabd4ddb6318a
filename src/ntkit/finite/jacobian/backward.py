"""Backward passes for many combinations of outputs at once, where torch batches them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ntkit.graph import Arguments


@contextmanager
def quiet() -> Iterator[None]:
    """Stay silent where torch has no batched form of an operation and runs it one by one."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*performance drop.*")
        yield


def quiet_vmap(function: Callable, **options: Any) -> Callable:
    """torch.vmap, `quiet`."""

    def quietly(*args: object) -> Any:
        with quiet():
            return torch.vmap(function, **options)(*args)

    return quietly


class Backward:
    """Backward passes through one network, ``batched`` until one of them fails to be."""

    def __init__(self) -> None:
        self.batched = True

    def gradients(
        self, out: Tensor, leaves: Sequence[Tensor], rows: Tensor, last: bool = False
    ) -> list[Tensor | None]:
        """Return d (row . out) / d leaf for each of ``rows [q, *out]``, None where nothing arrives.

        ``last``: nothing else is asked of these outputs, so what was saved for them may be freed.
        """
        if not leaves or not out.requires_grad:
            return [None] * len(leaves)
        options: Arguments = dict(allow_unused=True, retain_graph=not last)
        if rows.shape[0] > 1 and self.batched:
            try:
                with quiet():
                    return list(torch.autograd.grad(out, leaves, rows, is_grads_batched=True, **options))
            except RuntimeError:
                if last:
                    raise
                self.batched = False  # an operation whose backward has no batching rule
        if rows.shape[0] == 1:
            grads = torch.autograd.grad(out, leaves, rows[0], **options)
            return [None if g is None else _dense(g).unsqueeze(0) for g in grads]
        result: list[Tensor | None] = [None] * len(leaves)
        for i, row in enumerate(rows):
            for j, grad in enumerate(torch.autograd.grad(out, leaves, row, **options)):
                if grad is not None:
                    whole = result[j]
                    if whole is None:
                        result[j] = whole = _dense(grad).new_empty(rows.shape[0], *grad.shape)
                    whole[i] = _dense(grad)
        return result


def _dense(gradient: Tensor) -> Tensor:
    return gradient if gradient.layout is torch.strided else gradient.to_dense()
