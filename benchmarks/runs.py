"""What an account of an ordinary run costs, in multiples of training: recording, tolerances, and TracIn.

Training, recording, accounts at each tolerance and TracIn of captum and dattri alternate in one process, so
that what else the machine does meets all of them; medians of the rounds are compared.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

import ntkit
from ntkit.errors import PathMismatchError
from ntkit.training.folder.run import Run

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from runs_jobs import Job, jobs
from tracin import PEERS

QUERIES = 4
SLOW = 60.0  # seconds: what takes longer is measured once
HEAD = (
    "| what | seconds, median (min to max) | times training | residual | unsigned | converged | made by |",
    "|---|---|---|---|---|---|---|",
)


@dataclass
class Line:
    """What one contestant took in each round, and what it found."""

    seconds: list[float] = field(default_factory=list)
    account: ntkit.Account | None = None
    off: float | None = None  # how far the sum is from the change of the prediction, over the largest change
    failure: str = ""

    @property
    def done(self) -> bool:
        """Whether it is not to be measured again."""
        return bool(self.failure) or max(self.seconds, default=0.0) > SLOW


def timed(line: Line, call: Callable[[], None]) -> None:
    """Add the seconds of one call."""
    begin = time.perf_counter()
    call()
    line.seconds.append(time.perf_counter() - begin)


def measure(job: Job, steps: int, rounds: int, tolerances: list[float], peers: list[str]) -> dict[str, Line]:
    """Return what all contestants took on one run."""
    job.begin(steps)
    lines = {
        name: Line() for name in ("training", "recording", *map(_named, tolerances), *map(_tracin_of, peers))
    }
    job.train()  # what is slow the first time
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as parent:
            folder = f"{parent}/run"
            lines["training"].seconds.append(job.train())
            lines["recording"].seconds.append(job.train(folder))
            for tol in tolerances:
                _account(lines[_named(tol)], job, folder, tol)
            if number == 0:
                for name in peers:  # they take long, and nothing small is read off them
                    _tracin(lines[_tracin_of(name)], job, folder, name)
                lines["a loss times 3"] = Line(failure=_tripled(job, folder))
            shutil.rmtree(folder)
    return lines


def _named(tol: float) -> str:
    return f"account, tol {tol:g}"


def _tracin_of(name: str) -> str:
    return f"TracIn of {name}"


def _account(line: Line, job: Job, folder: str, tol: float) -> None:
    def call() -> None:
        line.account = ntkit.account(
            folder,
            job.net,
            F.cross_entropy,
            train=(job.x, job.y),
            queries=job.of(slice(0, QUERIES)),
            target="predicted",
            tol=tol,
        )

    if not line.done:
        timed(line, call)


def _tripled(job: Job, folder: str) -> str:
    """Return what the account of another loss says: it must be refused."""

    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return 3 * F.cross_entropy(outputs, y)

    x, y = job.x, job.y
    try:
        ntkit.account(folder, job.net, loss, train=(x, y), queries=job.of(slice(0, 1)), tol=1e-2)
    except PathMismatchError:
        return "refused"
    return "**not refused**"


def _tracin(line: Line, job: Job, folder: str, name: str) -> None:
    """Give a peer the weights of the run once for each pass over the samples, as its authors advise."""
    run = Run(folder)
    every = max(1, job.samples // job.batch)
    at = range(0, run.steps, every)
    kept = {k: v.clone() for k, v in job.net.state_dict().items()}

    def weights(k: int) -> dict[str, Tensor]:
        flat = run.weights(k).to(run.dtype).split([shape.numel() for shape in run.trained.values()])
        named = {n: w.view(s) for (n, s), w in zip(run.trained.items(), flat, strict=True)}
        buffers = {n: b for n, b in run.buffers(k).items() if n in kept}  # not those that are never saved
        return {**kept, **buffers, **named}

    checkpoints = [weights(k) for k in at]
    job.net.eval()
    with torch.no_grad():
        x = job.of(slice(0, QUERIES))
        job.net.load_state_dict(weights(run.steps))
        last = job.outputs(x)
        of = last.argmax(1)
        job.net.load_state_dict(weights(0))
        change = (last - job.outputs(x)).gather(1, of[:, None])[:, 0]
    rate = job.mean_rate(run.steps) * run.steps / len(at) / job.samples
    found: list[Tensor] = []
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            timed(
                line, lambda: found.append(PEERS[name](job.net, job.x, job.y, QUERIES, of, checkpoints, rate))
            )
        if job.rate:
            line.off = float((found[0].sum(1) - change).abs().max() / change.abs().max())
    except (RuntimeError, NotImplementedError, AssertionError, TypeError, ValueError, ImportError) as error:
        line.failure = f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        job.net.load_state_dict(kept)


def table(job: Job, lines: dict[str, Line]) -> Iterator[str]:
    """Yield the rows of one run as Markdown."""
    size = sum(p.numel() for p in job.net.parameters())
    yield f"### {job.name}\n"
    yield (
        f"{size:,} weights, batches of {job.batch} of {job.samples} samples, {type(job.made).__name__}, "
        f"{len(job.order)} steps, {QUERIES} queries.\n"
    )
    yield from HEAD
    base = median(lines["training"].seconds)
    for name, line in lines.items():
        if line.failure:
            yield f"| {name} | {line.failure[:90].replace('|', '/')} | | | | | |"
            continue
        s = line.seconds
        spread = f" ({min(s):.2f} to {max(s):.2f})" if len(s) > 1 else ""
        cells = [f"{median(s):.2f}{spread}", _ratio(job, name, median(s) / base)]
        a = line.account
        if a is not None:
            moved = float((a.prediction - a.initial).abs().max())
            cells += [f"{a.relative_residual:.1e}", f"{float(a.unsigned.max()) / moved:.1e}"]
            cells += ["yes" if a.converged else "**no**", _made_by(a)]
        else:
            cells += ["" if line.off is None else f"{line.off:.2g}", "", "", ""]
        yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def _ratio(job: Job, name: str, ratio: float) -> str:
    bars = {_named(tol): bar for tol, bar in job.bars}
    if name not in bars:
        return f"{ratio:.1f}"
    verdict = "reached" if ratio <= bars[name] else "**missed**"
    return f"{ratio:.1f} (bar {bars[name]:g}: {verdict})"


def _made_by(a: ntkit.Account) -> str:
    assert a.plan is not None
    count = sum(n * steps for n, steps in a.nodes.items()) / a.steps
    return f"{a.plan.precision}, {a.plan.contributions}, {count:.1f} nodes a step"


def main() -> None:
    """Measure the chosen runs; print and write the tables."""
    known = jobs()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", nargs="*", default=list(known), help="names, or their beginnings")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tol", type=float, nargs="*", default=[1e-2, 1e-3, 1e-4])
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/runs.md"))
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    unknown = [name for name in chosen.jobs if not any(full.startswith(name) for full in known)]
    if unknown:
        parser.error(f"no run is called {unknown[0]!r}; there are {', '.join(known)}")
    text = [
        f"Machine: {platform.machine()}, {chosen.threads} thread(s), torch {torch.__version__}, float32, "
        f"{chosen.rounds} interleaved rounds.\n"
    ]
    print(text[0], flush=True)
    for name, job in known.items():
        if not any(name.startswith(prefix) for prefix in chosen.jobs):
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The account did not reach")  # the table says so
            lines = measure(job, chosen.steps, chosen.rounds, chosen.tol, chosen.peers)
        text += table(job, lines)
        print("\n".join(table(job, lines)), flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
