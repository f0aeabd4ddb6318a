"""Conjugate gradients on tiles: against the matrix in memory, and against the disk.

    python benchmarks/tile_solvers.py [--samples 20000] [--folder DIR]

With all tiles in memory the solution is compared with the same solver on the matrix as one float64 array;
with a quarter of them, each product with the bytes that it streams over the rate at which this disk is read,
measured in the same run on the same files, none of them cached. The bars are 1.5 and 1.3.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

import ntkit
from ntkit.compute.cg import conjugate_gradients, low_rank_inverse
from ntkit.compute.matrix import Dense
from ntkit.compute.out_of_core.costs import stored
from ntkit.compute.out_of_core.source import TiledMatrix
from ntkit.compute.pivoted import pivoted_cholesky
from ntkit.machine.kernels import ReLUKernel

BARS = {"in memory": 1.5, "streamed": 1.3}
RANK, SHIFT, OUTPUTS, PRODUCTS = 500, 1.0, 10, 3


def solved(matrix: Dense | TiledMatrix, b: torch.Tensor) -> tuple[float, int]:
    """Return the seconds of a solution, and its iterations."""
    begin = time.perf_counter()
    low = pivoted_cholesky(matrix, RANK, block=RANK // 4)
    found = conjugate_gradients(matrix, b, SHIFT, precondition=low_rank_inverse(low, SHIFT))
    assert found.converged
    return time.perf_counter() - begin, found.iterations


def uncached(folder: Path) -> list[Path]:
    """Drop the files of a folder from the system's cache; return those of tiles."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    os.sync()
    for path in files:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)
    return sorted(path for path in files if path.parent.parent.name == "c")


def disk_rate(folder: Path) -> float:
    """Return the bytes a second at which the tiles are read one after the other, into new memory."""
    files = uncached(folder)
    begin = time.perf_counter()
    size = sum(np.fromfile(path, np.uint8).nbytes for path in files)
    return size / (time.perf_counter() - begin)


def main() -> None:
    """Print the ratios; exit with 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, help="Of the tiles, which stay; a temporary one if left out.")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    n, rng = options.samples, np.random.default_rng(0)
    x, b = rng.normal(size=(n, 20)), torch.as_tensor(rng.normal(size=(n, OUTPUTS)))
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        executor = ntkit.JoblibExecutor(options.threads)
        tiled = ntkit.TiledKernel(ReLUKernel(), x, folder=folder, dtype="float32", executor=executor).build()
        torch.set_num_threads(options.threads)
        whole = int(stored(n, 4) * 1.2)
        matrix = TiledMatrix(tiled, whole)
        matrix @ b[:, :1]  # each tile is read and checked once
        tiles, iterations = solved(matrix, b)
        assert matrix.kept == len(list(tiled.tiles))
        del matrix
        dense, same = solved(Dense(tiled.dense().double()), b)
        first = tiles / dense
        print(f"n = {n:,}, {OUTPUTS} right-hand sides, {options.threads} threads, all tiles in memory")
        print(
            f"tiles {tiles:.1f} s, {iterations} iterations; "
            f"one array {dense:.1f} s, {same}; ratio {first:.2f}"
        )

        quarter = TiledMatrix(tiled, whole // 4)
        quarter @ b
        ratios, rates = [], []
        for _ in range(PRODUCTS):
            rate = disk_rate(folder)
            uncached(folder)
            before, begin = quarter.streamed, time.perf_counter()
            quarter @ b
            seconds = time.perf_counter() - begin
            ratios.append(seconds / ((quarter.streamed - before) / rate))
            rates.append(rate / 1e6)
        second = median(ratios)
        print(f"a quarter in memory: {quarter.kept} tiles of {len(list(tiled.tiles))}, {rates[0]:.0f} MB/s")
        print(f"product / (bytes streamed / read rate): {', '.join(f'{r:.2f}' for r in ratios)}")
    missed = [k for k, v in {"in memory": first, "streamed": second}.items() if v > BARS[k]]
    print(f"missed: {', '.join(missed)}" if missed else "all bars are met")
    raise SystemExit(bool(missed))


if __name__ == "__main__":
    main()
