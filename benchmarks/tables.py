"""What the benchmarks have in common: their options, their tables, the line that compares with a bar."""

from __future__ import annotations

import argparse
import platform
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from side_by_side import SLOW, Peer, Row, compete, first_calls

UNLISTED = "gemm"
KEPT = ("ntkit", "float64", UNLISTED)  # contestants that --only does not leave out
GEMM = 2 * 2048**3  # operations of the contestant gemm


def options(doc: str | None, jobs: Iterable[str], out: str) -> argparse.Namespace:
    """Return the options of a benchmark's command line."""
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument(
        "--jax-python", required=True, help="the Python of the environment of neural-tangents"
    )
    parser.add_argument("--jobs", nargs="*", default=list(jobs), choices=list(jobs))
    parser.add_argument("--only", default="", help="leave out the peers whose name lacks this text")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(out))
    return parser.parse_args()


def run(
    chosen: argparse.Namespace,
    titles: dict[str, str],
    peers_of: Callable[[str, Path], list[Peer]],
    verdict: Callable[[str, list[Row]], str],
    slow: float = SLOW,
    fresh: Callable[[str], bool] = lambda _: False,
) -> None:
    """Run the chosen jobs one after the other; print and write their tables.

    ``fresh`` says of which job the first calls in processes of their own are timed.
    """
    text = [f"Machine: {platform.machine()}, {chosen.threads} threads, {chosen.repeats} interleaved rounds."]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for job in chosen.jobs:
            peers = [p for p in peers_of(job, folder) if p.name in KEPT or chosen.only in p.name]
            if fresh(job):
                rows = first_calls(job, peers, folder, chosen.repeats, chosen.threads, "float64")
            else:
                rows = compete(job, peers, [], folder, chosen.repeats, chosen.threads, "float64", slow)
            text += [f"\n### {titles[job]}\n", table(rows), "", verdict(job, rows)]
            print("\n".join(text[-4:]), flush=True)
            chosen.out.parent.mkdir(parents=True, exist_ok=True)
            chosen.out.write_text("\n".join(text) + "\n")


def table(rows: list[Row]) -> str:
    """Return the rows of one job as Markdown, with ratios to ntkit."""
    ours = rows[0]
    lines = [
        "| contestant | seconds, median (min to max) | ratio | first calls, s | peak MiB | ratio | error |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for r in rows:
        if r.peer == UNLISTED:
            continue
        if r.failure:
            lines.append(f"| {r.peer} | failed: {r.failure[:80]} | | | | | |")
            continue
        spread = f"{r.median:.4g} ({min(r.seconds):.3g} to {max(r.seconds):.3g})"
        error = "" if r.error is None or r.peer == "float64" else f"{r.error:.1e}"
        lines.append(
            f"| {r.peer} | {spread} | {r.median / ours.median:.2f} | {r.warm_up:.2f} | "
            f"{r.peak / 2**20:.0f} | {r.peak / max(1, ours.peak):.2f} | {error} |"
        )
    return "\n".join(lines)


def against_bar(rows: list[Row], bar: float, peers: str | tuple[str, ...], flops: float | None = None) -> str:
    """Return one line: the best of the peers, the bar, what was reached, the share of the GEMM rate."""
    ours = rows[0]
    others = [r for r in rows if r.peer.startswith(peers) and not r.failure]
    if not others or ours.failure:
        return f"No ratio (bar {bar:g}): {'ntkit' if ours.failure else 'every peer'} failed."
    best = min(others, key=lambda r: r.median)
    ratio = best.median / ours.median
    line = f"Best peer: {best.peer}, {ratio:.2f} times our time (bar {bar:g}: "
    line += "reached)" if ratio >= bar else "**missed**)"
    multiplied = [r for r in rows if r.peer == UNLISTED]
    if not multiplied:
        return f"{line}."
    rate = GEMM / multiplied[0].median
    line += f". GEMM rate in the same run: {rate / 1e9:.0f} GFLOP/s"
    if flops:
        line += f"; ours {flops / ours.median / 1e9:.0f} GFLOP/s, {flops / ours.median / rate:.0%} of it"
    return line + "."
