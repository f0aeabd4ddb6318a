"""What computations cost, counted from the operations that they are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

FLOPS_PER_BYTE = 12  # what writing a byte costs, in operations of products of matrices: measured
aten = torch.ops.aten
_FLASH = "_scaled_dot_product_flash_attention"
_ALIKE: dict[object, object] = {  # operations that torch's table lacks, and those with the same count
    getattr(aten, f"{_FLASH}_for_cpu{part}"): getattr(aten, f"{_FLASH}{part}") for part in ("", "_backward")
}


class Counting(TorchDispatchMode):
    """Counts operations and bytes while it is entered, in backward passes and mapped functions too.

    >>> with Counting() as counting:
    ...     _ = torch.ones(3, 4) @ torch.ones(4, 5)
    >>> counting.flops
    120
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0  # in products of matrices, convolutions and attention
        self.bytes = 0  # that were written
        self.largest = 0  # bytes of the largest result

    @property
    def cost(self) -> int:
        """Operations, and what writing results costs in such."""
        return self.flops + FLOPS_PER_BYTE * self.bytes

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func.overloadpacket
        formula: Callable[..., int] | None = flop_registry.get(_ALIKE.get(packet, packet))
        if formula is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        sizes = [t.numel() * t.element_size() for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *sizes])
        if not func.is_view:
            self.bytes += sum(sizes)
        return out


def cost_of_many(count: int, work: Callable[[int], object]) -> float:
    """Return what ``work(count)`` costs if that is linear in `count`, from ``work(1)`` and ``work(2)``."""
    costs = []
    for few in (1, 2)[: min(count, 2)]:
        with Counting() as counting:
            work(few)
        costs.append(counting.cost)
    return float(costs[0] + (count - 1) * (costs[-1] - costs[0]))
