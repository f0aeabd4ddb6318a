"""Sums over many rows of their features: the normal equations in float64, products for an iteration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ntkit.compute.plan import chunks
from ntkit.compute.progress import progress
from ntkit.compute.tiled.samples import Samples

PARTS = 8  # strips of Z^T Z, of which only the upper half is computed


@dataclass
class Moments:
    """Z^T Z ``[m, m]`` (its upper half), Z^T (y - c) ``[m, o]``, squares of y - c ``[o]``, in float64."""

    gram: Tensor
    cross: Tensor
    square: Tensor

    @classmethod
    def zero(cls, m: int, outputs: int) -> Moments:
        """Return those of no rows."""
        gram, cross = torch.zeros(m, m, dtype=torch.float64), torch.zeros(m, outputs, dtype=torch.float64)
        return cls(gram, cross, torch.zeros(outputs, dtype=torch.float64))

    def add(self, z: Tensor, y: Tensor) -> None:
        """Add rows: their products in the dtype of z, the sums of these in float64."""
        for s in chunks(z.shape[1], -(-z.shape[1] // PARTS)):
            self.gram[s, s.start :] += z[:, s].T @ z[:, s.start :]
        self.cross += z.T @ y.to(z)
        self.square += y.double().square().sum(0)

    def __iadd__(self, other: Moments) -> Moments:
        self.gram += other.gram
        self.cross += other.cross
        self.square += other.square
        return self

    def whole(self) -> Tensor:
        """Return Z^T Z with both halves, in the place of the upper one."""
        for s in chunks(len(self.gram), 512):
            self.gram[s, : s.start] = self.gram[: s.start, s].T
            corner = self.gram[s, s]
            corner.copy_(corner.triu() + corner.triu(1).T)
        return self.gram


@dataclass(frozen=True)
class Rows:
    """Rows of data, and what makes features of them: what a process needs for its share."""

    x: Samples
    y: Tensor
    features: nn.Module
    dtype: torch.dtype
    batch: int

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, rows: slice) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of rows and their features ``[b, m]``."""
        for s in chunks(rows.stop - rows.start, self.batch):
            part = slice(rows.start + s.start, rows.start + s.stop)
            if part.stop > part.start:
                yield part, self.of(part)

    @torch.no_grad()
    def of(self, rows: slice) -> Tensor:
        """Return the features of some rows."""
        return self.features(as_rows(self.x.take(rows)).to(self.dtype))


def as_rows(x: object) -> Tensor:
    """Return rows as vectors."""
    tensor = x if isinstance(x, Tensor) else torch.as_tensor(np.array(x))
    return tensor.reshape(len(tensor), -1)


def moments(rows: Rows, m: int, share: slice, step: object = None) -> Moments:
    """Return the moments of a share of the rows."""
    found = Moments.zero(m, rows.y.shape[1])
    for part, z in rows.batches(share):
        found.add(z, rows.y[part])
        if callable(step):
            step(len(z))
    return found


def all_moments(rows: Rows, m: int, jobs: int, verbose: bool) -> Moments:
    """Return the moments of all rows, by so many processes of joblib (its Dask and Ray backends, too)."""
    if jobs == 1:
        if not verbose:
            return moments(rows, m, slice(0, len(rows)))
        with progress("Rows", len(rows)) as step:
            return moments(rows, m, slice(0, len(rows)), step)
    import joblib

    shares = list(chunks(len(rows), -(-len(rows) // jobs)))
    pool = joblib.Parallel(n_jobs=jobs, return_as="generator")
    found = Moments.zero(m, rows.y.shape[1])
    for part in pool(joblib.delayed(moments)(rows, m, share) for share in shares):
        found += part  # pyright: ignore[reportOperatorIssue]
    return found


class StreamedGram:
    """Z^T Z as a `Matrix` whose products stream over the rows: what Falkon's iteration takes."""

    def __init__(self, rows: Rows, m: int) -> None:
        self.rows, self.n = rows, m

    def __matmul__(self, v: Tensor) -> Tensor:
        out = torch.zeros_like(v)
        for _, z in self.rows.batches(slice(0, len(self.rows))):
            out += (z.T @ (z @ v.to(z))).to(v)
        return out

    def diag(self) -> Tensor:
        """Return the diagonal ``[m]``."""
        squares = (z.double().square().sum(0) for _, z in self.rows.batches(slice(0, len(self.rows))))
        return sum(squares, torch.zeros(self.n, dtype=torch.float64))

    def columns(self, index: Tensor) -> Tensor:
        """Return some columns ``[m, len(index)]``."""
        parts = (z.T @ z[:, index] for _, z in self.rows.batches(slice(0, len(self.rows))))
        return sum((p.double() for p in parts), torch.zeros(self.n, len(index), dtype=torch.float64))

    def cross(self) -> Tensor:
        """Return Z^T (y - c) ``[m, o]``."""
        out = torch.zeros(self.n, self.rows.y.shape[1], dtype=torch.float64)
        for part, z in self.rows.batches(slice(0, len(self.rows))):
            out += z.T @ self.rows.y[part].to(z)
        return out
