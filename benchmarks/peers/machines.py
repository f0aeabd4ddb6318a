"""The jobs of kernel machines: Gram matrices of the default kernel, targets, settings, always the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

ALPHA, TIME = 0.1, 500.0

# job: (training samples, queries, targets)
JOBS = {"ridge": (8000, 500, 3), "process": (3000, 300, 1), "flow": (2000, 500, 3)}


def write(job: str, file: Path) -> None:
    """Write the kernel of all samples and queries, and the targets, for all contestants."""
    import torch

    from ntkit.machine.kernels import ReLUKernel

    n, m, o = JOBS[job]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + m, 10))
    w = rng.normal(size=(10, o))
    y = np.sin(x[:n] @ w) + 0.1 * rng.normal(size=(n, o))
    with torch.no_grad():
        np.save(file, ReLUKernel()(x).numpy())
    np.save(file.with_suffix(".y.npy"), y)


def read(job: str, file: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return k(X, X), k(Q, X), k(Q, Q) and the targets."""
    n = JOBS[job][0]
    whole = np.load(file)
    y = np.load(Path(file).with_suffix(".y.npy"))
    return whole[:n, :n].copy(), whole[n:, :n].copy(), whole[n:, n:].copy(), y
