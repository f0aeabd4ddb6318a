"""What the zoo knows of a model: how it is made, three samples for it, and what to expect of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import compiled  # noqa: F401  (before any import of torchvision)
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

OUTPUTS = 4  # of a network that returns more, as many are looked at
SAMPLES = 3
SEED = 0

Select = str | int | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class Entry:
    """A model with random weights in a small configuration.

    ``inputs()`` gives a batch of different samples: a tensor, a tuple or a dict. ``per_sample=False``: it is
    no function of one sample to one tensor, so a refusal is what is right. ``together``: the truth is
    autograd's of the batch, since torch errs where the batch is one sample. ``drawn``: what stands for it
    beside draws, the same architecture on smaller inputs or of fewer layers, as its note tells.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    select: Select = None
    note: str = ""
    per_sample: bool = True
    together: bool = False
    drawn: Entry | None = None

    def smaller(self, note: str, **changes: Any) -> Entry:
        """Return the entry with another for its draws."""
        return replace(self, drawn=replace(self, note=note, **changes))

    def make(self) -> nn.Module:
        """Return the network: eval mode, float64, no weight and no statistic at a special value."""
        torch.manual_seed(SEED)
        network = self.build().double().eval()
        _scatter(network)
        return Few(network, self.select) if self.per_sample else network

    def samples(self) -> Any:
        """Return the batch."""
        torch.manual_seed(SEED + 1)
        return self.inputs()

    def others(self) -> Any:
        """Return another batch of the same shapes, in which nothing is masked."""
        torch.manual_seed(SEED + 2)
        x = self.inputs()
        return (
            {k: torch.ones_like(v) if "mask" in k else v for k, v in x.items()} if isinstance(x, dict) else x
        )


class Few(nn.Module):
    """A network of which a few entries of each output are kept; a function chooses its output here.

    What has a name or a place stays where it is: ``EmpiricalNTK(model, select=model.select)`` picks it.
    """

    def __init__(self, network: nn.Module, select: Select) -> None:
        super().__init__()
        self.network = network
        self.choose = select if callable(select) else None
        self.select = None if callable(select) else select

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network does, each tensor ``[n, at most OUTPUTS]``."""
        y = self.network(*args, **kwargs)
        return few(self.choose(y)) if self.choose else pytree.tree_map_only(Tensor, few, y)


def few(y: Tensor) -> Tensor:
    """Return some of the outputs of each sample."""
    if y.ndim < 2:
        return y
    y = y.flatten(1)
    return y[:, :: max(1, -(-y.shape[1] // OUTPUTS))]


def _scatter(network: nn.Module) -> None:
    """Move all weights off zeros and ones, and the statistics of batch norms off theirs."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
        for module in network.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)


def image(size: int = 32, channels: int = 3, *shape: int) -> Callable[[], Tensor]:
    """Return a maker of pictures ``[3, channels, *shape, size, size]``."""
    return lambda: torch.randn(SAMPLES, channels, *shape, size, size, dtype=torch.float64)


def vectors(*shape: int) -> Callable[[], Tensor]:
    """Return a maker of normal numbers ``[3, *shape]``."""
    return lambda: torch.randn(SAMPLES, *shape, dtype=torch.float64)


def tokens(length: int = 7, words: int = 40, left: bool = False) -> Callable[[], dict[str, Tensor]]:
    """Return a maker of tokens with an attention mask that leaves each sample another length."""

    def make() -> dict[str, Tensor]:
        ids = torch.randint(3, words, (SAMPLES, length))
        mask = torch.ones(SAMPLES, length, dtype=torch.long)
        for i in range(SAMPLES):
            mask[i, length - 2 * i :] = 0
        return {"input_ids": ids, "attention_mask": mask.flip(1) if left else mask}

    return make
