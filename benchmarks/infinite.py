"""The kernels of infinite width beside neural-tangents: ``make bench-infinite``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from side_by_side import Peer, Row
from tables import against_bar, options, run

HERE = Path(__file__).parent / "peers"
sys.path.insert(0, str(HERE))

SLOW = (
    100.0  # seconds of a first call; neural-tangents takes about 25 for global pooling, and is timed in full
)

# job: (what it is, batch sizes of neural-tangents' nt.batch beside the whole at once, least ratio to ours)
JOBS = {
    "mlp": ("ReLU MLP, depth 3, 784 inputs, n = 6000", (2000,), 4.0),
    "cnn-gap": ("ReLU CNN, depth 3, 3 x 3, global average pooling, 14 x 14, n = 40", (10,), 15.0),
    "cnn-flatten": ("ReLU CNN, depth 3, 3 x 3, flatten, 28 x 28, n = 200", (50, 100), 4.0),
}

# first calls in processes of their own, of the job behind "first-"
FIRST = {
    "first-mlp": ("ReLU MLP, depth 3, n = 6000: first call of a process", (), 1.0),
    "first-cnn-flatten": ("ReLU CNN, flatten, n = 200: first call of a process", (), 1.0),
    "first-cnn-gap": ("ReLU CNN, global average pooling, n = 40: first call of a process", (10,), 5.0),
    "first-mlp-1000-after": ("ReLU MLP, n = 1000: first call, another limit was taken before", (), 2.0),
}
JOBS |= FIRST


def peers_of(job: str, folder: Path, jax_python: str, threads: int) -> list[Peer]:
    """Return the contestants of a job, ntkit first."""
    from limits import SIGMA_B, SIGMA_W, build

    _, x = build(job)
    inputs = folder / f"{job}-inputs.npy"
    np.save(inputs, np.moveaxis(x.numpy(), 1, -1))
    here = [sys.executable, str(HERE / "limits_torch.py")]
    there = [jax_python, str(HERE / "limits_jax.py"), job, str(inputs), str(SIGMA_W), str(SIGMA_B)]
    peers = [Peer(who, [*here, who, job, str(threads)]) for who in ("ntkit", "float64")]
    peers.append(Peer("neural-tangents whole", [*there, "0"]))
    peers += [Peer(f"neural-tangents batch {size}", [*there, str(size)]) for size in JOBS[job][1]]
    return peers if job in FIRST else [*peers, Peer("gemm", [*here, "gemm", job, str(threads)])]


def main() -> None:
    """Run the jobs and write the tables."""
    chosen = options(__doc__, JOBS, "out/benchmarks/infinite.md")

    def verdict(job: str, rows: list[Row]) -> str:
        return against_bar(rows, JOBS[job][2], "neural-tangents")

    run(
        chosen,
        {job: title for job, (title, _, _) in JOBS.items()},
        lambda job, folder: peers_of(job, folder, chosen.jax_python, chosen.threads),
        verdict,
        SLOW,
        lambda job: job in FIRST,
    )


if __name__ == "__main__":
    main()
