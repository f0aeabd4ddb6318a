"""Two versions of ntkit on the same jobs in one interleaved run: what a change costs, as ratios.

    python benchmarks/versions.py --before ../before/src --after src

Each version is a process of its own that imports ntkit from its folder; all else is the same.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from side_by_side import Peer, compete

HERE = Path(__file__).parent / "peers"
WORKERS = {
    "torch_worker.py": ["mlp-full", "mlp-one", "mlp-narrow", "cnn", "resnet18"],
    "limits_torch.py": ["mlp", "cnn-flatten", "cnn-gap"],
    "account_worker.py": ["account-sgd", "account-momentum", "account-adam", "account-deep"],
}
BAR = 1.03


def peer(name: str, source: Path, worker: str, job: str) -> Peer:
    """Return a version as a contestant."""
    command = [sys.executable, str(HERE / worker), "ntkit", job, str(threads(job))]
    return Peer(name, ["env", f"PYTHONPATH={source.resolve()}", *command])


def threads(job: str) -> int:
    """Return how many threads a job has."""
    return 1 if job.startswith("account") else 2


def main() -> None:
    """Print the table; exit with 1 where the later version is slower than the bar allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="The folder `src` of the earlier version.")
    parser.add_argument("--after", type=Path, default=Path("src"))
    parser.add_argument("--jobs", nargs="*", default=[job for jobs in WORKERS.values() for job in jobs])
    parser.add_argument("--rounds", type=int, default=9)
    chosen = parser.parse_args()
    slow = False
    print(f"| job | before, s | after, s | after / before (medians) | (minima) | difference | <= {BAR} |")
    print("|---|---|---|---|---|---|---|")
    for worker, jobs in WORKERS.items():
        for job in [job for job in jobs if job in chosen.jobs]:
            peers = [peer("before", chosen.before, worker, job), peer("after", chosen.after, worker, job)]
            with tempfile.TemporaryDirectory() as folder:
                before, after = compete(
                    job, peers, [], Path(folder), chosen.rounds, threads(job), truth="before"
                )
            if before.failure or after.failure:
                raise SystemExit(f"{job}: {before.failure or after.failure}")
            ratio = after.median / before.median
            least = min(after.seconds) / min(before.seconds)
            holds = min(ratio, least) <= BAR
            slow |= not holds
            times = f"{before.median:.4g} | {after.median:.4g}"
            row = [job, times, f"{ratio:.3f}", f"{least:.3f}", f"{after.error:.1e}", "yes" if holds else "no"]
            print(f"| {' | '.join(row)} |", flush=True)
    sys.exit(int(slow))


if __name__ == "__main__":
    main()
