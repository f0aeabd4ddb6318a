"""Accounts of a prediction beside ExPLAIND's exact path kernel, on the same training.

ExPLAIND 0.1 asks for a newer Python and older packages than it needs:
``python -m pip install --no-deps --ignore-requires-python explaind==0.1.0``
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from side_by_side import Peer, Row, compete
from tables import table

HERE = Path(__file__).parent / "peers"
FASTER = 5.0  # the least ratio of times at equal error


def peers(steps: int, tol: float) -> list[Peer]:
    """Return ntkit, the network itself, ExPLAIND with the 100 nodes of its examples, and with 10."""
    script = [sys.executable, str(HERE / "path_worker.py")]
    rest = [("ntkit", 0), ("float64", 0), ("ExPLAIND 100 nodes", 100), ("ExPLAIND 10 nodes", 10)]
    return [Peer(name, [*script, name, str(steps), str(nodes), str(tol)]) for name, nodes in rest]


def verdict(rows: list[Row]) -> str:
    """Return one line: how much faster ntkit was than each run of ExPLAIND, beside their errors."""
    ours = rows[0]
    others = [r for r in rows if r.peer.startswith("ExPLAIND") and not r.failure]
    if ours.failure or not others:
        return "No ratio: a contestant failed."
    parts = [f"{r.peer}: {r.median / ours.median:.1f} times ours, error {r.error:.1e}" for r in others]
    return f"{'; '.join(parts)}; ours {ours.error:.1e} (bar {FASTER:g} times)."


def main() -> None:
    """Run the comparison and write its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--tol", type=float, default=1e-6)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/path.md"))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compete(
            "path",
            peers(chosen.steps, chosen.tol),
            [],
            Path(folder),
            chosen.repeats,
            chosen.threads,
            "float64",
        )
    title = f"MLP 64-32-10, tanh, AdamW, {chosen.steps} steps of 32 digits, 20 queries x 10 outputs, float32"
    text = f"### {title}\n\n{table(rows)}\n\n{verdict(rows)}\n"
    print(text)
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(text)


if __name__ == "__main__":
    main()
