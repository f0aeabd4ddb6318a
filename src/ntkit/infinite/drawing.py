"""Copies of a network that are drawn again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from ntkit.errors import BadValueError
from ntkit.finite.parametrize import Sigma, parametrized
from ntkit.infinite.reading.laws import Parameterization
from ntkit.inputs import Inputs
from ntkit.network import copy_of

Draw = Callable[[], None]


def redrawn(
    model: nn.Module,
    parameterization: Parameterization,
    sigma_w: Sigma,
    sigma_b: Sigma,
    seed: int,
    x: Inputs | None,
    select: str | int | None,
) -> tuple[nn.Module, Draw]:
    """Return a copy of a network, and what draws it anew at each call."""
    if parameterization == "standard":
        return _standard(model, seed)
    copy, laws = parametrized(model, sigma_w, sigma_b, x, select)
    generator = torch.Generator().manual_seed(seed)

    def draw() -> None:
        for law in laws:
            law.draw(generator)

    return copy, draw


def _standard(model: nn.Module, seed: int) -> tuple[nn.Module, Draw]:
    """Return a copy, and what draws it by its modules' own initialization, innermost first."""
    copy = copy_of(model)
    resets = []
    for path, module in copy.named_modules():
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        names = [name for name, _ in module.named_parameters(recurse=False)]
        if names and not callable(reset):
            raise BadValueError(
                f"{path or 'the model'} ({type(module).__name__}) has the parameter {names[0]!r} but no "
                f"reset_parameters, so parameterization='standard' cannot draw it anew. Give it that "
                f"method, or use parameterization='ntk'."
            )
        if any(is_lazy(p) for p in module.parameters(recurse=False)):
            raise BadValueError(f"{path} ({type(module).__name__}) is not initialized; run the model once.")
        if callable(reset):
            resets.insert(0, reset)
    buffers = {name: b.clone() for name, b in copy.named_buffers()}
    seeds = torch.Generator().manual_seed(seed)
    cuda = {p.device.index for p in copy.parameters() if p.device.type == "cuda"}

    def draw() -> None:
        with torch.random.fork_rng(sorted(cuda)), torch.no_grad():
            torch.manual_seed(int(torch.randint(2**62, (), generator=seeds)))
            for reset in resets:
                reset()
            for name, b in copy.named_buffers():
                b.copy_(buffers[name])

    return copy, draw
