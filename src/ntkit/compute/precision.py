"""Full precision inside our calls, whatever the user's settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Turn TF32 (CUDA) and bfloat16 (oneDNN on CPU) off in products of float32, then restore them."""
    settings = list(_cuda()) if device.type == "cuda" else list(_cpu())
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
    for owner, name, value in settings:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _cuda() -> Iterator[tuple[Any, str, Any]]:
    yield torch.backends.cuda.matmul, "allow_tf32", False
    yield torch.backends.cudnn, "allow_tf32", False


def _cpu() -> Iterator[tuple[Any, str, Any]]:
    for part in ("matmul", "conv"):  # torch 2.9 and later
        owner = getattr(torch.backends.mkldnn, part, None)
        if hasattr(owner, "fp32_precision"):
            yield owner, "fp32_precision", "ieee"
