"""What a recorded step takes of an account: 1024 points, batches of 32, 151 weights, 441 queries, 3 nodes."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from torch import nn

import ntkit
from ntkit.data.toy import ball_sphere

BAR = 3.0  # milliseconds on one core
OPTIMIZERS: dict[str, Callable] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.05),
    "SGD, momentum 0.9": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, 1e-2),
}


def record(folder: str, optimizer: Callable, steps: int) -> Callable[[], ntkit.Account]:
    """Train and record; return the call that makes the account."""
    torch.manual_seed(4)
    layers = (nn.Linear(2, 10), nn.GELU(), nn.Linear(10, 10), nn.GELU(), nn.Linear(10, 1))
    model = nn.Sequential(*layers).double()
    x, y = ball_sphere(1024, seed=0)
    loss, made = nn.MSELoss(), optimizer(model.parameters())
    with ntkit.record(folder, model, made, train=(x, y)) as run:
        for _ in range(steps):
            index = torch.randperm(1024)[:32]
            run.batch(index)
            made.zero_grad()
            loss(model(x[index]), y[index]).backward()
            made.step()
    queries = torch.cartesian_prod(*2 * (torch.linspace(-1.2, 1.2, 21, dtype=torch.float64),))
    return lambda: ntkit.account(folder, model, loss, train=(x, y), queries=queries, nodes=3)


def record_deep(folder: str, steps: int) -> Callable[[], ntkit.Account]:
    """Train 784-100-100-100-10 on 500 samples, full batch; return an account of 100 predicted classes."""
    torch.manual_seed(4)
    sizes = (784, 100, 100, 100, 10)
    layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), nn.Tanh())]
    model = nn.Sequential(*layers[:-1]).double()
    x, y = torch.randn(500, 784, dtype=torch.float64) / 28, torch.randint(10, (500,))
    loss, made = nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters())
    with ntkit.record(folder, model, made, train=(x, y)) as run:
        for _ in range(steps):
            run.batch(range(500))
            made.zero_grad()
            loss(model(x), y).backward()
            made.step()
    settings = {"train": (x, y), "queries": x[:100], "target": "predicted", "tol": 1e-8}
    return lambda: ntkit.account(folder, model, loss, **settings)


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/sweep.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    text = [
        "| optimizer | ms a step, median (min to max) | residual / movement |",
        "|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        accounts = {k: record(f"{folder}/{k}", o, chosen.steps) for k, o in OPTIMIZERS.items()}
        times: dict[str, list[float]] = {name: [] for name in accounts}
        for _ in range(chosen.repeats):
            for name, account in accounts.items():
                begin = time.perf_counter()
                found = account()
                times[name].append(1e3 * (time.perf_counter() - begin) / chosen.steps)
                if len(times[name]) == chosen.repeats:
                    of = times[name]
                    text.append(
                        f"| {name} | {median(of):.2f} ({min(of):.2f} to {max(of):.2f}) "
                        f"| {found.relative_residual:.1e} |"
                    )
    text.append(f"\nOne thread, {chosen.steps} steps, the whole account; bar {BAR:g} ms.")
    print("\n".join(text))
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
