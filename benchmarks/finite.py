"""The finite tangent kernel beside neural-tangents, torch.func and nngeometry: ``make bench-finite``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from side_by_side import Peer
from tables import against_bar, options, run

HERE = Path(__file__).parent / "peers"
sys.path.insert(0, str(HERE))

NEURAL_TANGENTS = {1: "Jacobian", 2: "products", 3: "structured"}

# job: (what it is, peers, least ratio of the best peer's time to ours)
JOBS = {
    "mlp-full": ("MLP 784-1024^3-10, full, N = 128", ("nt", "torch.func", "nngeometry"), 1.5),
    "mlp-one": ("MLP 784-1024^3-1, N = 512", ("nt", "torch.func", "nngeometry"), 2.0),
    "mlp-narrow": ("MLP 784-100^3-10, trace, N = 256", ("nt", "torch.func", "nngeometry"), 1.5),
    "cnn": ("CNN 3 x 32 channels, 16 x 16, GAP, 10 outputs, N = 12", ("nt", "torch.func", "nngeometry"), 4.0),
    "resnet18": ("ResNet-18, 32 x 32, eval, 10 outputs, N = 16", ("torch.func",), 4.0),
    "vit-tiny": ("ViT-tiny, 32 x 32, patch 4, 10 outputs, N = 16", ("torch.func",), 5.0),
}
BARS_AGAINST = ("neural-tangents", "torch.func")  # nngeometry is shown, the bars do not speak of it


def export(job: str, folder: Path) -> Path:
    """Write a job's weights and inputs for the worker in JAX, in the shapes that stax gives weights.

    With a transpose between a weight and its product, neural-tangents would find no structure.
    """
    from networks import build

    model, x, _ = build(job)
    weights = {k: w.detach().numpy() for k, w in model.named_parameters()}
    for name, w in weights.items():
        if w.ndim == 2:
            weights[name] = np.ascontiguousarray(w.T)
        elif w.ndim == 1 and weights[name.replace("bias", "weight")].ndim == 4:
            weights[name] = w.reshape(1, -1, 1, 1)
    path = folder / f"{job}.npz"
    np.savez(path, x=x.numpy(), **weights)
    return path


def peers_of(job: str, folder: Path, jax_python: str, threads: int) -> list[Peer]:
    """Return the contestants of a job, ntkit first."""
    here = [sys.executable, str(HERE / "torch_worker.py")]
    extra = [job, str(threads)]
    peers = [Peer("ntkit", [*here, "ntkit", *extra]), Peer("float64", [*here, "float64", *extra])]
    for name in JOBS[job][1]:
        if name == "nt":
            from networks import JOBS as NETWORKS

            weights, outputs = export(job, folder), NETWORKS[job][2]
            for number, word in NEURAL_TANGENTS.items():
                command = [jax_python, str(HERE / "jax_worker.py"), str(number), str(weights), outputs]
                peers.append(Peer(f"neural-tangents {word}", command))
        else:
            peers.append(Peer(name, [*here, name, *extra]))
    peers.append(Peer("gemm", [*here, "gemm", *extra]))
    return peers


def _flops(job: str) -> float | None:
    """Return the operations of an MLP's kernel that are left after symmetry."""
    from networks import build

    if not job.startswith("mlp"):
        return None
    model, x, outputs = build(job)
    n, widths = len(x), [(w.shape[1], w.shape[0]) for w in model.parameters() if w.ndim == 2]
    o = widths[-1][1]
    forward = sum(2 * n * a * b for a, b in widths)
    backward = sum(2 * n * o * a * b for a, b in widths[1:])
    pairs = n * (n + 1) / 2
    rows = o * o if outputs == "full" else o
    return forward + backward + sum(2 * pairs * (rows * b + a) for a, b in widths)


def main() -> None:
    """Run the jobs and write the tables."""
    chosen = options(__doc__, JOBS, "out/benchmarks/finite.md")
    run(
        chosen,
        {job: title for job, (title, _, _) in JOBS.items()},
        lambda job, folder: peers_of(job, folder, chosen.jax_python, chosen.threads),
        lambda job, rows: against_bar(rows, JOBS[job][2], BARS_AGAINST, _flops(job)),
    )


if __name__ == "__main__":
    main()
