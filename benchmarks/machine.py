"""Kernel machines beside scikit-learn, GPyTorch and neural-tangents: ``make bench-machine``."""

from __future__ import annotations

import sys
from pathlib import Path

from side_by_side import Peer, Row
from tables import against_bar, options, run

HERE = Path(__file__).parent / "peers"
sys.path.insert(0, str(HERE))

# job: (what it is, peers in this Python, whether neural-tangents does it, least ratio of the best to ours)
JOBS = {
    "ridge": ("Ridge by Cholesky, n = 8000, 3 targets, 500 queries", ("scikit-learn",), False, 1.0),
    "process": (
        "Gaussian process, n = 3000, mean and deviation of 300 queries",
        ("scikit-learn", "GPyTorch"),
        False,
        1.0,
    ),
    "flow": ("Gradient flow to t = 500, n = 2000, 3 targets, 500 queries", (), True, 1.0),
}


def peers_of(job: str, folder: Path, jax_python: str, threads: int) -> list[Peer]:
    """Return the contestants of a job, ntkit first."""
    from machines import write

    file = folder / f"{job}.npy"
    write(job, file)
    _, here, there, _ = JOBS[job]
    names = ["ntkit", "float64", *here, "gemm"]
    script = str(HERE / "machines_torch.py")
    peers = [Peer(name, [sys.executable, script, name, job, str(file), str(threads)]) for name in names]
    if there:
        peers.insert(2, Peer("neural-tangents", [jax_python, str(HERE / "machines_jax.py"), job, str(file)]))
    return peers


def main() -> None:
    """Run the jobs and write the tables."""
    chosen = options(__doc__, JOBS, "out/benchmarks/machine.md")

    def verdict(job: str, rows: list[Row]) -> str:
        return against_bar(rows, JOBS[job][3], ("scikit-learn", "GPyTorch", "neural-tangents"))

    run(
        chosen,
        {job: title for job, (title, *_) in JOBS.items()},
        lambda job, folder: peers_of(job, folder, chosen.jax_python, chosen.threads),
        verdict,
    )


if __name__ == "__main__":
    main()
