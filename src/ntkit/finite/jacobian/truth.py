"""The oracle of a proof: gradients of the user's own module, by autograd, for two samples."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ntkit.errors import BadTypeError
from ntkit.inputs import Batch, take
from ntkit.network import Network, real_gradient

_DRAWN = 16  # outputs whose gradients are compared
_ROWS = 2**24  # numbers in the gradients of all of them, up to which they are compared one by one


class Truth:
    """Gradients of the user's own module for two samples: of each output, or of a random sum of all.

    Each sample goes through the module alone, or ``together`` with the other: torch's own gradient is wrong
    for some networks where the batch is one sample (2.13: batch norm of a gradient with odd strides).
    """

    def __init__(
        self,
        net: Network,
        pair: Batch,
        wanted: tuple[str, ...],
        outputs: int,
        lowest: torch.dtype,
        together: bool = False,
    ) -> None:
        self.net, self.pair, self.wanted, self.lowest = net, pair, wanted, lowest
        draw = torch.Generator().manual_seed(0)
        size = sum(net.weights[name].numel() for name in wanted)
        if min(outputs, _DRAWN) * size <= _ROWS:
            drawn = torch.randperm(outputs, generator=draw)[:_DRAWN]
            self.rows = torch.eye(outputs, dtype=net.dtype)[drawn].to(net.device)
        else:
            rows = torch.randn(1, outputs, generator=draw, dtype=torch.float64)
            self.rows = rows.to(net.device, net.dtype)
        self.outputs, self.together = outputs, together
        self._known: dict[int, dict[str, Tensor | None]] = {}
        self._used: dict[int, set[str]] = {}

    def for_a_batch(self) -> Truth:
        """Return the gradients of both samples in one batch."""
        return Truth(self.net, self.pair, self.wanted, self.outputs, self.lowest, together=True)

    def gradients(self, sample: int) -> dict[str, Tensor | None]:
        """Return the gradients ``[q, P]`` for one of the two samples; None: the weight has no use."""
        if sample not in self._known:
            if len(self.rows) == 1:  # large ones are held for one sample at a time
                self._known.clear()
            batch = self.pair if self.together else take(self.pair, slice(sample, sample + 1))
            found = self._by_autograd(batch, sample if self.together else 0)
            self._known[sample] = found
            self._used[sample] = {name for name, g in found.items() if g is not None}
        return self._known[sample]

    def _by_autograd(self, batch: Batch, place: int) -> dict[str, Tensor | None]:
        found: dict[str, list[Tensor]] = {name: [] for name in self.wanted}
        leaves = self.net.leaves(self.wanted)
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = self.net.direct(batch, leaves)
            for row in self.rows.to(y.dtype) if y.requires_grad else ():
                try:
                    grads = torch.autograd.grad(
                        (y[place] * row).sum(), list(leaves.values()), None, True, allow_unused=True
                    )
                except RuntimeError as error:
                    if "use_reentrant" in str(error):
                        raise BadTypeError(
                            f"{_checkpointing(self.net, batch)} uses reentrant checkpoints "
                            f"(torch.utils.checkpoint, use_reentrant=True), which autograd.grad cannot go "
                            f"through. Give use_reentrant=False, or turn checkpoints off."
                        ) from error
                    raise
                for name, g in zip(self.wanted, grads, strict=True):
                    if g is not None:
                        found[name].append(real_gradient(g).reshape(-1))
        return {
            name: (rows[0][None] if len(rows) == 1 else torch.stack(rows)) if rows else None
            for name, rows in found.items()
        }

    @property
    def unused(self) -> list[str]:
        """The weights that no output depends on, for either sample."""
        for sample in {0, 1} - self._used.keys():
            self.gradients(sample)
        return [name for name in self.wanted if not any(name in used for used in self._used.values())]


def _checkpointing(net: Network, one: Batch) -> str:
    """Return the name of the innermost module whose output comes from a reentrant checkpoint."""
    found: list[str] = []

    def depends(values: object) -> bool:
        nodes = [t.grad_fn for t in pytree.tree_leaves(values) if isinstance(t, Tensor)]
        seen: set[Any] = set()
        while nodes:
            node = nodes.pop()
            if node is None or node in seen:
                continue
            if "CheckpointFunction" in node.name():
                return True
            seen.add(node)
            nodes.extend(n for n, _ in node.next_functions)
        return False

    def look(name: str, given: object, output: object) -> None:
        if not found and depends(output) and not depends(given):
            found.append(name or "The model")

    modules = net.module.named_modules() if net.module is not None else ()
    handles = [m.register_forward_hook(lambda _, x, y, name=name: look(name, x, y)) for name, m in modules]
    try:
        net.direct(one)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "The network"
