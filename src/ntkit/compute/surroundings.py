"""Within our calls torch is set as it comes; behind them settings and a user's objects are as they were."""

from __future__ import annotations

import random
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from ntkit.compute.precision import exact
from ntkit.compute.threads import fitting_threads
from ntkit.network import Network
from ntkit.on_loan import lent, may_draw, no_default_device


@contextmanager
def undisturbed(net: Network) -> Generator[None]:
    """Run a user's network in torch's ordinary state, and leave it and random states as they were.

    Off are inference mode, autocast, compiled calls, fused attention that has no derivatives, and low
    precision in products. On a processor, torch has no more threads than there are free ones.
    """
    with ExitStack() as stack:
        stack.enter_context(exact(net.device))
        if net.device.type == "cpu":
            stack.enter_context(fitting_threads())
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        for kind in {"cpu", net.device.type}:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(without_fastpath())
        stack.enter_context(no_default_device())
        stack.enter_context(_random_states(net))
        if net.module is not None:
            stack.enter_context(_kept_gradients(net.module))
            stack.enter_context(lent(net.module, net.fixed))
        yield


@contextmanager
def without_fastpath() -> Generator[None]:
    """Turn off the fused attention that only networks in evaluation mode use."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _random_states(net: Network) -> Generator[None]:
    """Put back the states of torch, and, where a network may draw from them, of Python and NumPy."""
    device = net.device
    before = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    others = (random.getstate(), np.random.get_state(legacy=False)) if may_draw(net.module) else None
    try:
        yield
    finally:
        torch.set_rng_state(before)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)
        if others is not None:
            random.setstate(others[0])
            np.random.set_state(others[1])


@contextmanager
def _kept_gradients(module: nn.Module) -> Generator[None]:
    """Put back which parameters require a gradient, and the gradients that they hold."""
    before = [(p, p.requires_grad, p.grad) for p in module.parameters()]
    try:
        yield
    finally:
        for p, requires, gradient in before:
            p.grad = gradient
            if p.requires_grad != requires:
                p.requires_grad_(requires)
