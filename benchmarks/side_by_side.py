"""Run peers on the same job in one interleaved run: each a process of its own, fixed threads.

A worker is a script that reads commands from standard input, one a line, and answers in JSON:
``prepare`` (build, compile, warm up; answers the resident bytes before and the compile seconds),
``run`` (one timed call; answers seconds), ``result FILE`` (writes the kernel as npy, answers the peak
of the resident bytes). Workers wait without using the processor while another one runs.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Timer
from time import sleep

import numpy as np

SLOW = 30.0  # seconds
PAUSE = 0.3  # seconds before each timed call: threads of the last contestant spin for a while
PATIENCE = 150.0  # seconds that one call may take
MEMORY = 14 * 2**30  # bytes that one contestant may hold


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


@dataclass
class Peer:
    """One contestant: its name and the command of its worker."""

    name: str
    command: list[str]


@dataclass
class Row:
    """What one contestant did on one job: seconds, bytes, relative error, gradients."""

    job: str
    peer: str
    seconds: list[float]
    warm_up: float
    peak: int
    error: float | None
    failure: str = ""
    gradients: int = 0  # that it took, where it counts them

    @property
    def median(self) -> float:
        """The median of the timed calls."""
        return median(self.seconds) if self.seconds else float("nan")


class Worker:
    """A running contestant."""

    def __init__(self, peer: Peer, arguments: list[str], threads: int) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "ignore", "TF_CPP_MIN_LOG_LEVEL": "3"}
        self.peer = peer
        self.process = subprocess.Popen(
            [*peer.command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            preexec_fn=_limit_memory,
        )

    def ask(self, command: str) -> dict:
        """Send a command and wait for its answer, `PATIENCE` seconds at most."""
        timer = Timer(PATIENCE, self.process.kill)
        timer.start()
        try:
            return self._ask(command)
        finally:
            timer.cancel()

    def _ask(self, command: str) -> dict:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(command + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self.process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "failure" in answer:
                    raise RuntimeError(answer["failure"])
                return answer
        code = self.process.wait()
        raise RuntimeError(f"ended after {PATIENCE:.0f} s" if code == -9 else f"ended with code {code}")

    def close(self) -> None:
        """End the process that was started here."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
            self.process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()


def compete(
    job: str,
    peers: list[Peer],
    arguments: list[str],
    folder: Path,
    repeats: int,
    threads: int,
    truth: str,
    slow: float = SLOW,
) -> list[Row]:
    """Run a job with all peers in turn, ``repeats`` rounds after a warm-up; compare with ``truth``'s result.

    A peer whose first call takes more than ``slow`` seconds, and ten times the fastest's, is timed once. One
    that fails makes a row that says why; a benchmark without its peer is no benchmark.
    """
    rows, workers = [], {}
    for peer in peers:
        row = Row(job, peer.name, [], 0.0, 0, None)
        rows.append(row)
        workers[peer.name] = Worker(peer, arguments, threads)
        try:
            row.warm_up = workers[peer.name].ask("prepare")["seconds"]
        except RuntimeError as error:
            row.failure = str(error)
    fastest = min((row.warm_up for row in rows if not row.failure), default=0.0)
    for i in range(repeats):
        for row in rows:
            once = row.warm_up > slow and row.warm_up > 10 * fastest
            if not row.failure and not (once and i > 0):
                sleep(PAUSE)
                row.seconds.append(workers[row.peer].ask("run")["seconds"])
    files = {}
    for row in rows:
        if not row.failure:
            files[row.peer] = folder / f"{job}-{row.peer.replace(' ', '-')}.npy"
            answer = workers[row.peer].ask(f"result {files[row.peer]}")
            row.peak, row.gradients = answer["peak"], answer["gradients"]
        workers[row.peer].close()
    _compare(rows, files, truth)
    return rows


def first_calls(
    job: str, peers: list[Peer], folder: Path, repeats: int, threads: int, truth: str
) -> list[Row]:
    """Run the first call of each peer in turn, every time in a process of its own.

    What a library imports when it is imported is not counted, what it imports, reads and compiles at its
    first call is.
    """
    rows = [Row(job, peer.name, [], 0.0, 0, None) for peer in peers]
    files = {peer.name: folder / f"{job}-{peer.name.replace(' ', '-')}.npy" for peer in peers}
    for _ in range(repeats):
        for row, peer in zip(rows, peers, strict=True):
            if row.failure:
                continue
            worker = Worker(peer, [], threads)
            try:
                row.seconds.append(worker.ask("first")["seconds"])
                row.peak = worker.ask(f"result {files[peer.name]}")["peak"]
            except RuntimeError as error:
                row.failure = str(error)
            worker.close()
        for row in rows:
            row.warm_up = row.median
    _compare(rows, files, truth)
    return rows


def _compare(rows: list[Row], files: dict[str, Path], truth: str) -> None:
    """Keep how far each kernel is from the truth's."""
    if truth in files and files[truth].exists():
        exact = np.load(files[truth])
        for row in rows:
            if row.failure or row.peer not in files:
                continue
            found = np.load(files[row.peer])
            if found.shape == exact.shape:
                row.error = float(np.abs(found - exact).max() / np.abs(exact).max())
