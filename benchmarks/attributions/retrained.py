"""What really happens without some samples: networks trained again, each result an atomic file."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from attributions.setting import Data, Setting, losses, train

from ntkit.files import write_atomically


def removals(setting: Setting, data: Data, samples: list[int], folder: Path, seed: int = 0) -> np.ndarray:
    """Return by how much the loss of each query changes without each of the samples, ``[q, removals]``."""
    base = _losses(setting, data, folder, "all", None, seed)
    columns = []
    for sample in samples:
        kept = torch.ones(len(data.x), dtype=torch.bool)
        kept[sample] = False
        columns.append(_losses(setting, data, folder, f"without-{sample}", kept, seed) - base)
    return np.stack(columns, axis=1)


def halves(n: int, count: int) -> torch.Tensor:
    """Return random halves of the training samples, ``[count, n]``, true where a sample is in."""
    generator = torch.Generator().manual_seed(2)
    kept = torch.zeros(count, n, dtype=torch.bool)
    for row in kept:
        row[torch.randperm(n, generator=generator)[: n // 2]] = True
    return kept


def of_halves(setting: Setting, data: Data, count: int, folder: Path, seed: int = 0) -> np.ndarray:
    """Return the loss of each query of the networks trained on `halves`, ``[q, count]``."""
    rows = enumerate(halves(len(data.x), count))
    columns = [_losses(setting, data, folder, f"half-{i}", kept, seed) for i, kept in rows]
    return np.stack(columns, axis=1)


def of_seeds(setting: Setting, data: Data, seeds: range, folder: Path) -> np.ndarray:
    """Return the loss of each query of networks trained on all samples from other seeds, ``[q, seeds]``."""
    return np.stack([_losses(setting, data, folder, "all", None, seed) for seed in seeds], axis=1)


def _losses(
    setting: Setting, data: Data, folder: Path, name: str, kept: torch.Tensor | None, seed: int
) -> np.ndarray:
    file = folder / "retrained" / f"seed-{seed}-{name}.npy"
    if not file.exists():
        model = train(setting, data, kept, seed)
        with torch.no_grad():
            found = losses(model(data.query_x), data.query_y).numpy()
        buffer = io.BytesIO()
        np.save(buffer, found, allow_pickle=False)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, buffer.getvalue())
    return np.load(file, allow_pickle=False)
