"""Random numbers of a forward pass: drawn again as they were, and reused in another precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def random_state(device: torch.device | str) -> Tensor:
    """Return the state of the random generators that a network on a device draws from, as bytes."""
    state = torch.get_rng_state()
    if torch.device(device).type == "cuda":
        return torch.cat([state, torch.cuda.get_rng_state(device)])
    return state


@contextmanager
def random_from(state: Tensor | None, device: torch.device | str) -> Iterator[None]:
    """Draw random numbers from a recorded state on; the state before is restored afterwards."""
    if state is None:
        yield
        return
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        set_random_state(state, device)
        yield


def set_random_state(state: Tensor | None, device: torch.device | str) -> None:
    """Draw random numbers from a recorded state on, if there is one."""
    if state is None:
        return
    size = torch.get_rng_state().numel()
    torch.set_rng_state(state[:size].clone())
    if torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state[size:].clone(), device)
