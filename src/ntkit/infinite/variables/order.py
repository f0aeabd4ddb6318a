"""The order in which the values of a pair of samples are made, and when each is needed no more."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

KINDS = ("moment", "tangent")


@dataclass(frozen=True)
class Order:
    """Moments and tangent kernels in the order in which they are made, each with what it uses last.

    It depends on the program alone, not on the samples: found on one pair, followed on all. ``held`` are
    the bytes that are in memory at most for a pair, ``largest`` those of the largest value.
    """

    steps: tuple[tuple[Any, tuple[Hashable, ...]], ...]
    held: int
    largest: int

    @classmethod
    def of(cls, values: Mapping[Hashable, Any], readers: Mapping[Hashable, set[Hashable]]) -> Order:
        """Return the order of values that were made, by who asked for each (None: somebody else)."""
        place = {key: i for i, key in enumerate(values)}
        free: dict[int, list[Hashable]] = {}
        for key, asked in readers.items():
            if None not in asked:
                free.setdefault(max(place[one] for one in asked), []).append(key)
        steps, now, most, largest = [], 0, 1, 1
        for i, (key, value) in enumerate(values.items()):
            size = bytes_of(value)
            now, largest = now + size, max(largest, size)
            most = max(most, now)
            done = tuple(free.get(i, ()))
            now -= sum(bytes_of(values[one]) for one in done)
            if isinstance(key, tuple) and key[0] in KINDS:
                steps.append((key, done))
        return cls(tuple(steps), most, largest)


def bytes_of(value: object) -> int:
    """Return the bytes of the tensors in a value."""
    tensors = [t for t in pytree.tree_leaves(value) if isinstance(t, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)
