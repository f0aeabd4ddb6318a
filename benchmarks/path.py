"""Accounts of a prediction beside ExPLAIND's exact path kernel, on the same training, at equal error.

ExPLAIND takes the middles of equal parts of each step, 100 of them in its examples; how many it needs
depends on how far a step goes, so both are run at several learning rates, and ExPLAIND with several numbers.
It works in float32 only, where the error of both ends. ExPLAIND 0.1 asks for a newer Python than it needs:
``python -m pip install --no-deps --ignore-requires-python explaind==0.1.0``
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

from side_by_side import Peer, Row, compete

HERE = Path(__file__).parent / "peers"
FASTER = {1e-3: 3.0, 1e-2: 6.0, 3e-2: 24.0}  # the least ratios of times by learning rate, at equal error
NODES = (100, 50, 20, 10, 5, 2)
ALIKE = 1.25  # errors of which the first is at most that many times the other count as equal: float32's
# rounding at the end of a run differs by as much from one number of nodes to the next


def peers(steps: int, tol: float, rate: float) -> list[Peer]:
    """Return ntkit, the network itself, and ExPLAIND with several numbers of nodes."""
    script = [sys.executable, str(HERE / "path_worker.py")]
    rest = [("ntkit", 0), ("float64", 0), *((f"ExPLAIND {n}", n) for n in NODES)]
    return [Peer(name, [*script, name, str(steps), str(nodes), str(tol), str(rate)]) for name, nodes in rest]


def table(rows: list[Row]) -> str:
    """Return the rows of one learning rate as Markdown."""
    ours = rows[0]
    lines = [
        "| contestant | seconds, median (min to max) | ratio | gradients of queries | ratio | error |",
        "|---|---|---|---|---|---|",
    ]
    for r in rows:
        if r.peer == "float64":
            continue
        if r.failure:
            lines.append(f"| {r.peer} | failed: {r.failure[:80]} | | | | |")
            continue
        lines.append(
            f"| {r.peer}{' nodes' if r.peer != ours.peer else ''} "
            f"| {r.median:.2f} ({min(r.seconds):.2f} to {max(r.seconds):.2f}) | {r.median / ours.median:.1f} "
            f"| {r.gradients:,} | {r.gradients / ours.gradients:.1f} | {r.error:.1e} |"
        )
    return "\n".join(lines)


def verdict(rows: list[Row], rate: float) -> str:
    """Return one line: the ratios to ExPLAIND with the fewest nodes whose error is no larger than ours."""
    ours = rows[0]
    others = [r for r in rows[2:] if not r.failure and r.error is not None]
    if ours.failure or ours.error is None or not others:
        return "No ratio: a contestant failed."
    limit = ALIKE * max(ours.error, min(r.error for r in others if r.error is not None))
    equal = min((r for r in others if (r.error or 0) <= limit), key=lambda r: r.gradients)
    ratio, bar = equal.median / ours.median, FASTER.get(rate)
    told = "" if bar is None else f" (bar {bar:g}: {'reached' if ratio >= bar else '**missed**'})"
    return (
        f"At equal error, {equal.peer} nodes: {equal.gradients / ours.gradients:.1f} times our gradients, "
        f"{ratio:.1f} times our time{told}."
    )


def main() -> None:
    """Run the comparison and write its tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tol", type=float, default=1e-5)
    parser.add_argument("--rates", type=float, nargs="*", default=[1e-3, 1e-2, 3e-2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("out/benchmarks/path.md"))
    chosen = parser.parse_args()
    text = [
        f"MLP 64-32-10, tanh, AdamW, {chosen.steps} steps of 32 digits, 20 queries x 10 outputs, float32; "
        f"ntkit with tol={chosen.tol:g}. Machine: {platform.machine()}, {chosen.threads} threads, "
        f"{chosen.repeats} interleaved rounds. Errors in units of the largest prediction."
    ]
    for rate in chosen.rates:
        with tempfile.TemporaryDirectory() as folder:
            rows = compete(
                "path",
                peers(chosen.steps, chosen.tol, rate),
                [],
                Path(folder),
                chosen.repeats,
                chosen.threads,
                "float64",
            )
        text += [f"\n### Learning rate {rate:g}\n", table(rows), "", verdict(rows, rate)]
        print("\n".join(text[-4:]), flush=True)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text("\n".join(text) + "\n")


if __name__ == "__main__":
    main()
