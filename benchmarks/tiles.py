"""A kernel matrix of MNIST in tiles: this process, joblib and Ray against each other, and what is resumed.

Speeds are entries of the matrix a second of a processor: the time of the processors that this process and
all that it started used, so that other work on the machine does not count. Bars: Ray with four processes at
0.85 of this process, and five of the tiles that are missing within their own time and two seconds.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import torch
from torch import nn

import ntkit
from ntkit.compute.plan import format_bytes
from ntkit.data.mnist import mnist
from ntkit.kernel import Kernel

RAY, RESUMED, MORE = 0.85, 5, 2.0  # of the speed of this process; tiles; seconds


def digits(n: int) -> torch.Tensor:
    """Return n training digits ``[n, 784]`` in float32."""
    x = mnist().train_x[:n].float()
    return x.reshape(len(x), -1)


def kernel() -> Kernel:
    """Return the NTK of an infinitely wide ReLU network with three hidden layers."""
    layers: list[nn.Module] = [nn.Linear(784, 1)]
    for _ in range(3):
        layers += [nn.ReLU(), nn.Linear(1, 1)]
    return ntkit.infinite_width(nn.Sequential(*layers), torch.zeros(1, 784)).ntk


def spent() -> float:
    """Return the seconds of processors of this process and all that it started."""
    here = psutil.Process()
    total = 0.0
    for process in (here, *here.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def measured(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds by the clock and of processors that a call takes."""
    clock, processors = time.perf_counter(), spent()
    work()
    return time.perf_counter() - clock, spent() - processors


def main() -> None:
    """Build with each executor, compare, and resume; the exit status is 1 where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--executors", nargs="*", default=["process", "joblib", "ray"])
    parser.add_argument("--processes", type=int, default=4, help="of Ray; joblib has two")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    x, k = digits(options.n), kernel()
    speeds: dict[str, float] = {}
    failed = False
    try:
        first = None
        for name in options.executors:
            executor: object = None
            if name == "joblib":
                executor = ntkit.JoblibExecutor(2)
            if name == "ray":
                import ray

                ray.init(num_cpus=options.processes, include_dashboard=False, log_to_driver=False)
                executor = ntkit.RayExecutor()
            if executor is not None:  # processes start, and load torch
                few = ntkit.TiledKernel(
                    k, x[:800], folder=folder / f"{name} few", tile=100, executor=executor
                )
                clock, processors = measured(few.build)
                print(f"{name:<8} start and 36 small tiles: {clock:.1f} s, {processors:.1f} s of processors")
            tiled = ntkit.TiledKernel(k, x, folder=folder / name, executor=executor)
            clock, processors = measured(tiled.build)
            tiles = list(tiled.tiles)
            entries = sum(tiled.block(*tile).numel() for tile in tiles)
            speeds[name] = entries / processors
            total = format_bytes(tiled.progress.bytes)
            print(
                f"{name:<8} {len(tiles)} tiles, {total}: {clock:.1f} s, {processors:.1f} s of processors, "
                f"{speeds[name] / 1e6:.2f} million entries a second of one",
                flush=True,
            )
            if first is None:
                first = tiled
            else:
                same = all(torch.equal(first.block(*tile), tiled.block(*tile)) for tile in tiles)
                print(f"{name:<8} the same bits as {options.executors[0]}: {same}")
                failed |= not same
        assert first is not None
        tiles = list(first.tiles)
        for i, j in tiles[:: max(1, len(tiles) // RESUMED)][:RESUMED]:
            os.remove(Path(first.folder) / f"tiles/c/{i}/{j}")
        again = ntkit.TiledKernel(k, x, folder=first.folder)
        start = time.perf_counter()
        opened = measured(lambda: ntkit.TiledKernel(k, x, folder=first.folder))
        clock, processors = measured(again.build)
        each = sum(first.block(*t).numel() for t in tiles) / len(tiles) / speeds[options.executors[0]]
        allowed = RESUMED * each + MORE
        held = opened[1] + processors <= allowed
        failed |= not held
        print(
            f"resumed  {RESUMED} of {len(tiles)} tiles, with opening: {time.perf_counter() - start:.1f} s, "
            f"{opened[1] + processors:.1f} s of processors; allowed {allowed:.1f}: "
            f"{'held' if held else 'MISSED'}"
        )
        if "ray" in speeds and "process" in speeds:
            share = speeds["ray"] / speeds["process"]
            held = share >= RAY
            failed |= not held
            verdict = "held" if held else "MISSED"
            print(f"ray      {share:.3f} of the speed of this process, bar {RAY}: {verdict}")
    finally:
        shutil.rmtree(folder)
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()
