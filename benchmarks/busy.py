"""What ntkit takes on a busy machine: jobs of the benchmarks, idle and with three busy processes beside them.

Each job is a process of its own that stays; its timed call alternates between both. A job whose idle call
gains more than half by its threads, against one thread, is told apart: it fills the processors, which it
cannot have on a busy machine. (Processor time does not tell: threads that wait keep processors at work.)
Idle means that nothing else runs: on a machine with other work the ratios say nothing.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import sleep

import torch
from side_by_side import PAUSE, Peer, Worker

import finite
import machine

HERE = Path(__file__).parent / "peers"
BUSY = 3  # processes
BARS = {False: 4.0, True: 6.0}  # of busy over idle; where the idle call fills the processors
FILLS = 1.5  # times as fast as with one thread


def jobs(folder: Path, threads: int) -> dict[str, Peer]:
    """Return ntkit's worker of each job of the three benchmarks."""
    found = {}
    for name, suite in (("finite", finite), ("machine", machine)):
        for job in suite.JOBS:
            peers = suite.peers_of(job, folder, "", threads)
            found[f"{name}: {job}"] = next(peer for peer in peers if peer.name == "ntkit")
    command = [sys.executable, str(HERE / "path_worker.py"), "ntkit", "60", "0", "1e-5"]
    for rate in ("0.001", "0.03"):
        found[f"path: rate {rate}"] = Peer("ntkit", [*command, rate])
    return found


@contextmanager
def busy_processes() -> Generator[None]:
    """Keep some processes busy meanwhile."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(BUSY)]
    sleep(1.0)
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def called(worker: Worker) -> float:
    """Return the seconds of one call."""
    sleep(PAUSE)
    return worker.ask("run")["seconds"]


def measure(peer: Peer, rounds: int, threads: int) -> tuple[list[float], list[float], float]:
    """Return the seconds of idle and of busy calls, and what threads gain in an idle one."""
    worker, alone = Worker(peer, [], threads), Worker(peer, [], 1)
    idle, busy, single = [], [], []
    try:
        for each in (worker, alone):
            each.ask("prepare")
        for _ in range(rounds):
            for _ in range(3):
                idle.append(called(worker))
                single.append(called(alone))
            with busy_processes():
                busy += [called(worker) for _ in range(3)]
    finally:
        worker.close()
        alone.close()
    return idle, busy, median(single) / median(idle)


def main() -> None:
    """Run the chosen jobs; print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", nargs="*", default=[""], help="beginnings of names")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/busy.md"))
    chosen = parser.parse_args()
    text = [
        f"Machine: {platform.machine()}, {os.cpu_count()} processors, {chosen.threads} threads, {BUSY} busy "
        f"processes, {chosen.rounds} rounds of three calls.\n",
        "| job | idle s, median (min to max) | busy s | ratio | bar | threads gain, idle |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(text), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, peer in jobs(Path(folder), chosen.threads).items():
            if not any(name.startswith(begin) for begin in chosen.jobs):
                continue
            idle, busy, gain = measure(peer, chosen.rounds, chosen.threads)
            ratio, bar = median(busy) / median(idle), BARS[gain > FILLS]
            told = "reached" if ratio <= bar else "**missed**"
            text.append(
                f"| {name} | {_seconds(idle)} | {_seconds(busy)} | {ratio:.1f} | {bar:g}: {told} "
                f"| {gain:.1f} |"
            )
            print(text[-1], flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text("\n".join(text) + "\n")


def _seconds(values: list[float]) -> str:
    return f"{median(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
